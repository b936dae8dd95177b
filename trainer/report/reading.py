"""What a report is made of: a run's files, read once, and what is missing among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from trainer.config import Config
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.judge import Diagnosis, diagnose
from trainer.errors import ConfigError, RunDirectoryError
from trainer.gradient_log import VARIABLES_FILE, GradientLog
from trainer.health_events import recoveries_of
from trainer.run_dir import RunDir, read_history, read_json

T = TypeVar("T")


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, or of a folder that is just a gradient log.

    Attributes:
        path: The folder.
        is_run: Whether it is a run directory.
        evidence: What the diagnosis looks at.
        diagnosis: What it says.
        status: Content of `status.json`, empty if it cannot be read.
        environment: Content of `environment.json`, the same.
        evaluation: Content of `evaluation.json`, the same.
        missing: Why something cannot be shown, by its name.
    """

    path: Path
    is_run: bool
    evidence: Evidence
    diagnosis: Diagnosis
    status: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | str) -> RunFiles:
        """Read a run; what is missing or damaged is noted, and the rest stands.

        Raises:
            RunDirectoryError: If there is neither a run nor a gradient log.
        """
        path = Path(path)
        if (path / VARIABLES_FILE).is_file() and not RunDir(path).config.is_file():
            evidence = Evidence.of_log(path)
            missing = {
                "everything but the gradients": "this folder is a gradient log and no run "
                "directory: there is no config, no accuracy and no environment to show",
                **evidence.missing,
            }
            return cls(path, False, evidence, diagnose(evidence), missing=missing)
        run = RunDir.open(path)
        missing = {}
        evidence = _evidence_of(run, missing)

        def attempt(name: str, file: Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            try:
                return read()
            except RunDirectoryError as error:
                # That nobody has asked for an evaluation is said where it would stand.
                if file != run.evaluation or file.exists():
                    missing[name] = str(error)
                return {}

        return cls(
            path=path,
            is_run=True,
            evidence=evidence,
            diagnosis=diagnose(evidence),
            status=attempt("how it ended", run.status, run.read_status),
            environment=attempt("environment", run.environment, lambda: read_json(run.environment)),
            evaluation=attempt("evaluation", run.evaluation, lambda: read_json(run.evaluation)),
            missing=missing,
        )

    @property
    def name(self) -> str:
        """Of the run's config, else of its folder."""
        return self.config.name if self.config is not None else self.path.resolve().name

    @property
    def config(self) -> Config | None:
        """The resolved config."""
        return self.evidence.config

    @property
    def log(self) -> GradientLog | None:
        """The gradient log, if it has a window."""
        return self.evidence.log

    @property
    def history(self) -> Sequence[dict[str, float]]:
        """One row an epoch."""
        return self.evidence.history

    @property
    def state(self) -> str:
        """Of `status.json`; `unknown` without it."""
        return str(self.status.get("state", "unknown"))

    @cached_property
    def epoch_steps(self) -> float | None:
        """Steps of an epoch, None where that is not known."""
        for row in reversed(self.history):
            if row.get("step", 0) > 0:
                return row["step"] / (row.get("epoch", 0) + 1)
        data, config = self.evidence.data, self.config
        if data is None or config is None or "num_train" not in data:
            return None
        return max(float(data["num_train"] // config.fit.batch_size), 1.0)

    def column(self, name: str) -> list[float]:
        """Return a column of the history; NaN in rows that lack it."""
        return [row.get(name, float("nan")) for row in self.history]


def _evidence_of(run: RunDir, missing: dict[str, str]) -> Evidence:
    """Read a run whose config may be one that this version cannot read."""
    try:
        evidence = Evidence.of_run(run)
    except ConfigError as error:
        missing["config"] = f"{run.config}: this version cannot read it ({error})"
        evidence = _without_config(run)
    missing.update(evidence.missing)
    return evidence


def _without_config(run: RunDir) -> Evidence:
    notes: dict[str, str] = {}

    def attempt(name: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except RunDirectoryError as error:
            notes[name] = str(error)
            return None

    evidence = attempt("log", lambda: Evidence.of_log(run.gradients)) or Evidence(None)
    return replace(
        evidence,
        history=attempt("history", lambda: read_history(run.history)) or (),
        data=attempt("data", lambda: read_json(run.data)),
        recoveries=attempt("health", lambda: recoveries_of(run)) or (),
        missing={**evidence.missing, **notes},
    )
