"""Measure what an epoch of the fast recipe costs, beside airbench94 on the same machine.

    python scripts/benchmark_fast.py --torch-python /path/to/python/with/torch

Contestants, each in a process of its own, taking turns (see `benchmarking.py`):

    ours            what `trainer train configs/cifar10_fast.yaml` runs on whole images: batches
                    of 500, augmentation, gradients recorded, mixed_bfloat16
    ours-24         the same on the 24x24 crops of its first epochs
    ours-float32    the same as the first in float32
    airbench94      `airbench_peer.py`: airbench94 with Muon, batches of 2,000, float32
    airbench94-bfloat16

A turn is 10,000 images of each. The table goes to `scripts/benchmark_fast.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmark_report import describe_machine, table, write_report
from benchmarking import (
    SCRIPTS,
    Contestant,
    LeftOutError,
    Turn,
    keras_contestant,
    load_shipped,
    median_of,
    ratios,
    rotated,
    say,
)

_IMAGES_OF_A_TURN = 10_000
_EPOCH = 50_000

_NOTES = """
Written by `scripts/benchmark_fast.py`, whose docstring says what the contestants are. Seconds
are those of an epoch of 50,000 images, medians over turns of 10,000 images each; ratios are
over airbench94 in float32 within a round, median (smallest - largest). airbench94's batches
lie ready in memory, and it records nothing.
"""


def build_contestants(torch_python: str) -> dict[str, tuple[Contestant, int]]:
    """Return each contestant by name, with the images of its batch."""
    found = {}
    whole, small = "data.early_crops=null", "data.early_crops={size: 24, epochs: 7}"
    variants = {
        "ours": [whole],
        "ours-24": [small],
        "ours-float32": [whole, "runtime.precision=float32"],
    }
    for name, settings in variants.items():
        config = load_shipped("cifar10_fast.yaml", settings)
        spec = {"kind": "ours", "recorder": {}, "num_images": _EPOCH, "epoch_steps": None}
        found[name] = (keras_contestant(name, config, **spec), config.fit.batch_size)
    for name, precision in (("airbench94", "float32"), ("airbench94-bfloat16", "mixed_bfloat16")):
        command = [torch_python, str(SCRIPTS / "airbench_peer.py")]
        found[name] = (Contestant(name, command, {"precision": precision}), 2000)
    return found


def compete(contestants: dict[str, tuple[Contestant, int]], rounds: int) -> list[Contestant]:
    """Let each take its turns, and return those that took part."""
    present: list[tuple[Contestant, int]] = []
    try:
        for name, (contestant, batch_size) in contestants.items():
            say(f"  {name}: building and warming up")
            try:
                contestant.start()
            except LeftOutError as error:
                say(f"  {name} is left out: {error}")
                continue
            steps = _IMAGES_OF_A_TURN // batch_size
            contestant.take_turn(steps)
            present.append((contestant, steps))
        for number in range(rounds):
            for contestant, steps in rotated(present, number):
                contestant.turns.append(contestant.take_turn(steps))
            say(f"  round {number + 1} of {rounds}")
        for contestant, _ in present:
            contestant.finish()
    finally:
        for contestant, _ in contestants.values():
            contestant.stop()
    return [contestant for contestant, _ in present]


def rows_of(present: list[Contestant]) -> list[list[str]]:
    """Return a row a contestant."""
    peer = next((each for each in present if each.name == "airbench94"), None)
    turns_of_an_epoch = _EPOCH // _IMAGES_OF_A_TURN
    values: list[Callable[[Turn], float]] = [
        lambda turn: turn.wall_seconds,
        lambda turn: turn.cpu_seconds,
    ]
    rows = []
    for each in present:
        row = [each.name]
        row += [f"{turns_of_an_epoch * median_of(each, value):.0f}" for value in values]
        row.append(f"{each.turns[-1].peak_mib:,.0f}")
        for value in values if peer else []:
            median, smallest, largest = ratios(each, peer, value)
            row.append(f"{median:.2f} ({smallest:.2f} - {largest:.2f})")
        rows.append(row)
    return rows


def main() -> None:
    """Run the contest and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", metavar="PATH", default=sys.executable)
    parser.add_argument("--output", type=Path, default=SCRIPTS / "benchmark_fast.md")
    arguments = parser.parse_args()
    present = compete(build_contestants(arguments.torch_python), arguments.rounds)
    header = ["contestant", "s/epoch", "CPU s/epoch", "peak MiB", "wall time", "CPU time"]
    facts = describe_machine(present) | {"rounds": str(arguments.rounds)}
    rows = rows_of(present)
    body = table(header[: len(rows[0])], rows)
    write_report(arguments.output, "An epoch of the fast recipe", _NOTES, facts, body)


if __name__ == "__main__":
    main()
