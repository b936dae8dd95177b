"""Measure how tracing, training and memory grow with depth, and with time.

    python scripts/benchmark_depth.py
    python scripts/benchmark_depth.py --long

Without `--long`: ResNet-20, 32, 44, 56 and 110 with small batches, recorder on, each in a
process of its own, taking turns (see `benchmarking.py`). Tracing time is from the call of
`fit` to the end of the first step, less a median step. A straight line is laid through
tracing time and step time against depth: both should grow by a fixed amount a layer. The
residual is the largest distance from the line, in percent of the line.

With `--long` instead: one fit of a ResNet-20 with batch 8 and the recorder on; the largest
resident set after 1,000 and after 10,000 steps should be the same but for a few MiB.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmark_report import describe_machine, table, write_report
from benchmarking import (
    SCRIPTS,
    Contestant,
    compete,
    keras_contestant,
    load_network,
    median_of,
    say,
)

_BLOCKS = (3, 5, 7, 9, 18)
_LONG_EPOCH_STEPS = 500
_NOTES = """
Written by `scripts/benchmark_depth.py`, whose docstring says how to read it. Random pixels
of 32x32, whole training steps, gradients recorded as shipped.
"""


def network(blocks: int, batch_size: int, images: int, epoch_steps: int | None) -> Contestant:
    """Return the contestant of a network with some blocks in each of its three stages."""
    overrides = [f"model.stages.{stage}.blocks={blocks}" for stage in range(3)]
    config = load_network("resnet20", [*overrides, f"fit.batch_size={batch_size}"])
    spec = {"kind": "ours", "recorder": {}, "num_images": images, "epoch_steps": epoch_steps}
    return keras_contestant(f"ResNet-{depth_of(blocks)}", config, **spec)


def depth_of(blocks: int) -> int:
    """Return the layers with weights: two a block, the stem and the head."""
    return 6 * blocks + 2


def line_through(depths: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of the straight line through some values, and the residual.

    Returns:
        Value per layer, and the largest distance from the line over the line, a share.
    """
    slope, start = np.polyfit(depths, values, 1)
    line = slope * np.asarray(depths) + start
    return float(slope), float(np.max(np.abs(values - line) / np.abs(line)))


def depth_tables(present: Sequence[Contestant], depths: Sequence[int]) -> str:
    """Return what each network takes, and the lines through it."""
    step_seconds = [median_of(each, lambda turn: turn.step_seconds) for each in present]
    tracing = [each.fit_seconds - step for each, step in zip(present, step_seconds, strict=True)]
    rows = [
        [each.name, f"{trace:.1f}", f"{1000 * step:.1f}", f"{each.turns[-1].peak_mib:,.0f}"]
        for each, trace, step in zip(present, tracing, step_seconds, strict=True)
    ]
    parts = [table(["network", "tracing s", "step ms", "peak MiB"], rows)]
    if len(present) > 1:
        lines = []
        for name, values in (("tracing", tracing), ("step", step_seconds)):
            slope, residual = line_through(depths, values)
            lines.append([name, f"{1000 * slope:.2f}", f"{100 * residual:.1f} %"])
        parts.append(table(["time", "ms a layer", "residual"], lines))
    return "\n\n".join(parts)


def long_table(contestant: Contestant, milestones: Sequence[int]) -> str:
    """Train to each milestone in one fit and report the memory there."""
    rows, done, first_mib = [], 1, 0.0
    try:
        contestant.start()
        for milestone in milestones:
            say(f"  to step {milestone:,}")
            turn = contestant.take_turn(milestone - done)
            done, first_mib = milestone, first_mib or turn.peak_mib
            grown = turn.peak_mib - first_mib
            rows.append([f"{milestone:,}", f"{turn.peak_mib:,.1f}", f"{grown:+.1f}"])
        contestant.finish()
    finally:
        contestant.stop()
    return table(["steps", "peak MiB", "grown by MiB"], rows)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=_BLOCKS, help="of each stage")
    parser.add_argument("--batch-size", type=int, help="default: 32, and 8 with --long")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="of a turn; default: about 2.5 seconds' worth")
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--milestones", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--output", type=Path, help="default: benchmark_depth.md or _long.md here")
    arguments = parser.parse_args()
    if arguments.milestones[0] < 2 or sorted(set(arguments.milestones)) != arguments.milestones:
        parser.error("--milestones must rise, and the first be at least 2")

    batch_size = arguments.batch_size or (8 if arguments.long else 32)
    if arguments.long:
        contestant = network(_BLOCKS[0], batch_size, arguments.images, _LONG_EPOCH_STEPS)
        say(contestant.name)
        body = long_table(contestant, arguments.milestones)
        title = f"Memory of a long fit: {contestant.name}, batch {batch_size}"
        output = SCRIPTS / "benchmark_depth_long.md"
        facts = describe_machine([contestant])
        facts["epochs"] = f"of {_LONG_EPOCH_STEPS} steps"
    else:
        contestants = [network(n, batch_size, arguments.images, None) for n in arguments.blocks]
        present = compete(contestants, arguments.rounds, arguments.steps)
        body = depth_tables(present, [depth_of(blocks) for blocks in arguments.blocks])
        title = f"Growth with depth, batch {batch_size}"
        output = SCRIPTS / "benchmark_depth.md"
        facts = describe_machine(present) | {"rounds": str(arguments.rounds)}
    write_report(arguments.output or output, title, _NOTES, facts, body)


if __name__ == "__main__":
    main()
