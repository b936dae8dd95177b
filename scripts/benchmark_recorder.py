"""Measure what recording costs: time of a step, memory, size of the log.

    python scripts/benchmark_recorder.py
    python scripts/benchmark_recorder.py --only "as shipped" --steps 10 --rounds 60
    python scripts/benchmark_recorder.py --network resnet56 --set runtime.precision=mixed_bfloat16

The same training four times, taking turns (see `benchmarking.py`): without the recorder;
as shipped; gradients in full, which is every statistic of them at every step and nothing
of activations; activations too, those at every step as well. A turn has whole windows, so
that the visits of the host count; where the machine is not alone, many short turns
(`--steps 10 --rounds 60`) tell more, and over all of them the visits count too.

How to read it: `time / off` is taken round by round, median (smallest-largest); 1.05
means that recording makes a step 5 % longer. `all time / off` and `all CPU / off` are the
sums over all rounds, with their 95 % interval. Log bytes are the files of the gradient log
over the recorded steps. The second table looks for a stall between epochs: the first step
of an epoch begins where the last one of the epoch before ended, so that the recorder's
own work at the end of an epoch is in it, beside the median of all other steps.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark_report import describe_machine, table, write_report
from benchmarking import (
    NETWORKS,
    SCRIPTS,
    Contestant,
    compete,
    keras_contestant,
    load_network,
    median_of,
    ratios,
    say,
    total_ratio,
)

from trainer.config import Config

_VARIANTS: dict[str, dict[str, Any] | None] = {
    "off": None,
    "as shipped": {},
    "gradients in full": {"moments_every_steps": 1, "activations_every_steps": 0},
    "activations too": {"moments_every_steps": 1, "activations_every_steps": 1},
}
_NOTES = """
Written by `scripts/benchmark_recorder.py`, whose docstring says how to read it. Random
pixels of 32x32, whole training steps; contestants take turns in rotated order.
"""


def cost_table(present: Sequence[Contestant]) -> str:
    """Return a row a variant, beside the first one, which records nothing."""
    off = present[0]
    rows = []
    for each in present:
        median, smallest, largest = ratios(each, off, lambda turn: turn.wall_seconds)
        total, low, high = total_ratio(each, off, lambda turn: turn.wall_seconds)
        cpu, cpu_low, cpu_high = total_ratio(each, off, lambda turn: turn.cpu_seconds)
        peak_mib = each.turns[-1].peak_mib
        size = each.results.get("log_bytes_per_step")
        rows.append(
            [
                each.name,
                f"{1000 * median_of(each, lambda turn: turn.step_seconds):.0f}",
                f"{median:.3f} ({smallest:.3f}-{largest:.3f})",
                f"{total:.3f} ({low:.3f}-{high:.3f})",
                f"{cpu:.3f} ({cpu_low:.3f}-{cpu_high:.3f})",
                f"{peak_mib:,.0f}",
                f"{peak_mib / off.turns[-1].peak_mib:.3f}",
                "-" if size is None else f"{size:,.0f}",
            ]
        )
    header = ["recorder", "step ms", "time / off", "all time / off", "all CPU / off"]
    header += ["peak MiB", "/ off", "log B/step"]
    return table(header, rows)


def split_epochs(seconds: Sequence[float], epoch_steps: int) -> tuple[list[float], list[float]]:
    """Return the first steps of epochs, and all other steps.

    Args:
        seconds: Of each step from the first on, which compiles and is left out.
        epoch_steps: Steps of an epoch.
    """
    first = list(seconds[epoch_steps::epoch_steps])
    others = [value for i, value in enumerate(seconds) if i % epoch_steps]
    return first, others


def epoch_table(config: Config, images: int, epoch_steps: int, epochs: int) -> str:
    """Train several epochs as shipped and compare the first step of each with the others."""
    contestant = keras_contestant(
        "as shipped", config, kind="ours", recorder={}, num_images=images, epoch_steps=epoch_steps
    )
    say(f"  {epochs} epochs of {epoch_steps} steps")
    try:
        contestant.start()
        contestant.take_turn(epoch_steps * epochs - 1)
        contestant.finish()
    finally:
        contestant.stop()
    first, others = split_epochs(contestant.results["step_seconds"], epoch_steps)
    rows = [
        [
            name,
            len(found),
            *(f"{1000 * value:.0f}" for value in (statistics.median(found), max(found))),
        ]
        for name, found in (("first of an epoch", first), ("all others", others))
    ]
    return table(["step", "steps", "median ms", "largest ms"], rows)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet20", choices=NETWORKS)
    parser.add_argument(
        "--only", nargs="+", default=list(_VARIANTS)[1:], choices=list(_VARIANTS)[1:]
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="of a turn; default: whole windows")
    parser.add_argument("--epochs", type=int, default=8, help="of the second table")
    parser.add_argument("--epoch-steps", type=int, default=60)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=SCRIPTS / "benchmark_recorder.md")
    arguments = parser.parse_args()
    if arguments.epochs < 2:
        parser.error(
            "--epochs must be at least 2: the first step of the first epoch does not count"
        )
    if arguments.epoch_steps < 2:
        parser.error("--epoch-steps must be at least 2: a first step is held against the others")

    config = load_network(arguments.network, arguments.set)
    say(arguments.network)
    common = {"kind": "ours", "num_images": arguments.images, "epoch_steps": None}
    contestants = [
        keras_contestant(name, config, recorder=recorder, **common)
        for name, recorder in _VARIANTS.items()
        if recorder is None or name in arguments.only
    ]
    window = config.gradients.window_steps * config.gradients.every_steps
    steps = arguments.steps or window
    present = compete(contestants, arguments.rounds, steps)
    body = [f"## {arguments.network}, batch {config.fit.batch_size}", cost_table(present)]
    body.append("## The first step of an epoch, as shipped")
    body.append(epoch_table(config, arguments.images, arguments.epoch_steps, arguments.epochs))
    facts = describe_machine(present) | {"rounds": f"{arguments.rounds} of {steps} steps"}
    write_report(arguments.output, "The cost of recording", _NOTES, facts, "\n\n".join(body))


if __name__ == "__main__":
    main()
