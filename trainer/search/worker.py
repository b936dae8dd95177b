"""Whoever trains the trials of a search: ask for one, run it, report, until none is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from keras_tuner.engine.trial import Trial, TrialStatus

from trainer.config import Config
from trainer.config.search_space import at_point
from trainer.errors import ConfigError
from trainer.search.space import epochs_of, values_of
from trainer.search.trial import TrialRequest
from trainer.search.trials import Outcome, Point

_IDLE_SECONDS = 0.3


class Oracle(Protocol):
    """What keras-tuner's oracles and its client of a distant one have in common."""

    def create_trial(self, tuner_id: str) -> Trial: ...
    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Any: ...
    def end_trial(self, trial: Trial) -> None: ...


def work(
    oracle: Oracle,
    config: Config,
    search: Path,
    worker: str,
    run: Callable[[TrialRequest], Outcome],
    *,
    deadline: float | None = None,
    after_trial: Callable[[Point, Outcome], None] = lambda point, outcome: None,
) -> int:
    """Run trials until the oracle has no more.

    Args:
        oracle: Chooses the points.
        config: Of the search.
        search: Its folder.
        worker: A name that no other worker has at the same time.
        run: Runs one.
        deadline: See `TrialRequest`.
        after_trial: Is called when a trial has been reported.

    Returns:
        How many trials this worker has reported.

    Raises:
        TrainerError: What `run` raises; the trial is then still this worker's.
    """
    assert config.search is not None
    count = 0
    while True:
        trial = oracle.create_trial(worker)
        if trial.status == TrialStatus.STOPPED:
            return count
        if trial.status == TrialStatus.IDLE:
            # Others still run, and the oracle waits for what comes of it.
            time.sleep(_IDLE_SECONDS)
            continue
        chosen = trial.hyperparameters.values
        values = values_of(config.search, chosen)
        first, last = epochs_of(chosen, _epochs_at(config, values))
        point = Point(values, last, first)
        outcome = run(TrialRequest(search, int(trial.trial_id), point, worker, deadline))
        oracle.update_trial(
            trial.trial_id, {config.search.objective: outcome.score}, step=outcome.epochs
        )
        trial.status = TrialStatus.COMPLETED
        oracle.end_trial(trial)
        count += 1
        after_trial(point, outcome)


def _epochs_at(config: Config, values: Mapping[str, Any]) -> int:
    """Return the epochs of a point, which may vary them."""
    try:
        return at_point(config, values).fit.epochs
    except ConfigError:
        # The trial fails of it, and says so.
        return config.fit.epochs
