"""The story of one search, from a config to the best one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trainer.config import Config
from trainer.errors import FruitlessSearchError, InterruptedRun, SearchError
from trainer.search.directory import SearchDir, begin, locked
from trainer.search.display import say_causes, shown
from trainer.search.interruption import interruptible
from trainer.search.isolation import run_isolated
from trainer.search.launcher import ALONE, Staff, lead
from trainer.search.oracles import DamagedState, LastingOracle, make_oracle
from trainer.search.results import Results, keep_page, write_results
from trainer.search.trial import OutOfTime, run_trial
from trainer.search.trials import TrialRecord, read_trials
from trainer.search.worker import work
from trainer.terminal import say


def search(
    config: Config,
    path: Path,
    *,
    resume: bool,
    restart: bool,
    command: Sequence[str],
    staff: Staff = ALONE,
) -> Results:
    """Run a search to its end, or to its limits.

    Args:
        config: With a `search` section.
        path: The folder of the search.
        resume: Go on with the search that is there.
        restart: Put the search that is there aside.
        command: The command line, for the trials' `environment.json`.
        staff: Who trains the trials.

    Returns:
        What all trials came to, which is in the folder as well.

    Raises:
        SearchError: If the search cannot begin.
        FruitlessSearchError: If no trial has a score of its own.
        InterruptedRun: After a signal; `resume` goes on.
        TrainerError: What every trial would fail of.
    """
    if config.search is None:
        raise SearchError("the config has no search section, which says what to vary")
    with locked(path):
        directory = begin(path, config, resume=resume, restart=restart)
        oracle = open_oracle(config, directory)
        hours = config.search.max_hours
        deadline = None if hours is None else time.time() + 3600 * hours
        oracle.is_over = limit(config, path, deadline)
        try:
            with interruptible(), shown(path, config) as tell:
                page = keep_page(directory, config)
                if staff.is_alone:
                    run = partial(run_isolated if staff.isolate else run_trial, command=command)
                    work(oracle, config, path, "0", run, deadline=deadline, after_trial=page)
                else:
                    lead(
                        oracle,
                        directory,
                        config,
                        staff,
                        command=command,
                        deadline=deadline,
                        tell=tell,
                        after_trial=page,
                    )
        except OutOfTime as stop:
            say(f"{stop}; go on with --resume")
        except InterruptedRun as error:
            write_results(directory, config)
            text = f"interrupted; its trials are in {path}. Go on with --resume"
            raise InterruptedRun(error.signal_number, text) from None
        return conclude(directory, config)


def conclude(directory: SearchDir, config: Config) -> Results:
    """Write what all trials came to.

    Raises:
        FruitlessSearchError: If no trial has a score of its own.
    """
    results = write_results(directory, config)
    say_causes(results.causes)
    if results.best is None and results.causes:
        reasons = dict.fromkeys(t.outcome.reason for t in results.trials if t.outcome)
        raise FruitlessSearchError(
            f"{directory.path}: every trial failed: {'; '.join(list(reasons)[:3])}. What each one "
            f"said is in {directory.path}/trials/*/trial.log"
        )
    return results


def limit(config: Config, path: Path, deadline: float | None) -> Callable[[], bool]:
    """Return what says whether a limit of the search is reached.

    Args:
        config: Of the search.
        path: Its folder.
        deadline: As `time.time()`, or None.
    """
    search = config.search
    assert search is not None

    def is_over() -> bool:
        if deadline is not None and time.time() > deadline:
            return True
        if search.max_epochs is None:
            return False
        return sum(map(_own_epochs, read_trials(path))) >= search.max_epochs

    return is_over


def _own_epochs(trial: TrialRecord) -> int:
    """Epochs that the trial has trained itself, without those that it has taken over."""
    return max(0, len(trial.history) - trial.point.parent_epochs)


def open_oracle(config: Config, directory: SearchDir) -> LastingOracle:
    """Return the oracle as it was when the search stopped, or a new one.

    A state that cannot be read is put aside. The oracle then begins anew, and whatever it
    proposes that has an outcome is answered from the trial's folder.
    """
    oracle = make_oracle(config, directory.oracle)
    if not (directory.oracle / "oracle.json").exists():
        oracle.save()
        return oracle
    try:
        oracle.reload()
        return oracle
    except DamagedState as error:
        aside = directory.path / f"oracle.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        shutil.move(directory.oracle, aside)
        say(
            f"warning: {error}: this state of the search is damaged and was put aside as {aside}. "
            "The trials that have ended are taken from their own folders"
        )
        oracle = make_oracle(config, directory.oracle)
        oracle.save()
        return oracle
