"""Say what the operators of the fast recipe's step take, beside those of airbench94.

    python scripts/profile_fast.py --torch-python /path/to/python/with/torch

The contestants are ours and airbench94 of `benchmark_fast.py`, in one precision. Each takes
the same number of images, profiled, one operator at a time; see `operator_profile.py`.
Profiling costs a little by itself, so that times are those of `benchmark_fast.py` and shares
are those of this.
The table goes to `scripts/profile_fast.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmark_fast import build_contestants
from benchmark_report import describe_machine, table, write_report
from benchmarking import SCRIPTS, Contestant, LeftOutError, say
from operator_profile import GROUPS

_CONTESTANTS = {
    "mixed_bfloat16": ("ours", "airbench94-bfloat16"),
    "float32": ("ours-float32", "airbench94"),
}
_WARM_UP_IMAGES = 4_000
_PROFILED_IMAGES = 10_000

_NOTES = """
Written by `scripts/profile_fast.py`: wall time of the operators, one at a time, each with all
cores inside, in milliseconds for 1,000 images, and the share of all operators. One contestant
came after the other, and the machine drifts by a tenth or two meanwhile: compare the shares.
airbench94's batches lie ready in memory, and it records nothing.
"""


def profile(name: str, contestant: Contestant, batch_size: int) -> bool:
    """Let a contestant take its profiled steps; False if it is not there."""
    say(f"  {name}")
    warm_up = _WARM_UP_IMAGES // batch_size
    # The first step was taken by the start.
    contestant.spec["profiled_steps"] = [1 + warm_up, 1 + warm_up + _PROFILED_IMAGES // batch_size]
    try:
        contestant.start()
        contestant.take_turn(warm_up)
        contestant.take_turn(_PROFILED_IMAGES // batch_size)
        contestant.finish()
    except LeftOutError as error:
        say(f"  {name} is left out: {error}")
        return False
    finally:
        contestant.stop()
    return True


def main() -> None:
    """Profile both and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", metavar="PATH", default=sys.executable)
    parser.add_argument("--precision", choices=_CONTESTANTS, default="mixed_bfloat16")
    parser.add_argument("--output", type=Path, default=SCRIPTS / "profile_fast.md")
    arguments = parser.parse_args()
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    contestants = build_contestants(arguments.torch_python)
    present = [
        contestant
        for name, (contestant, batch_size) in contestants.items()
        if name in _CONTESTANTS[arguments.precision] and profile(name, contestant, batch_size)
    ]
    columns = []
    for contestant in present:
        seconds = contestant.results["operator_seconds"]
        total = sum(seconds.values())
        values = [seconds.get(group, 0.0) for group in GROUPS] + [total]
        columns.append([f"{value / _PROFILED_IMAGES * 1e6:,.0f}" for value in values])
        columns.append([f"{value / total:.1%}" for value in values])
    rows = [[name, *cells] for name, *cells in zip((*GROUPS, "all"), *columns, strict=True)]
    header = ["operators"]
    for contestant in present:
        header += [f"{contestant.name}, ms", "share"]
    body = table(header, rows)
    facts = describe_machine(present) | {"precision": arguments.precision}
    write_report(arguments.output, "Where the time of the fast recipe goes", _NOTES, facts, body)


if __name__ == "__main__":
    main()
