"""Write configs/errors.md from the tables that the tests hold the messages against.

Usage: `python scripts/write_error_table.py [FILE]`.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from broken_configs import BROKEN_CONFIGS  # noqa: E402
from broken_data import BROKEN_DATA  # noqa: E402


def error_table() -> str:
    """Return the whole page as Markdown."""
    lines = [
        "# What a wrong config or damaged data says",
        "",
        "Made by `scripts/write_error_table.py` from the tables in `tests/broken_configs.py` and",
        "`tests/broken_data.py`; the tests hold each message to the letter.",
        "",
        f"## Configs ({len(BROKEN_CONFIGS)})",
        "",
        "| case | message |",
        "|---|---|",
        *(_row(case.name, case.message) for case in BROKEN_CONFIGS),
        "",
        f"## Data ({len(BROKEN_DATA)})",
        "",
        "`{path}` stands for the folder of the data.",
        "",
        "| case | message |",
        "|---|---|",
        *(_row(case.name, case.message) for case in BROKEN_DATA),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, message: str) -> str:
    cells = (line.replace("|", "\\|").replace("`", "'") for line in message.splitlines())
    return f"| {name} | {'<br>'.join(f'`{cell}`' for cell in cells)} |"


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "configs" / "errors.md"
    target.write_text(error_table(), encoding="utf-8")
    print(target)
