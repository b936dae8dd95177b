"""What a search leaves on disk for each trial: what it was asked, and how it ended.

A trial's folder is a run directory with two more files. `trial.json` is written when it
begins, `outcome.json` when it ends; the second one is what makes a trial count. A folder is
found by its point: the same values for as many epochs are the same trial, so that no point
is trained twice, whatever an oracle proposes and whatever state of it is lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import RunDirectoryError
from trainer.run_dir import RunDir, read_history, read_json, write_json

State = Literal["done", "pruned", "failed"]


@dataclass(frozen=True)
class Point:
    """What a trial trains.

    Attributes:
        values: By dotted key.
        epochs: Up to which one.
        parent_epochs: Up to which one a trial of the same values has trained before, from
            whose checkpoint this one goes on; 0 if there is none.
    """

    values: Mapping[str, Any]
    epochs: int
    parent_epochs: int = 0

    @property
    def key(self) -> str:
        """Eight letters that are the same for the same values and epochs."""
        text = json.dumps([dict(self.values), self.epochs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def parent(self) -> Point | None:
        """The trial that this one goes on with."""
        return Point(self.values, self.parent_epochs) if self.parent_epochs else None


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: Done: trained to its last epoch. Pruned: stopped early. Failed: no score of its
            own.
        score: Finite. The objective after the last epoch; of a failed trial, the worst
            that a trial could have.
        reason: Why it ended, for people.
        cause: The same in a word, to count by: `done`, `median`, `memory`, a rule's id, ...
        epochs: That have ended.
        health: `healthy`, `unknown`, or the rule of the first finding of severity error.
        seconds: Wall time of all attempts.
    """

    state: State
    score: float
    reason: str
    cause: str
    epochs: int
    health: str
    seconds: float


@dataclass(frozen=True)
class TrialRecord:
    """One trial as its folder tells it.

    Attributes:
        path: The folder.
        number: Counted from 0, in the order of their beginnings.
        point: What it trains.
        outcome: None as long as it has not ended.
        worker: Who trains it, or did.
        attempts: How often it was begun since its last checkpoint.
        history: Rows of its epochs.
    """

    path: Path
    number: int
    point: Point
    outcome: Outcome | None
    worker: str
    attempts: int
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def run(self) -> RunDir:
        """The same as a run."""
        return RunDir(self.path)


def trials_folder(search: Path) -> Path:
    """Return where the trials of a search are."""
    return search / "trials"


def find_trial(search: Path, point: Point) -> Path | None:
    """Return the folder of a point, None if it was never begun."""
    return next(iter(sorted(trials_folder(search).glob(f"*-{point.key}"))), None)


def folder_of(search: Path, number: int, point: Point) -> Path:
    """Return the folder of a point, a new one's name if it was never begun."""
    found = find_trial(search, point)
    return found or trials_folder(search) / f"{number:04d}-{point.key}"


def write_trial(path: Path, number: int, point: Point, worker: str, **more: Any) -> None:
    """Write `trial.json`."""
    described = {"number": number, "worker": worker, **asdict(point), **more}
    write_json(path / "trial.json", described)


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write `outcome.json`; with it the trial has ended."""
    write_json(path / "outcome.json", asdict(outcome))


def read_outcome(path: Path) -> Outcome | None:
    """Return how a trial ended, None if it has not.

    Raises:
        RunDirectoryError: If the file is damaged.
    """
    file = path / "outcome.json"
    if not file.exists():
        return None
    try:
        return Outcome(**read_json(file))
    except TypeError as error:
        raise RunDirectoryError(f"{file}: this artifact is damaged ({error})") from None


def read_trial(path: Path) -> TrialRecord | None:
    """Return a trial, None if nothing sound says what it is.

    A damaged outcome counts as none: the trial is taken up again from its checkpoint.
    """
    try:
        asked = read_json(path / "trial.json")
        point = Point(asked["values"], asked["epochs"], asked["parent_epochs"])
        number, worker = int(asked["number"]), str(asked["worker"])
        attempts = int(asked.get("attempts", 0))
    except (RunDirectoryError, KeyError, TypeError, ValueError):
        return None
    outcome, history = None, []
    with suppress(RunDirectoryError):
        outcome = read_outcome(path)
    with suppress(RunDirectoryError):
        history = read_history(path / "history.csv")
    return TrialRecord(path, number, point, outcome, worker, attempts, history)


def read_trials(search: Path) -> list[TrialRecord]:
    """Return all trials of a search, in the order of their beginnings."""
    records = map(read_trial, sorted(trials_folder(search).glob("[0-9]*-*")))
    return sorted((each for each in records if each), key=lambda each: each.number)
