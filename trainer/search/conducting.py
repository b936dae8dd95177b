"""Have the trials of a search run, in this process or in workers, until there are no more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from trainer.config import Config
from trainer.errors import InterruptedRun, TrainerError
from trainer.search.crew import Hand, Staff
from trainer.search.directory import SearchDir
from trainer.search.display import shown
from trainer.search.interruption import interruptible
from trainer.search.isolation import run_isolated
from trainer.search.launcher import lead
from trainer.search.oracles import open_oracle
from trainer.search.results import keep_page, write_results
from trainer.search.trial import OutOfTime, run_trial
from trainer.search.trials import TrialRecord, read_trials
from trainer.search.worker import work
from trainer.terminal import say


def conduct(
    config: Config,
    directory: SearchDir,
    staff: Staff,
    hands: list[Hand],
    command: Sequence[str],
) -> None:
    """Run trials until the oracle has no more, or a limit is reached.

    Args:
        config: With a `search` section.
        directory: Of the search, which this process holds.
        staff: Who trains the trials.
        hands: The workers of this machine, started.
        command: The command line, for the trials' `environment.json`.

    Raises:
        InterruptedRun: After a signal; `resume` goes on.
        TrainerError: What every trial would fail of.
    """
    assert config.search is not None
    path = directory.path
    oracle = open_oracle(config, directory)
    hours = config.search.max_hours
    deadline = None if hours is None else time.time() + 3600 * hours
    oracle.is_over = limit(config, path, deadline)
    try:
        with interruptible(), shown(path, config) as tell:
            page = keep_page(directory, config)
            if staff.is_alone:
                run = partial(run_isolated if staff.isolate else run_trial, command=command)
                work(
                    oracle,
                    config,
                    path,
                    "0",
                    run,
                    deadline=deadline,
                    after_trial=lambda point, outcome: page(),
                )
            else:
                lead(
                    oracle,
                    directory,
                    hands,
                    staff.listen,
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
    except TrainerError:
        # What has ended counts all the same. On a full disk it cannot be written either, and
        # then the first error is the one to tell.
        with suppress(TrainerError):
            write_results(directory, config)
        raise


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
