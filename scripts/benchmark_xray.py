"""Measure how long an x-ray keeps its user waiting, from the command to the prompt.

    python scripts/benchmark_xray.py

Each x-ray is a process of its own with everything in it: the start of Python, the import of
TensorFlow, the reading of CIFAR-10, both passes, ten steps, and the exit. The configs take
turns. The table goes to `scripts/benchmark_xray.md`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmark_report import table

OUTPUT = Path(__file__).with_suffix(".md")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SHIPPED = ("resnet20", "resnet56", "plain56")


def take(name: str) -> tuple[float, float]:
    """Return wall and CPU seconds of one x-ray of a shipped config."""
    command = [sys.executable, "-m", "trainer", "xray", str(CONFIGS / f"{name}.yaml"), "--json"]
    before = os.times()
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    after = os.times()
    # The exit code is the verdict's; an x-ray that failed has printed no blocks.
    if '"blocks"' not in done.stdout:
        raise SystemExit(f"the x-ray of {name} failed:\n{done.stderr}")
    cpu = after.children_user + after.children_system
    return seconds, cpu - before.children_user - before.children_system


def main() -> None:
    """Take the x-rays in turn and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="x-rays of each config")
    arguments = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in SHIPPED}
    for number in range(arguments.rounds):
        for name in SHIPPED:
            taken[name].append(take(name))
            print(f"round {number + 1}: {name} {taken[name][-1][0]:.1f} s", file=sys.stderr)
    rows = []
    for name, runs in taken.items():
        wall, cpu = zip(*runs, strict=True)
        rows.append(
            [
                name,
                f"{statistics.median(wall):.1f}",
                f"{min(wall):.1f} to {max(wall):.1f}",
                f"{statistics.median(cpu):.1f}",
            ]
        )
    text = [
        "# How long an x-ray takes",
        "",
        f"Written by `scripts/benchmark_xray.py`: {arguments.rounds} x-rays of each config through "
        f"the command line, in turn, on CIFAR-10 and {os.cpu_count()} cores; seconds from the "
        "command to the prompt.",
        "",
        table(["config", "median", "range", "CPU, median"], rows),
    ]
    OUTPUT.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
