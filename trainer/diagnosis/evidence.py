"""What rules may look at: the files of a run, read once. NumPy only."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import Config, load_config
from trainer.diagnosis.finding import CannotJudge
from trainer.errors import RunDirectoryError
from trainer.gradient_log import VARIABLES_FILE, GradientLog
from trainer.health_events import recoveries_of
from trainer.run_dir import RunDir, read_history, read_json

# Steps before the first one that counts: an optimizer and normalization find their feet.
_WARM_UP_STEPS = 10
# Where the schedule has brought the learning rate below this share of its peak, small steps
# are what it is for.
_ACTIVE_SHARE = 0.1


@dataclass(frozen=True)
class Evidence:
    """The files of a run, or what there is of them.

    Attributes:
        log: The gradient log, or None.
        config: The resolved config, or None for a training that was not ours.
        history: One row an epoch.
        data: Content of `data.json`, or None.
        missing: Why something is not there, by its name.
        loss_of_knowing_nothing: Of the best constant answer, with what the model adds to its
            loss at the start; None if it is not known.
        recoveries: The step that each went on from, and the share of the schedule's learning
            rate from there on.
    """

    log: GradientLog | None
    config: Config | None = None
    history: Sequence[dict[str, float]] = ()
    data: dict[str, Any] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    loss_of_knowing_nothing: float | None = None
    recoveries: Sequence[tuple[int, float]] = ()

    @classmethod
    def at(cls, path: Path | str) -> Evidence:
        """Read a run directory, or a folder that is just a gradient log.

        Raises:
            RunDirectoryError: If it is neither.
        """
        path = Path(path)
        is_log = (path / VARIABLES_FILE).is_file() and not RunDir(path).config.is_file()
        return cls.of_log(path) if is_log else cls.of_run(RunDir.open(path))

    @classmethod
    def of_run(cls, run: RunDir) -> Evidence:
        """Read a run; what is missing or damaged is noted, and the rest stands."""
        missing: dict[str, str] = {}

        def attempt(name: str, read: Any) -> Any:
            try:
                return read()
            except RunDirectoryError as error:
                missing[name] = str(error)
                return None

        log: GradientLog | None = attempt("log", lambda: GradientLog.read(run.gradients))
        history = attempt("history", lambda: read_history(run.history)) or ()
        # The log of an epoch is there before its row of the history is.
        trained = int(history[-1].get("step", 0)) if history else 0
        if log is not None and not len(log.steps):
            missing["log"] = f"{run.gradients}: no window was recorded yet"
            if trained:
                missing["log"] = (
                    f"{run.gradients}: no window can be read, and the run has trained for "
                    f"{trained} steps: the log is damaged"
                )
            log = None
        elif log is not None and log.problem:
            missing["the end of the log"] = log.problem
        elif log is not None and log.steps["step"][-1] + log.header.every_steps < trained:
            missing["the end of the log"] = (
                f"{run.gradients}: its last step is {log.steps['step'][-1]}, and the run has "
                f"trained for {trained} steps: the log is damaged"
            )
        return cls(
            log=log,
            config=load_config(run.config),
            history=history,
            data=attempt("data", lambda: read_json(run.data)),
            missing=missing,
            recoveries=attempt("health", lambda: recoveries_of(run)) or (),
        )

    @classmethod
    def of_log(
        cls, directory: Path | str, loss_of_knowing_nothing: float | None = None
    ) -> Evidence:
        """Read the gradient log of any training.

        Raises:
            RunDirectoryError: If there is none.
        """
        log = GradientLog.read(directory)
        missing = {"the end of the log": log.problem} if log.problem else {}
        if not len(log.steps):
            missing["log"] = f"{directory}: no window was recorded yet"
        return cls(
            log=log if len(log.steps) else None,
            missing=missing,
            loss_of_knowing_nothing=loss_of_knowing_nothing,
        )

    @cached_property
    def gradients(self) -> GradientLog:
        """The log.

        Raises:
            CannotJudge: If there is none.
        """
        if self.log is None:
            raise CannotJudge(self.missing.get("log", "no gradients were recorded"))
        return self.log

    @cached_property
    def is_output(self) -> np.ndarray:
        """Whether each activation layer makes what the model returns, shape (layers,), bool."""
        header = self.gradients.header
        return np.isin(np.array(header.activations, object), header.outputs)

    @cached_property
    def windows(self) -> np.ndarray:
        """Indices of the windows that reach past the warm-up.

        Raises:
            CannotJudge: If there is none.
        """
        found = np.flatnonzero(self.gradients.window_steps[:, 1] >= _WARM_UP_STEPS)
        if not len(found):
            raise CannotJudge(f"the log ends within the first {_WARM_UP_STEPS} steps")
        return found

    @cached_property
    def active_windows(self) -> np.ndarray:
        """Indices of the windows in which the schedule asks for real steps; none in a warm-up."""
        first_steps = self.gradients.window_steps[:, 0]
        left = np.ones(len(first_steps))
        for step, share in self.recoveries:
            left[first_steps >= step] = share
        rates = self.of_windows("learning_rate", self.windows) / left[self.windows]
        # A training that goes on may not have come to its peak yet.
        peak = 0.0 if self.config is None else self.config.optimizer.learning_rate
        return self.windows[rates >= _ACTIVE_SHARE * max(peak, np.max(rates))]

    @cached_property
    def num_classes(self) -> int:
        """Classes of the data.

        Raises:
            CannotJudge: If they are not known.
        """
        if self.data is None:
            raise CannotJudge(self.missing.get("data", "the number of classes is not known"))
        return len(self.data["class_names"])

    def of_windows(self, column: str, windows: np.ndarray) -> np.ndarray:
        """Return the median of a column of the steps in each window, finite values only."""
        steps = self.gradients.steps
        bounds = np.searchsorted(steps["step"], self.gradients.window_steps + np.array([0, 1]))
        values = steps[column].astype(np.float64)
        return np.array([_finite_median(values[slice(*bounds[index])]) for index in windows])

    def kernels(self, name: str, windows: np.ndarray) -> np.ndarray:
        """Return a window statistic of the kernels, shape (windows, kernels), float64."""
        return self.table(name, windows, self.kernel_indices)

    def update_ratios(self, windows: np.ndarray) -> np.ndarray:
        """Return the usual update ratio of the kernels, shape (windows, kernels), float64.

        It is the median over a window, or its largest where that is 0: an optimizer that
        accumulates gradients takes no step in most steps.
        """
        median = self.kernels("update_ratio/median", windows)
        return np.where(median == 0, self.kernels("update_ratio/max", windows), median)

    def table(self, name: str, windows: np.ndarray, variables: np.ndarray) -> np.ndarray:
        """Return a window statistic, shape (windows, variables), float64."""
        return self.gradients.stat(name)[np.ix_(windows, variables)].astype(np.float64)

    def paths_of(self, variables: Iterable[int]) -> tuple[str, ...]:
        """Return the paths of variables by their indices."""
        return tuple(self.gradients.header.paths[index] for index in variables)

    @cached_property
    def kernel_indices(self) -> np.ndarray:
        """Indices of the kernels that the loss depends on, first layer first.

        Without embeddings: what they return is as small as they are themselves, so that
        their gradients are of another size than those of what follows.

        Raises:
            CannotJudge: If there is none.
        """
        variables = self.gradients.header.variables
        found = np.array(
            [
                index
                for index in self.gradients.kernels
                if variables[index].connected and not variables[index].is_embedding
            ]
        )
        if not len(found):
            raise CannotJudge("the model has no kernels")
        return found

    @cached_property
    def offset_indices(self) -> np.ndarray:
        """Indices of the biases and betas that the loss depends on, first layer first.

        Without a bias that a normalization follows: it takes the bias out again, and the
        gradient of that is nothing but rounding.
        """
        header = self.gradients.header
        order = header.order or tuple(range(len(header.variables)))
        kinds = [header.variables[index].path.rpartition("/")[2] for index in order]
        found = [
            index
            for index, kind, following in zip(order, kinds, [*kinds[1:], ""], strict=True)
            if header.variables[index].connected
            and (kind == "beta" or (kind == "bias" and following not in ("gamma", "beta")))
        ]
        return np.array(found, np.intp)

    @cached_property
    def kernel_paths(self) -> tuple[str, ...]:
        """Paths of the kernels."""
        return self.paths_of(self.kernel_indices)

    def steps_of(self, windows: np.ndarray) -> tuple[int, int]:
        """Return the first and the last step of some windows."""
        bounds = self.gradients.window_steps[windows]
        return int(bounds[:, 0].min()), int(bounds[:, 1].max())


def nan_median(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the median without NaN; NaN where there is nothing else, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmedian(values, axis=axis))


def _finite_median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")
