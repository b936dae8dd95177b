"""keras-tuner's oracles, made to last.

Theirs write their state in place, so that a kill can tear it; keep none before the first
trial has begun; and propose a point again that was tried already. These do not.
"""

from __future__ import annotations

import shutil
import threading
import time
import warnings
from collections.abc import Callable
from functools import cmp_to_key
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial, TrialStatus

from trainer.config import Config
from trainer.errors import MissingDependencyError
from trainer.run_dir import write_json
from trainer.search.directory import SearchDir
from trainer.search.pruning import BEYOND_ALL
from trainer.search.space import hyperparameters
from trainer.terminal import say

_DEFAULT_TRIALS = 20
# keras-tuner gives up after so many failures; here a failure has a score and is none.
_NEVER = 10**9


class DamagedState(Exception):
    """A state file of the oracle cannot be read; its message names the file."""


class LastingOracle(keras_tuner.Oracle):
    """What all four have in common.

    Attributes:
        is_over: Is asked before a new point is chosen: whether a limit is reached.
        lock: Held by whoever calls more than one method, from whatever thread.
    """

    is_over: Callable[[], bool] = staticmethod(lambda: False)

    def set_up(self, directory: Path) -> None:
        """Say where the state lives, and write it: a first trial can be killed too."""
        self.lock = threading.RLock()
        self.verbose = 0
        self._set_project_dir(str(directory.parent), directory.name)

    def create_trial(self, tuner_id: str) -> Trial:
        with self.lock, _their_warnings():
            is_new = tuner_id not in self.ongoing_trials and not self._retry_queue
            if is_new and self.is_over():
                status = TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED
                return Trial(self.get_space(), status=status)
            trial = super().create_trial(tuner_id)
            if trial.status == TrialStatus.STOPPED and self.ongoing_trials:
                # One that runs can be handed back, and then somebody must be there.
                trial.status = TrialStatus.IDLE
            return trial

    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        with self.lock, _their_warnings():
            return super().update_trial(trial_id, metrics, step)

    def end_trial(self, trial: Trial) -> None:
        with self.lock, _their_warnings():
            super().end_trial(trial)

    def hand_back(self, tuner_id: str) -> str | None:
        """Take its trial from a worker that is gone, and queue it for another one.

        Returns:
            The trial's id, None if it had none.
        """
        with self.lock:
            self.tuner_ids.discard(tuner_id)
            trial = self.ongoing_trials.pop(tuner_id, None)
            if trial is None:
                return None
            self._retry_queue.append(trial.trial_id)
            self.save()
            return str(trial.trial_id)

    @property
    def is_idle(self) -> bool:
        """Whether no worker has a trial and none waits for one."""
        with self.lock:
            return not self.ongoing_trials and not self._retry_queue

    def save(self) -> None:
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Trial) -> None:
        path = Path(self._get_trial_dir(trial.trial_id)) / "trial.json"
        write_json(path, trial.get_state())

    def reload(self) -> None:
        """Take up a saved state; what ran is queued to be run again.

        Raises:
            DamagedState: If a file of it cannot be read.
        """
        directory = Path(self._project_dir)
        for path in sorted(directory.glob("trial_*/trial.json")):
            try:
                Trial.load(str(path))
            except Exception as error:
                raise DamagedState(f"{path} ({type(error).__name__}: {error})") from None
        path = Path(self._get_oracle_fname())
        try:
            super().reload()
        except Exception as error:
            raise DamagedState(f"{path} ({type(error).__name__}: {error})") from None
        # A new trial's file is written before the state. After a kill in between, no queue
        # has it: nobody would ever run it, and it would count.
        for trial_id in set(self.trials) - set(self.start_order):
            del self.trials[trial_id]


class _Random(LastingOracle, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Grid(LastingOracle, keras_tuner.oracles.GridSearchOracle):
    def populate_space(self, trial_id: str) -> dict[str, Any]:
        proposed = super().populate_space(trial_id)
        if proposed["values"] is not None:
            # keras-tuner looks for what follows a point when its trial has ended, for a trial
            # could add parameters; all but one worker wait then. Here the space stands.
            self._populate_next.append(trial_id)
        return proposed

    def reload(self) -> None:
        super().reload()
        # keras-tuner saves nothing of where a grid is. The order tells it: whatever follows
        # a known point and is not known comes next.
        values = {key: trial.hyperparameters.values for key, trial in self.trials.items()}
        by_values = cmp_to_key(lambda a, b: self._compare(values[a], values[b]))
        self._populate_next = sorted(self.start_order, key=by_values)
        previous = None
        for trial_id in self._populate_next:
            self._ordered_ids.insert(trial_id, previous)
            previous = trial_id


class _Bayesian(LastingOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    def populate_space(self, trial_id: str) -> dict[str, Any]:
        proposed = super().populate_space(trial_id)
        values = proposed.get("values")
        if values and self._duplicate(values):
            # Its best guess can be a point that it knows; a random one teaches more.
            return self._random_populate_space()
        return proposed

    def _vectorize_trials(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all points and their scores, the smallest the best."""
        points, scores = super()._vectorize_trials()
        # One that failed before any other had a score stands beyond all others: so far away
        # that the model would see no difference between these.
        known = scores[scores < BEYOND_ALL]
        return points, np.minimum(scores, known.max()) if known.size else scores


class _Hyperband(LastingOracle, keras_tuner.oracles.HyperbandOracle):
    pass


def make_oracle(config: Config, directory: Path) -> LastingOracle:
    """Return the oracle of a config's search, without any trial.

    Args:
        config: With a `search` section.
        directory: Of its state.

    Raises:
        MissingDependencyError: If Bayesian search lacks what it needs.
    """
    search = config.search
    assert search is not None
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(
            search.objective, "max" if search.is_maximized else "min"
        ),
        "hyperparameters": hyperparameters(search),
        "allow_new_entries": False,
        "tune_new_entries": False,
        # keras-tuner takes 0 for no seed.
        "seed": config.seed + 1,
        "max_consecutive_failed_trials": _NEVER,
    }
    trials = {"max_trials": search.max_trials or _DEFAULT_TRIALS}
    oracle: LastingOracle
    match search.algorithm:
        case "random":
            oracle = _Random(**common, **trials)
        case "grid":
            oracle = _Grid(**common, max_trials=search.max_trials)
        case "bayesian":
            try:
                oracle = _Bayesian(**common, **trials)
            except ImportError as error:
                raise MissingDependencyError(
                    f"bayesian search needs scikit-learn and scipy ({error}). "
                    "Run: scripts/setup_env.sh search"
                ) from None
        case "hyperband":
            oracle = _Hyperband(**common, max_epochs=config.fit.epochs, factor=search.factor)
            # It takes no such argument, but all of them stop by it.
            oracle.max_trials = search.max_trials
    oracle.set_up(directory)
    return oracle


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


def _their_warnings() -> warnings.catch_warnings:
    """Silence what nobody here can act on.

    keras-tuner calls `threading.currentThread`, deprecated since Python 3.10, and the
    Gaussian process of a small space reaches the bounds of its length scale.
    """
    return warnings.catch_warnings(action="ignore")
