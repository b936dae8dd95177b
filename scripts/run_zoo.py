"""Train every network of the failure zoo and hold each diagnosis against what is expected.

    python scripts/run_zoo.py
    python scripts/run_zoo.py --seeds 1 --only sick_dead healthy_muon

The files of `configs/zoo/` say in a line `# expect: RULE` which rule must be the first one
that a diagnosis lists; `healthy` stands for no finding of severity error. Two trainings run
at a time, one thread each. The table goes to `configs/zoo/results.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

ZOO = Path(__file__).resolve().parents[1] / "configs" / "zoo"
_HEALTHY = "healthy"


@dataclass(frozen=True)
class Outcome:
    """What the diagnosis of one run said.

    Attributes:
        name: Of the config.
        seed: Of the run.
        expected: The rule, or `healthy`.
        findings: `severity:rule` of each, in the order of the diagnosis.
        accuracy: Training accuracy of the last epoch.
        seconds: That the run took.
    """

    name: str
    seed: int
    expected: str
    findings: tuple[str, ...]
    accuracy: float
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether the diagnosis is the expected one."""
        if self.expected == _HEALTHY:
            return not any(finding.startswith("error:") for finding in self.findings)
        return bool(self.findings) and self.findings[0].partition(":")[2] == self.expected


def expected_of(path: Path) -> str:
    """Return what a config's comment expects."""
    found = re.search(r"^# expect: (\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path}: a config of the zoo needs a line `# expect: RULE`")
    return found[1]


def run(task: tuple[Path, int, Path | None]) -> Outcome:
    """Train one config with one seed, if it is not kept from before, and diagnose it."""
    path, seed, keep = task
    from trainer.config import load_config
    from trainer.diagnosis.evidence import Evidence
    from trainer.diagnosis.judge import diagnose
    from trainer.errors import TrainerError
    from trainer.quiet import import_tensorflow
    from trainer.run_dir import RunDir, read_history

    import_tensorflow()
    import keras

    from trainer.train import train

    started = time.perf_counter()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = keep / f"{path.stem}-{seed}"
        ends = ("done", "failed")
        if not any(
            json.loads(each.read_text())["state"] in ends for each in folder.glob("*/status.json")
        ):
            shutil.rmtree(folder, ignore_errors=True)
            # A run that stops on what it is sick of has its log all the same.
            with suppress(TrainerError):
                train(load_config(path, [f"seed={seed}"]), runs_dir=folder, command=["run_zoo"])
            keras.backend.clear_session()
        [directory] = folder.iterdir()
        found = RunDir.open(directory)
        diagnosis = diagnose(Evidence.of_run(found))
        last = (read_history(found.history) or [{}])[-1]
    return Outcome(
        path.stem,
        seed,
        expected_of(path),
        tuple(f"{finding.severity}:{finding.rule}" for finding in diagnosis.findings),
        last.get("accuracy", float("nan")),
        time.perf_counter() - started,
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of names")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="keep runs here, and train none that is there")
    parser.add_argument("--output", type=Path, default=ZOO / "results.md")
    arguments = parser.parse_args()

    paths = [
        path
        for path in sorted(ZOO.glob("*.yaml"))
        if path.stem != "base_zoo" and path.stem.startswith(tuple(arguments.only))
    ]
    tasks = [(path, seed, arguments.keep) for path in paths for seed in range(arguments.seeds)]
    os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")
    outcomes = []
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for outcome in pool.imap(run, tasks):
            outcomes.append(outcome)
            mark = "ok   " if outcome.is_right else "WRONG"
            print(
                f"{mark} {outcome.name} seed {outcome.seed}: {' '.join(outcome.findings) or '-'} "
                f"(accuracy {outcome.accuracy:.2f}, {outcome.seconds:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    arguments.output.write_text(table(outcomes, arguments.seeds), encoding="utf-8")


def table(outcomes: list[Outcome], seeds: int) -> str:
    """Return the table, a line a config."""
    sick = [each for each in outcomes if each.expected != _HEALTHY]
    healthy = [each for each in outcomes if each.expected == _HEALTHY]
    lines = [
        "# The failure zoo",
        "",
        f"Written by `scripts/run_zoo.py --seeds {seeds}`. Sick runs whose expected finding is the "
        f"first one listed: {sum(each.is_right for each in sick)} of {len(sick)}. Healthy runs "
        f"with a finding of severity error: {sum(not each.is_right for each in healthy)} of "
        f"{len(healthy)}.",
        "",
        "| config | expected | right | first finding, by seed | accuracy, by seed |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(each.name for each in outcomes):
        rows = [each for each in outcomes if each.name == name]
        first = ", ".join(each.findings[0] if each.findings else "-" for each in rows)
        accuracy = ", ".join(f"{each.accuracy:.2f}" for each in rows)
        right = sum(each.is_right for each in rows)
        lines.append(
            f"| {name} | {rows[0].expected} | {right}/{len(rows)} | {first} | {accuracy} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
