"""What a rule says: a finding with its numbers, and what could be changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Gravest first. Error: the training is ill. Warning: it may learn, but pays for this.
Note: worth knowing."""


class CannotJudge(Exception):
    """Raised by a rule that lacks the evidence it needs; the message says what is missing."""


@dataclass(frozen=True)
class Remedy:
    """A change that may help.

    Attributes:
        why: What it does, in half a sentence; what to try and what that does, where there
            is no config to change.
        patch: Values by dotted key, as `--set` takes them; empty without a config.
    """

    why: str
    patch: dict[str, Any]

    @property
    def options(self) -> str:
        """The patch as options of the command line, empty without a config."""
        return " ".join(f"--set {key}={_as_yaml(value)}" for key, value in self.patch.items())


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, dict | list):
        return f"'{json.dumps(value)}'"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        rule: Id of the rule.
        severity: See `SEVERITIES`.
        message: One or two sentences with the numbers, for people.
        layers: Paths of the variables or layers that it is about, the worst first.
        steps: First and last step that it was seen at.
        numbers: What was measured, by name.
        thresholds: What it was held against, by the same names.
        windows_fired: Windows of the log in which the rule's condition held.
        windows_seen: Windows that it could be looked at in; 0 for what no window tells.
        remedies: Changes to try, in this order.
    """

    rule: str
    severity: Severity
    message: str
    layers: tuple[str, ...] = ()
    steps: tuple[int, int] = (0, 0)
    numbers: dict[str, float] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    windows_fired: int = 1
    windows_seen: int = 1
    remedies: tuple[Remedy, ...] = ()
