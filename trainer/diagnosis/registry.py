"""The open set of rules."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import Finding
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
