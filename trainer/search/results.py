"""What a search came to: read from its trials alone, so that a killed one can be read too."""

from __future__ import annotations

import csv
import math
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.config import Config, dump_config
from trainer.config.search_space import at_point
from trainer.errors import TrainerError
from trainer.run_dir import write_atomically, write_text
from trainer.search.directory import SearchDir
from trainer.search.page import search_page
from trainer.search.pruning import is_scored
from trainer.search.trials import TrialRecord, read_trials
from trainer.terminal import say

_PAGE_SECONDS = 60.0
"""Between two pages of a search that runs, at least."""


@dataclass(frozen=True)
class Results:
    """All trials of a search.

    Attributes:
        path: The folder of the search.
        config: Of the search.
        trials: In the order of their beginnings.
    """

    path: Path
    config: Config
    trials: Sequence[TrialRecord]

    @classmethod
    def of(cls, path: Path, config: Config) -> Results:
        """Read them."""
        return cls(path, config, read_trials(path))

    @property
    def scored(self) -> list[TrialRecord]:
        """Trials with a score of their own, the best first; of equal ones the earliest.

        Under hyperband those that were to train longest come first: a trial of few epochs
        can be ahead of what the same point will have come to at the end of its schedule.
        Elsewhere each trial has its whole schedule, however long that is.
        """
        search = self.config.search
        assert search is not None
        sign = -1 if search.is_maximized else 1
        has_rungs = search.algorithm == "hyperband"

        def rank(trial: TrialRecord) -> tuple[bool, int, float]:
            assert trial.outcome is not None
            epochs = trial.point.epochs if has_rungs else 0
            return trial.outcome.state != "done", -epochs, sign * trial.outcome.score

        return sorted((t for t in self.trials if is_scored(search, t)), key=rank)

    @property
    def best(self) -> TrialRecord | None:
        """The best of the trials that have trained longest, else the best that was pruned."""
        return next(iter(self.scored), None)

    @property
    def causes(self) -> dict[str, int]:
        """How many trials ended of what, the most frequent first."""
        return dict(Counter(t.outcome.cause for t in self.trials if t.outcome).most_common())

    def as_json(self) -> dict[str, Any]:
        """Return them for programs."""
        best = self.best
        return {
            "search": str(self.path),
            "best": None if best is None else best.path.name,
            "causes": self.causes,
            "trials": [
                {
                    "number": t.number,
                    "run": str(t.path),
                    "values": dict(t.point.values),
                    "epochs": t.point.epochs,
                    "outcome": None if t.outcome is None else asdict(t.outcome),
                }
                for t in self.trials
            ],
        }


def best_config(results: Results) -> Config | None:
    """Return the config of the best trial, None if no trial has a score of its own."""
    best = results.best
    return None if best is None else at_point(results.config, best.point.values)


def write_results(directory: SearchDir, config: Config) -> Results:
    """Write `trials.csv`, `best.yaml` and `search.html` from the folders of the trials."""
    results = Results.of(directory.path, config)
    _write_csv(directory.results, results)
    write_best(directory, results)
    _try_page(directory, results, is_over=True)
    return results


def write_best(directory: SearchDir, results: Results) -> bool:
    """Write `best.yaml`, and return whether any trial has a score of its own."""
    best_yaml = _best_yaml(directory, results)
    if best_yaml is None:
        return False
    write_text(directory.best, best_yaml)
    return True


def write_page(directory: SearchDir, results: Results, *, is_over: bool) -> None:
    """Write `search.html`: of a finished search, a killed one, or one that another process runs.

    Args:
        directory: Of the search.
        results: Of it.
        is_over: See `search_page`.

    Raises:
        MissingDependencyError: If plotly is not there.
        RunDirectoryError: If it cannot be written.
    """
    page = search_page(results, _best_yaml(directory, results), is_over=is_over)
    write_text(directory.page, page)


def keep_page(directory: SearchDir, config: Config) -> Callable[[], None]:
    """Return what is called after each trial: it writes the page once a minute."""
    due = time.monotonic() + _PAGE_SECONDS

    def after_trial() -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        is_written = _try_page(directory, Results.of(directory.path, config), is_over=False)
        # What is wrong is said once, and at the end.
        due = time.monotonic() + _PAGE_SECONDS if is_written else math.inf

    return after_trial


def _try_page(directory: SearchDir, results: Results, *, is_over: bool) -> bool:
    """Write the page, or say why it is not there: no search ends because of it."""
    try:
        write_page(directory, results, is_over=is_over)
    except TrainerError as error:
        say(f"warning: {directory.page} was left out: {error}")
        return False
    except Exception as error:
        text = f"{type(error).__name__}: {error}; this is a bug"
        say(f"warning: {directory.page} was left out: {text}")
        return False
    return True


def _best_yaml(directory: SearchDir, results: Results) -> str | None:
    """Return the text of `best.yaml`, None if no trial has a score of its own."""
    best, found = results.best, best_config(results)
    if best is None or found is None or best.outcome is None:
        return None
    assert results.config.search is not None
    return (
        f"# The best of {len(results.trials)} trials of {shlex.quote(str(directory.path))}: "
        f"trial {best.number},\n"
        f"# {results.config.search.objective} {best.outcome.score:.6g} after epoch "
        f"{best.outcome.epochs} of {found.fit.epochs} (seed {found.seed}).\n"
        f"# trainer train {shlex.quote(str(directory.best))}\n"
        f"{dump_config(found)}"
    )


def _write_csv(path: Path, results: Results) -> None:
    search = results.config.search
    assert search is not None
    columns = ["number", "run", "state", "score", "cause", "health", "epochs", "seconds", "reason"]

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, *search.space])
            for t in results.trials:
                told = {} if t.outcome is None else asdict(t.outcome)
                told |= {"number": t.number, "run": t.path.name}
                if not is_scored(search, t):
                    told["score"] = ""
                values = [t.point.values.get(key, "") for key in search.space]
                writer.writerow([*(told.get(column, "") for column in columns), *values])

    write_atomically(path, write)
