"""Train one point of a search, whatever comes of it: it ends with a finite score."""

from __future__ import annotations

import errno
import gc
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from trainer.checkpoint import list_checkpoints
from trainer.config import load_config
from trainer.config.search_space import at_point
from trainer.diagnosis import Finding
from trainer.diagnosis.judge import diagnose_run
from trainer.errors import (
    ConfigError,
    DataError,
    InterruptedRun,
    MissingDependencyError,
    NonFiniteError,
    RunDirectoryError,
    RuntimeSetupError,
    SearchError,
    StoppedEarly,
    TrainerError,
    UnhealthyError,
)
from trainer.fitting import Supervision
from trainer.run_dir import RunDir, read_history, read_json, write_text
from trainer.search.directory import ENDING_SECONDS, locked
from trainer.search.inheritance import inherit
from trainer.search.pruning import PAST_HELP, is_finite, trails_the_median, worst_score
from trainer.search.trial_data import training_data
from trainer.search.trials import (
    Outcome,
    Point,
    State,
    find_trial,
    folder_of,
    read_outcome,
    read_trial,
    read_trials,
    write_outcome,
    write_trial,
)
from trainer.train import train_under

# A process that dies before the next checkpoint, so often in a row, dies of the trial.
MOST_ATTEMPTS = 3
# What every other trial would meet too: the search stops, and nothing is lost.
_FATAL = (DataError, RuntimeSetupError, RunDirectoryError, MissingDependencyError, SearchError)


@dataclass(frozen=True)
class TrialRequest:
    """A trial to run.

    Attributes:
        search: The folder of the search, with its `config.yaml`.
        number: Of the trial.
        point: What to train.
        worker: Who trains it.
        deadline: As `time.time()`; it stops at the end of the epoch that is beyond it.
    """

    search: Path
    number: int
    point: Point
    worker: str = "0"
    deadline: float | None = None

    @property
    def path(self) -> Path:
        """The folder of the trial."""
        return folder_of(self.search, self.number, self.point)


