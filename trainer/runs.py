"""List run directories: how each of them stands, from its files alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import load_config
from trainer.errors import RunDirectoryError, TrainerError
from trainer.run_dir import RunDir, read_history, read_json

_ACCURACIES = {"val_accuracy": "validation", "accuracy": "training"}


@dataclass(frozen=True)
class RunSummary:
    """One run in a line.

    Attributes:
        path: Its directory.
        state: Of `status.json`, `killed` if its process is gone, or `unknown`.
        epochs: That have ended.
        epochs_asked: Of the config; None if that cannot be read.
        accuracy: Of the last epoch: on validation images, else on training images.
        accuracy_of: Which images these are: `validation`, `training`, or None.
        test_accuracy: Of `evaluate`; None if it was not asked.
        health: The verdict of the newest diagnosis with the first error, or None.
        reason: Why it stopped, for people.
    """

    path: Path
    state: str
    epochs: int
    epochs_asked: int | None
    accuracy: float | None
    accuracy_of: str | None
    test_accuracy: float | None
    health: str | None
    reason: str

    @classmethod
    def of(cls, run: RunDir) -> RunSummary:
        """Read one; whatever is missing or damaged is left out."""
        status: dict[str, Any] = {}
        history: Sequence[dict[str, float]] = ()
        asked = test_accuracy = None
        with suppress(RunDirectoryError):
            status = run.read_status()
        with suppress(RunDirectoryError):
            history = read_history(run.history)
        with suppress(TrainerError):
            asked = load_config(run.config).fit.epochs
        with suppress(RunDirectoryError):
            test_accuracy = read_json(run.evaluation).get("accuracy")
        last = history[-1] if history else {}
        images = next((of for key, of in _ACCURACIES.items() if key in last), None)
        return cls(
            path=run.path,
            state=str(status.get("state", "unknown")),
            epochs=len(history),
            epochs_asked=asked,
            accuracy=last.get("val_accuracy", last.get("accuracy")),
            accuracy_of=images,
            test_accuracy=test_accuracy,
            health=_health(run),
            reason=str(status.get("reason", "")),
        )

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {**self.__dict__, "path": str(self.path)}


def _health(run: RunDir) -> str | None:
    """What `diagnose` said last, else what the training said of itself while it ran."""
    with suppress(RunDirectoryError):
        told = read_json(run.diagnosis)
        errors = [each["rule"] for each in told["findings"] if each["severity"] == "error"]
        return errors[0] if errors else str(told["verdict"])
    open_errors: dict[str, bool] = {}
    with suppress(RunDirectoryError):
        for event in read_json(run.health).get("events", ()):
            if event.get("event") == "recovered":
                open_errors.clear()
            elif event.get("event") == "gone":
                open_errors.pop(str(event.get("rule")), None)
            elif event.get("severity") == "error":
                open_errors[str(event.get("rule"))] = True
    return next(iter(open_errors), None)


def find_runs(folders: Sequence[Path]) -> list[RunSummary]:
    """Return the runs in some folders and in searches below them, the oldest first.

    Raises:
        RunDirectoryError: If a folder does not exist.
    """
    found: dict[Path, RunSummary] = {}
    for folder in folders:
        if not folder.is_dir():
            raise RunDirectoryError(
                f"{folder}: must be a folder with run directories, and there is none"
            )
        for path in _run_paths(folder):
            found[path] = RunSummary.of(RunDir(path))
    return sorted(found.values(), key=lambda each: (each.path / "config.yaml").stat().st_mtime)


def _run_paths(folder: Path) -> Iterator[Path]:
    of_searches = ("*/trials/*/config.yaml", "*/retrained/*/config.yaml")
    for pattern in ("config.yaml", "*/config.yaml", *of_searches):
        for config in folder.glob(pattern):
            # A search has a config and no status: it is no run, and its trials are.
            if (config.parent / "status.json").exists():
                yield config.parent


def format_runs(runs: Sequence[RunSummary]) -> str:
    """Return the runs as a table for people."""
    if not runs:
        return "no runs"
    rows = [("state", "epochs", "accuracy", "test", "gradients", "run")]
    for run in runs:
        rows.append(
            (
                run.state,
                f"{run.epochs}/{run.epochs_asked or '?'}",
                _percent(run.accuracy) + " (training)" * (run.accuracy_of == "training"),
                _percent(run.test_accuracy),
                run.health or "",
                str(run.path),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"
