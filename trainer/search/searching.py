"""The story of one search, from a config to the best one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.config import Config
from trainer.errors import FruitlessSearchError, SearchError
from trainer.quiet import import_tensorflow
from trainer.search.crew import ALONE, Staff, started
from trainer.search.directory import SearchDir, begin, locked
from trainer.search.display import say_causes
from trainer.search.results import Results, write_results


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
        with started(directory, config, staff) as hands:
            # Takes seconds, in which the workers do the same.
            import_tensorflow()
            from trainer.search.conducting import conduct

            conduct(config, directory, staff, hands, command)
        return conclude(directory, config)


def conclude(directory: SearchDir, config: Config) -> Results:
    """Write what all trials came to.

    Raises:
        FruitlessSearchError: If no trial has a score of its own.
    """
    results = write_results(directory, config)
    say_causes(results.causes)
    if results.best is None and results.causes:
        outcomes = [t.outcome for t in results.trials if t.outcome]
        reasons = dict.fromkeys(each.reason for each in outcomes)
        has_failed = all(each.state == "failed" for each in outcomes)
        what = "every trial failed" if has_failed else "no trial has a score of its own"
        raise FruitlessSearchError(
            f"{directory.path}: {what}: {'; '.join(list(reasons)[:3])}. What each one "
            f"said is in {directory.path}/trials/*/trial.log"
        )
    return results
