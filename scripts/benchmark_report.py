"""What the benchmarks share: the tables, and the file with where they come from."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarking import Contestant, say

from trainer import machine

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def table(header: Sequence[str], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """Return a Markdown table with aligned columns, numbers to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    rule = [
        "-" * (width + 2) if index < text_columns else "-" * (width + 1) + ":"
        for index, width in enumerate(widths)
    ]
    return "\n".join([lines[0], "|" + "|".join(rule) + "|", *lines[1:]])


def write_report(path: Path, title: str, notes: str, facts: dict[str, str], body: str) -> None:
    """Print the tables and write them, with where they come from, as Markdown."""
    print(f"\n{body}\n")
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    path.write_text("\n\n".join([f"# {title}", notes.strip(), "\n".join(lines), body]) + "\n")
    say(f"wrote {path}")


def describe_machine(contestants: Iterable[Contestant]) -> dict[str, str]:
    """Return what has to be known to read the figures."""
    said: dict[str, str] = {}
    for contestant in contestants:
        said |= contestant.facts
    gpus = ", ".join(gpu.name for gpu in machine.nvidia_gpus()) or "no GPU was found"
    # Of an absolute path, which is one of this machine only, the name is enough.
    command = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"`{shlex.join(['python', f'scripts/{Path(sys.argv[0]).name}', *command])}`",
        "CPU": f"{machine.cpu_model()}, {machine.num_cores()} cores; {_instruction_sets()}",
        "GPU": gpus,
        "load average at the end": f"{os.getloadavg()[0]:.1f}",
        **said,
    }


def _instruction_sets() -> str:
    words = Path("/proc/cpuinfo").read_text().split()
    return ", ".join(flag if flag in words else f"no {flag}" for flag in _FLAGS)
