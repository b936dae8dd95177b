"""Break searches in every way that is known to happen, and see that nothing is lost.

    python scripts/search_faults.py
    python scripts/search_faults.py --only kill

Each fault runs real searches of tiny trials through the command line, in processes of
their own, and ends with checks: the exit code is the documented one, every trial has one
outcome, no epoch that has a checkpoint is trained again, and what goes on afterwards tries
the points that an undisturbed search tries. The table goes to `scripts/search_faults.md`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmark_report import table
from search_fault_lab import PATIENCE, Broken, Lab
from search_fault_parts import disk_of, raising_everywhere

from trainer.run_dir import is_alive, write_text
from trainer.search.trials import read_trials

ROOT = Path(__file__).resolve().parents[1]


FAULTS: dict[str, Callable[[Lab], None]] = {}


def fault(name: str) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
    """Register a fault under what the table calls it."""

    def register(run: Callable[[Lab], None]) -> Callable[[Lab], None]:
        FAULTS[name] = run
        return run

    return register


def killed_in(number: int) -> Callable[[Lab], None]:
    """Kill a search in one of its trials, and resume it."""

    def run(lab: Lab) -> None:
        lab.config()
        lab.kill_in(number)
        lab.finish("--resume")
        lab.check_whole(resumed=number)

    return run


for _number, _name in enumerate(("first", "middle", "last")):
    FAULTS[f"kill -9 in the {_name} trial, then --resume"] = killed_in(_number)


@fault("Ctrl-C, then --resume")
def _interrupted(lab: Lab) -> None:
    lab.config()
    process = lab.start()
    found = "trials/0001-*/checkpoints/step-*.npz"
    lab.wait_for("trial 1 has a checkpoint", lambda: list(lab.search.glob(found)))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    lab.expect_code(process.returncode, 130)
    lab.check("--resume" in lab.log, "it says how to go on")
    lab.finish("--resume")
    lab.check_whole(resumed=1)


@fault("NaN in every trial")
def _all_nan(lab: Lab) -> None:
    lab.config(("[3.0e-3, 1.0e-2, 3.0e-2]", "[1.0e+30, 2.0e+30, 3.0e+30]"))
    value = lab.finish(code=1)
    lab.check("every trial failed" in value["error"], "it says that every trial failed")
    causes = [t.outcome.cause for t in read_trials(lab.search) if t.outcome]
    lab.check(causes == ["nonfinite"] * 3, f"all three are not finite: {causes}")


@fault("an exception in every trial")
def _all_raise(lab: Lab) -> None:
    lab.config()
    lab.environment |= raising_everywhere(lab.folder, lab.environment)
    value = lab.finish(code=1)
    lab.check("RuntimeError: broken on purpose" in value["error"], "it says which exception")
    lab.check(len(list(lab.search.glob("trials/*/traceback.txt"))) == 3, "three tracebacks")


@fault("an exception in one trial")
def _one_raises(lab: Lab) -> None:
    lab.config()
    lab.environment |= raising_everywhere(lab.folder, lab.environment, only_rate=1e-2)
    value = lab.finish()
    causes = [each["outcome"]["cause"] for each in value["trials"]]
    lab.check(causes == ["done", "crash", "done"], f"the others are done: {causes}")


def torn(name: str) -> Callable[[Lab], None]:
    """Tear a state file, and resume."""

    def run(lab: Lab) -> None:
        lab.config()
        lab.kill_in(1)
        before = lab.values()
        file = sorted((lab.search / "oracle").glob(name))[0]
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        lab.finish("--resume")
        lab.check(f"oracle/{file.relative_to(lab.search / 'oracle')}" in lab.log, "it is named")
        lab.check_whole()
        lab.check(lab.values()[: len(before)] == before, "the same points")

    return run


FAULTS["a truncated oracle.json, then --resume"] = torn("oracle.json")
FAULTS["a truncated trial.json of the oracle, then --resume"] = torn("trial_*/trial.json")


@fault("a truncated outcome.json and no oracle state, then --resume")
def _torn_outcome(lab: Lab) -> None:
    lab.config()
    lab.kill_in(1)
    [outcome] = lab.search.glob("trials/0000-*/outcome.json")
    outcome.write_bytes(outcome.read_bytes()[:30])
    shutil.rmtree(lab.search / "oracle")
    lab.finish("--resume")
    lab.check_whole()


@fault("a full disk, then --resume with room")
def _full_disk(lab: Lab) -> None:
    with disk_of(lab.folder / "searches", kib=350):
        lab.config()
        process = lab.start()
        process.communicate(timeout=PATIENCE)
        lab.expect_code(process.returncode, 2)
        lab.check("No space left" in lab.log, "it says that the disk is full")
        kept = lab.folder / "kept"
        shutil.copytree(lab.folder / "searches", kept)
    shutil.rmtree(lab.folder / "searches", ignore_errors=True)
    shutil.move(kept, lab.folder / "searches")
    lab.finish("--resume")
    lab.check_whole()


@fault("the same search started twice at once")
def _twice(lab: Lab) -> None:
    lab.config()
    first = lab.start()
    lab.wait_for("a trial has begun", lambda: read_trials(lab.search))
    lab.finish("--resume", code=2)
    lab.check(f"pid {first.pid}" in lab.log, "it names the other process")
    first.communicate(timeout=PATIENCE)
    lab.expect_code(first.returncode, 0)
    lab.check_whole()


@fault("kill -9 of one worker of two, which is started again")
def _worker_killed(lab: Lab) -> None:
    lab.config()
    process = lab.start("--workers", "2")
    lab.wait_for_checkpoint()
    os.kill(max(lab.workers_of(process.pid)), signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    lab.expect_code(process.returncode, 0)
    lab.check("It is started again" in lab.log, "it says that the worker is started again")
    lab.check_whole()


@fault("kill -9 of one worker of two that joined: the other one takes over its trial")
def _joined_worker_killed(lab: Lab) -> None:
    lab.config()
    chief, first, second = lab.start_chief_and_two()
    lab.wait_for_checkpoint()
    first.kill()
    for each in (second, chief):
        each.communicate(timeout=PATIENCE)
        lab.expect_code(each.returncode, 0)
    first.communicate(timeout=PATIENCE)
    lab.check_whole()


@fault("kill -9 of the chief, which is started again with --resume")
def _chief_killed(lab: Lab) -> None:
    lab.config()
    chief, first, second = lab.start_chief_and_two()
    lab.wait_for_checkpoint()
    chief.kill()
    chief.communicate(timeout=PATIENCE)
    again = lab.start("--workers", "0", "--listen", lab.address, "--resume")
    for each in (first, second, again):
        each.communicate(timeout=PATIENCE)
        lab.expect_code(each.returncode, 0)
    lab.check_whole()


@fault("kill -9 of the launcher of two workers, then --resume")
def _launcher_killed(lab: Lab) -> None:
    lab.config()
    process = lab.start("--workers", "2")
    lab.wait_for_checkpoint()
    workers = lab.workers_of(process.pid)
    process.kill()
    process.communicate(timeout=PATIENCE)
    lab.wait_for("its workers end", lambda: not any(map(is_alive, workers)))
    lab.finish("--resume", "--workers", "2")
    lab.check_whole()


def main() -> None:
    """Run the faults and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--output", type=Path, default=ROOT / "scripts" / "search_faults.md")
    arguments = parser.parse_args()
    rows, is_sound = [], True
    for name, run in FAULTS.items():
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="search-fault-") as folder:
            lab = Lab(Path(folder), {**os.environ, "PYTHONPATH": str(ROOT)})
            started = time.monotonic()
            try:
                run(lab)
                verdict = "nothing lost"
            except (Broken, subprocess.TimeoutExpired) as error:
                verdict, is_sound = f"BROKEN: {error}", False
            except PermissionError as error:
                verdict = f"not tried: {error}"
            seconds = f"{time.monotonic() - started:.0f}"
            rows.append([name, ", ".join(lab.notes), verdict.splitlines()[0], seconds])
            print(f"{rows[-1]}\n{verdict}" if "BROKEN" in verdict else rows[-1], flush=True)
    body = table(["fault", "what came of it", "verdict", "seconds"], rows)
    if not arguments.only:
        text = "# Searches that are broken on purpose\n\nWritten by `scripts/search_faults.py`.\n\n"
        write_text(arguments.output, f"{text}{body}\n")
    sys.exit(0 if is_sound else 1)


if __name__ == "__main__":
    main()