class _Pruned(StoppedEarly):
    """With the cause in a word."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class OutOfTime(StoppedEarly):
    """The search has reached its limit of wall time; the trial can go on another day."""


def run_trial(request: TrialRequest, command: Sequence[str]) -> Outcome:
    """Train a point, or take its outcome if it has one.

    A trial that was killed goes on from its last checkpoint. What it says goes to `trial.log`
    in its folder.

    Returns:
        The outcome, which is on disk: of a trial that fails too.

    Raises:
        InterruptedRun, OutOfTime: It has a checkpoint, and no outcome yet.
        TrainerError: What every trial would fail of: no data, a full disk.
    """
    known = known_outcome(request)
    if known is not None:
        return known
    with locked(request.path, "trial", ENDING_SECONDS):
        # Whoever had it meanwhile may have ended it.
        return known_outcome(request) or _Trial(request).run(command)


def known_outcome(request: TrialRequest) -> Outcome | None:
    """Return how a trial ended, None if it has not or the file is damaged."""
    with suppress(RunDirectoryError):
        return read_outcome(request.path)
    return None


def give_up(request: TrialRequest, reason: str) -> Outcome:
    """End a trial whose process dies of it, and return its outcome."""
    with locked(request.path, "trial", ENDING_SECONDS):
        return known_outcome(request) or _Trial(request).fail("killed", reason)


class _Trial:
    def __init__(self, request: TrialRequest) -> None:
        config = load_config(request.search / "config.yaml")
        assert config.search is not None
        self._request = request
        self._config = config
        self._search = config.search
        self._run = RunDir(request.path)
        self._began = time.time()
        self._seconds_before = 0.0

    def run(self, command: Sequence[str]) -> Outcome:
        """Train, and write the outcome."""
        outcome = self._attempt(command)
        write_outcome(self._run.path, outcome)
        return outcome

    def fail(self, cause: str, reason: str) -> Outcome:
        """Write an outcome without training."""
        with suppress(RunDirectoryError, TypeError, ValueError):
            told = read_json(self._run.path / "trial.json")
            self._seconds_before = float(told.get("seconds", 0.0))
        outcome = self._outcome("failed", cause, reason)
        write_outcome(self._run.path, outcome)
        return outcome

    def _attempt(self, command: Sequence[str]) -> Outcome:
        attempts = self._count_attempt()
        if attempts > MOST_ATTEMPTS:
            times = attempts - 1
            return self._outcome("failed", "killed", f"its process died {times} times in a row")
        try:
            log = self._run.path / "trial.log"
            with open(log, "a", encoding="utf-8") as file, redirect_stderr(file):
                self._train(command)
            self._require_objective()
        except (InterruptedRun, OutOfTime, KeyboardInterrupt):
            self._note_attempt(attempts - 1)
            raise
        except _Pruned as stop:
            return self._outcome("pruned", stop.cause, str(stop))
        except NonFiniteError as error:
            return self._outcome("failed", "nonfinite", str(error))
        except UnhealthyError as error:
            return self._outcome("pruned", str(error).partition(":")[0], str(error))
        except ConfigError as error:
            return self._outcome("failed", "config", str(error))
        except _FATAL:
            self._forget_attempt(attempts)
            raise
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            return self._outcome("failed", "memory", f"out of memory: {_first_line(error)}")
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._forget_attempt(attempts)
                raise RunDirectoryError(f"{self._run.path}: {error.strerror}") from error
            write_text(self._run.path / "traceback.txt", traceback.format_exc())
            return self._outcome("failed", "crash", f"{type(error).__name__}: {_first_line(error)}")
        finally:
            keras.backend.clear_session(free_memory=False)
            gc.collect()
        return self._outcome("done", "done", "trained to its last epoch")

    def _train(self, command: Sequence[str]) -> None:
        config = at_point(self._config, self._request.point.values)
        parent = self._request.point.parent
        source = None if parent is None else find_trial(self._request.search, parent)
        if source is not None:
            inherit(self._run, source)
        supervision = Supervision(
            end_epoch=self._request.point.epochs,
            on_epoch_end=self._after_epoch,
            on_finding=self._judge,
        )
        data = training_data(config)
        train_under(supervision, self._run, config, data, command=command)

    def _require_objective(self) -> None:
        """Look whether a trained trial has the objective: if not, none will have it.

        Only now, because a column can be there from a later epoch on.
        """
        rows = []
        with suppress(RunDirectoryError):  # The outcome tells of it.
            rows = read_history(self._run.history)
        objective = self._search.objective
        if rows and objective not in rows[-1]:
            columns = ", ".join(dict.fromkeys(key for row in rows for key in row))
            raise SearchError(
                f"search.objective: {objective} is no column of {self._run.history}. Write one of "
                f"those that there are, and begin anew with --restart. Columns: {columns}"
            )

    def _after_epoch(self, history: Sequence[dict[str, float]]) -> None:
        request, search = self._request, self._search
        if len(history) >= request.point.epochs:
            return
        if request.deadline is not None and time.time() > request.deadline:
            raise OutOfTime("the search has reached search.max_hours")
        if "median" in search.prune and search.algorithm != "hyperband":
            others = [each for each in read_trials(request.search) if each.path != self._run.path]
            trailing = trails_the_median(search, history, others, request.point.epochs)
            if trailing is not None:
                raise _Pruned("median", trailing)

    def _judge(self, finding: Finding) -> None:
        is_hopeless = finding.severity == "error" and finding.rule in PAST_HELP
        if is_hopeless and "gradients" in self._search.prune:
            raise _Pruned(finding.rule, f"{finding.rule}: {finding.message}")

    def _count_attempt(self) -> int:
        """Write down that the trial begins; a new checkpoint makes the count start anew."""
        step = max((each.step for each in list_checkpoints(self._run.checkpoints)), default=0)
        known = read_trial(self._run.path)
        attempts = 1
        if known is not None:
            told = read_json(self._run.path / "trial.json")
            self._seconds_before = float(told.get("seconds", 0.0))
            attempts = known.attempts + 1 if told.get("step") == step else 1
        self._step = step
        self._note_attempt(attempts)
        return attempts

    def _note_attempt(self, attempts: int) -> None:
        write_trial(
            self._run.path,
            self._request.number,
            self._request.point,
            self._request.worker,
            attempts=attempts,
            step=self._step,
            seconds=self._seconds_before + time.time() - self._began,
        )

    def _forget_attempt(self, attempts: int) -> None:
        """Let an attempt count for nothing, if the disk has room to say so."""
        with suppress(RunDirectoryError):
            self._note_attempt(attempts - 1)

    def _outcome(self, state: State, cause: str, reason: str) -> Outcome:
        history = []
        with suppress(RunDirectoryError):
            history = read_history(self._run.history)
        last = history[-1] if history else {}
        if state == "done" and not is_finite(last, self._search.objective):
            state, cause = "failed", "nonfinite"
            reason = f"{self._search.objective} is not finite"
        if state == "failed" or not is_finite(last, self._search.objective):
            score = worst_score(self._search, read_trials(self._request.search))
        else:
            score = last[self._search.objective]
        return Outcome(
            state=state,
            score=score,
            reason=reason,
            cause=cause,
            epochs=len(history),
            health=_diagnosed(self._run),
            seconds=self._seconds_before + time.time() - self._began,
        )


def _diagnosed(run: RunDir) -> str:
    """Write `diagnosis.json`, and return the verdict in a word."""
    if not run.config.is_file():
        return "unknown"
    try:
        diagnosis = diagnose_run(run)
    except TrainerError:
        return "unknown"
    if diagnosis.exit_code == 2:
        return "unknown"
    errors = [each.rule for each in diagnosis.findings if each.severity == "error"]
    return errors[0] if errors else "healthy"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]
