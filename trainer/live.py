"""Diagnose a training while it runs: say once what appears, and once that it is gone.

What is looked at after each window is bounded, so that a long training pays no more for it
than a short one: the first window, which tells how it started, the one of the lowest loss,
and the latest ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from trainer.config import Config
from trainer.diagnosis import Evidence, Finding
from trainer.diagnosis.judge import diagnose, headline
from trainer.errors import RunDirectoryError, UnhealthyError
from trainer.gradient_log import GradientLog, LogHeader, read_windows
from trainer.health_events import add_event, recoveries_of
from trainer.log_frames import LogWindow
from trainer.run_dir import RunDir, read_json

_LATEST_WINDOWS = 12
# Fewer tell nothing: one odd window is no illness.
_FEWEST_WINDOWS = 3
# A finding at its threshold comes and goes; it is gone after so many looks without it.
_LOOKS_WITHOUT = 3
MENDED_BY_SMALLER_STEPS = ("nonfinite", "overflow", "large_updates", "exploding", "diverging")
"""Rules whose findings a lower learning rate can mend: what `recover` goes back for."""


class LiveDiagnosis:
    """Hold a training's windows against the rules as they come.

    Everything that it says is also an event in the run's `health.json`.

    Args:
        run: Whose `data.json` is known and whose `health.json` is written.
        config: Of the run.
        say: Prints a message for people.
        on_finding: Gets each finding that appears, and may raise.
    """

    def __init__(
        self,
        run: RunDir,
        config: Config,
        say: Callable[[str], None],
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        self._run = run
        self._config = config
        self._say = say
        self._on_finding = on_finding
        self._history: Sequence[dict[str, float]] = ()
        self._data = read_json(run.data)
        self._recoveries = recoveries_of(run)
        self._windows: list[LogWindow] = []
        self._open: dict[str, Finding] = {}
        self._looks_without: dict[str, int] = {}
        self._has_looked = False

    @property
    def is_healthy(self) -> bool:
        """Whether no error is open that going back could mend.

        One that it cannot mend is in every checkpoint, and none would be healthy.
        """
        return all(
            finding.severity != "error" or rule not in MENDED_BY_SMALLER_STEPS
            for rule, finding in self._open.items()
        )

    @property
    def summary(self) -> str:
        """What is open, in a word or two; empty before the first look."""
        if not self._has_looked:
            return ""
        errors = [rule for rule, each in self._open.items() if each.severity == "error"]
        if errors:
            return errors[0] if len(errors) == 1 else f"{errors[0]} +{len(errors) - 1}"
        warnings = sum(each.severity == "warning" for each in self._open.values())
        return f"{warnings} warning{'s' * (warnings > 1)}" if warnings else "healthy"

    def recall(self, step: int) -> None:
        """Take in what the run's log holds of the steps before one at which it is resumed."""
        # Killed before its first window, it has none.
        with suppress(RunDirectoryError):
            for window in read_windows(self._run.gradients):
                if window.steps["step"][-1] < step:
                    self._keep(window)

    def look(self, header: LogHeader, window: LogWindow) -> None:
        """Diagnose the training with one more window.

        Raises:
            UnhealthyError: If an error appears and `gradients.on_error` is not `warn`; for
                `recover` only one that smaller steps can mend.
        """
        self._keep(window)
        if len(self._windows) < _FEWEST_WINDOWS:
            return
        self._has_looked = True
        evidence = Evidence(
            GradientLog.of(header, self._windows),
            self._config,
            self._history,
            self._data,
            recoveries=self._recoveries,
        )
        diagnosis = diagnose(evidence)
        step = int(window.steps["step"][-1])
        found: dict[str, Finding] = {}
        for finding in diagnosis.findings:
            found.setdefault(finding.rule, finding)
        appeared = [finding for finding in found.values() if self._is_news(finding)]
        fatal = next((finding for finding in appeared if self._is_fatal(finding)), None)
        gone = [
            rule for rule in self._open if rule not in found and rule not in diagnosis.not_judged
        ]
        for finding in appeared:
            self._note(step, "appeared", finding.rule, finding)
            # The recorder has said the one, with the step and the layer; the other is raised.
            if finding.rule != "nonfinite" and finding is not fatal:
                self._say(headline(finding))
        self._open |= {rule: self._graver(finding) for rule, finding in found.items()}
        for rule in list(self._open):
            self._looks_without[rule] = self._looks_without.get(rule, 0) + 1 if rule in gone else 0
            if self._looks_without[rule] >= _LOOKS_WITHOUT:
                del self._open[rule]
                self._note(step, "gone", rule)
                self._say(f"gone since step {step:,}: {rule}")
        if self._on_finding is not None:
            for finding in appeared:
                self._on_finding(finding)
        if fatal is not None:
            raise UnhealthyError(f"{fatal.rule}: {fatal.message}")

    def go_back(self, step: int, history: Sequence[dict[str, float]]) -> None:
        """Forget what was seen from a step on, and the errors that were found.

        Args:
            step: Of the next training step.
            history: Rows of the epochs before it; the caller goes on appending.
        """
        self._history = history
        self._recoveries = recoveries_of(self._run)
        self._windows = [each for each in self._windows if each.steps["step"][-1] < step]
        self._open = {k: v for k, v in self._open.items() if v.severity != "error"}

    def _keep(self, window: LogWindow) -> None:
        """Forget the middle of the training, but for its best window."""
        self._windows.append(window)
        middle = self._windows[1:-_LATEST_WINDOWS]
        if len(middle) > 1:
            losses = [float(np.median(each.steps["loss"])) for each in middle]
            best = middle[int(np.argmin(np.nan_to_num(losses, nan=np.inf)))]
            self._windows = [self._windows[0], best, *self._windows[-_LATEST_WINDOWS:]]

    def _is_news(self, finding: Finding) -> bool:
        known = self._open.get(finding.rule)
        return known is None or (known.severity != "error" and finding.severity == "error")

    def _graver(self, finding: Finding) -> Finding:
        """Of a finding and the open one, the graver: an error stays one until it is gone."""
        known = self._open.get(finding.rule)
        return finding if known is None or known.severity != "error" else known

    def _is_fatal(self, finding: Finding) -> bool:
        on_error = self._config.gradients.on_error
        can_recover = on_error == "recover" and finding.rule in MENDED_BY_SMALLER_STEPS
        return finding.severity == "error" and (on_error == "stop" or can_recover)

    def _note(self, step: int, event: str, rule: str, finding: Finding | None = None) -> None:
        details: dict[str, Any] = {"rule": rule}
        if finding is not None:
            details |= {
                "severity": finding.severity,
                "message": finding.message,
                "numbers": finding.numbers,
                "thresholds": finding.thresholds,
            }
        add_event(self._run, step, event, **details)
