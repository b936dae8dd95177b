"""Train every network of the failure zoo and hold each diagnosis against what is expected.

    python scripts/run_zoo.py
    python scripts/run_zoo.py --seeds 0 --only sick_dead healthy_muon

The files of `configs/zoo/` say in a line `# expect: RULE` which rule must be the first one
that a diagnosis lists; `healthy` stands for no finding of severity error. Two trainings run
at a time, one thread each. The table goes to `configs/zoo/results.md`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.judge import diagnose
from trainer.run_dir import RunDir, read_history

ZOO = Path(__file__).resolve().parents[1] / "configs" / "zoo"
_HEALTHY = "healthy"
_TRAIN = (sys.executable, "-m", "trainer", "train")


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


def run(path: Path, seed: int, folder: Path) -> Outcome:
    """Train one config with one seed, if it is not there from before, and diagnose it."""
    started = time.perf_counter()
    if not any(_has_ended(RunDir(each)) for each in folder.glob("*")):
        shutil.rmtree(folder, ignore_errors=True)
        # A run that stops on what it is sick of has its log all the same.
        subprocess.run(
            [*_TRAIN, path, f"--set=seed={seed}", f"--runs-dir={folder}"],
            env={**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"},
            capture_output=True,
            check=False,
        )
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


def _has_ended(run: RunDir) -> bool:
    return run.status.exists() and run.read_status()["state"] in ("done", "failed")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
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
    tasks = [(path, seed) for path in paths for seed in arguments.seeds]
    outcomes = []
    with ExitStack() as stack:
        keep = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pool = stack.enter_context(ThreadPoolExecutor(arguments.processes))
        for outcome in pool.map(lambda task: run(*task, keep / f"{task[0].stem}-{task[1]}"), tasks):
            outcomes.append(outcome)
            mark = "ok   " if outcome.is_right else "WRONG"
            print(
                f"{mark} {outcome.name} seed {outcome.seed}: {' '.join(outcome.findings) or '-'} "
                f"(accuracy {outcome.accuracy:.2f}, {outcome.seconds:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    arguments.output.write_text(table(outcomes, arguments.seeds), encoding="utf-8")


def table(outcomes: list[Outcome], seeds: list[int]) -> str:
    """Return the table, a line a config."""
    sick = [each for each in outcomes if each.expected != _HEALTHY]
    healthy = [each for each in outcomes if each.expected == _HEALTHY]
    lines = [
        "# The failure zoo",
        "",
        f"Written by `scripts/run_zoo.py --seeds {' '.join(map(str, seeds))}`. Sick runs whose "
        "expected finding is the "
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
