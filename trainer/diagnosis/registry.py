"""The open set of rules."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import SEVERITIES, Finding
from trainer.errors import ConfigError

Check = Callable[[Evidence], list[Finding]]


@dataclass(frozen=True)
class Rule:
    """A named check.

    Attributes:
        id: Of its findings.
        rank: Causes come before what they cause: of two findings of equal severity the one
            of the lower rank is listed first.
        check: Returns the findings, none if all is well; raises `CannotJudge`. Its docstring
            says formula, threshold, source, and when it is wrong.
    """

    id: str
    rank: int
    check: Check


RULES: dict[str, Rule] = {}


def rule(id: str, rank: int) -> Callable[[Check], Check]:
    """Register a check.

    Args:
        id: Not taken by another rule.
        rank: See `Rule`.
    """

    def register(check: Check) -> Check:
        if id in RULES and RULES[id].check.__module__ != check.__module__:
            raise ConfigError(
                f"a rule's id must be its own. Received: {id!r}, which is taken; there are "
                f"{', '.join(RULES)}"
            )
        RULES[id] = Rule(id, rank, check)
        return check

    return register


def checked_findings(rule: Rule, findings: Any) -> list[Finding]:
    """Return what a rule's check returned.

    Raises:
        TypeError: If it is no list of findings, or a number of one is none.
        ValueError: If a finding is not the rule's own, or its severity is none.
    """
    if not isinstance(findings, list | tuple) or not all(isinstance(f, Finding) for f in findings):
        raise TypeError(f"a rule must return a list of findings. Received: {findings!r}")
    for each in findings:
        if each.rule != rule.id or each.severity not in SEVERITIES:
            raise ValueError(
                f"a finding must have its rule's id, {rule.id!r}, and one of the severities "
                f"{', '.join(SEVERITIES)}. Received: {each.rule!r}, {each.severity!r}"
            )
        for name, value in (*each.numbers.items(), *each.thresholds.items()):
            # Those of NumPy too.
            if not isinstance(value, Real):
                raise TypeError(f"a finding's {name!r} must be a number. Received: {value!r}")
    return list(findings)


def load_rules(path: Path) -> None:
    """Run a user's file, whose rules register themselves.

    Raises:
        ConfigError: If it is missing or fails.
    """
    spec = importlib.util.spec_from_file_location(f"rules_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path}: rules must be in a Python file, and this is none")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except ConfigError:
        raise
    # The file may raise anything.
    except Exception as error:
        raise ConfigError(
            f"{path}: the rules cannot be loaded ({type(error).__name__}: {error})"
        ) from error
