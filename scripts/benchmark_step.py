"""Measure the training step against stock Keras and PyTorch.

    python scripts/benchmark_step.py --torch-python /path/to/python/with/torch
    python scripts/benchmark_step.py --networks resnet20 --precisions float32 --rounds 9

Contestants, each in a process of its own, taking turns (see `benchmarking.py`):

    ours     what `trainer train` runs: fused normalization, the seeded pipeline with its
             augmentation, the config's optimizer and clipping, gradients recorded
    keras    the same network with Keras' own BatchNormalization, a tf.data pipeline with
             the same augmentation, stock `compile` and `fit`, nothing recorded
    torch    the same network in eager PyTorch, channels-last, see `torch_peer.py`

How to read it: images/s, CPU ms and MiB are medians over turns and drift with the machine;
the ratios are taken within a round and do not. A time ratio ours/keras of 0.80 means that
ours needs 0.80 of the wall time. Everything happens within one long epoch, so that nobody
pays for what Keras does between epochs. The first step (tracing, compiling) is apart.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

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
)

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
CONTESTANTS = ("ours", "keras", "torch")

_NOTES = """
Written by `scripts/benchmark_step.py`, whose docstring says what the contestants are.
Random pixels of 32x32, whole training steps, one long epoch. Contestants take turns in
rotated order; `images/s`, `CPU ms/step` (user and system, all threads) and `peak MiB`
(resident set of the process, data set included) are medians over turns. Ratios are first
over second within a round: median (smallest - largest); below 1 the first one is faster.
`start s` is from the start of the process to the end of the first step, imports included;
`fit s` the part of it from the call of `fit`. PyTorch's batches are prepared ahead.
resnet20-wide has 64, 128 and 256 filters in place of 16, 32 and 64.
"""


def build_contestants(
    arguments: argparse.Namespace, network: str, precision: str
) -> list[Contestant]:
    """Return the asked-for contestants on one network in one precision."""
    chosen = f"runtime.precision={PRECISIONS[precision]}"
    config = load_network(network, [*arguments.set, chosen])
    common = {"num_images": arguments.images, "epoch_steps": None}
    contestants = []
    for name in arguments.contestants:
        recorder = {} if name == "ours" and config.gradients.record else None
        contestant = keras_contestant(name, config, kind=name, recorder=recorder, **common)
        if name == "torch":
            contestant.command = [arguments.torch_python, str(SCRIPTS / "torch_peer.py")]
        contestants.append(contestant)
    return contestants


def absolute_rows(network: str, present: Sequence[Contestant]) -> list[list[str]]:
    """Return a row a contestant: what it reached by itself."""
    rows = []
    for each in present:
        batch_size = each.spec["config"]["fit"]["batch_size"]
        rows.append(
            [
                network,
                each.name,
                f"{batch_size / median_of(each, lambda turn: turn.step_seconds):,.0f}",
                f"{median_of(each, lambda turn: 1000 * turn.cpu_seconds / turn.steps):,.0f}",
                f"{each.turns[-1].peak_mib:,.0f}",
                f"{each.startup_seconds:.1f}",
                f"{each.fit_seconds:.1f}",
            ]
        )
    return rows


def ratio_rows(network: str, present: Sequence[Contestant]) -> list[list[str]]:
    """Return a row a pair: the first over the second, round by round."""
    rows = []
    for first, second in itertools.combinations(present, 2):
        cells = [network, f"{first.name}/{second.name}"]
        for value in (lambda turn: turn.wall_seconds, lambda turn: turn.cpu_seconds):
            median, smallest, largest = ratios(first, second, value)
            cells.append(f"{median:.2f} ({smallest:.2f} - {largest:.2f})")
        cells.append(f"{first.turns[-1].peak_mib / second.turns[-1].peak_mib:.2f}")
        rows.append(cells)
    return rows


def section(precision: str, results: dict[str, list[Contestant]]) -> str:
    """Return the tables of one precision over all networks."""
    absolute = [row for item in results.items() for row in absolute_rows(*item)]
    relative = [row for item in results.items() for row in ratio_rows(*item)]
    header = ["network", "contestant", "images/s", "CPU ms/step", "peak MiB", "start s", "fit s"]
    parts = [f"## {precision}", table(header, absolute, text_columns=2)]
    if relative:
        header = ["network", "pair", "wall time", "CPU time", "memory"]
        parts.append(table(header, relative, text_columns=2))
    return "\n\n".join(parts)


def main() -> None:
    """Run what the command line asks for; the file is written anew after each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="of a turn; default: about 2.5 seconds' worth")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--torch-python", metavar="PATH", default=sys.executable)
    parser.add_argument("--output", type=Path, default=SCRIPTS / "benchmark_step.md")
    arguments = parser.parse_args()

    tables: dict[str, dict[str, list[Contestant]]] = {}
    for precision, network in itertools.product(arguments.precisions, arguments.networks):
        say(f"{network}, {precision}")
        contestants = build_contestants(arguments, network, precision)
        present = compete(contestants, arguments.rounds, arguments.steps)
        tables.setdefault(precision, {})[network] = present
        everyone = [
            each for results in tables.values() for each in itertools.chain(*results.values())
        ]
        facts = describe_machine(everyone) | {"rounds": str(arguments.rounds)}
        body = "\n\n".join(section(*item) for item in tables.items())
        write_report(arguments.output, "The training step", _NOTES, facts, body)


if __name__ == "__main__":
    main()
