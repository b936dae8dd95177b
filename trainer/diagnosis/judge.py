"""Run all rules over the evidence, and say what came of it."""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainer.config import Config
from trainer.config.checks import CHECKS
from trainer.diagnosis import (  # noqa: F401
    activation_rules,
    data_rules,
    label_rules,
    loss_rules,
    momentum_rules,
    normalization_rules,
    precision_rules,
    signal_rules,
    step_rules,
    still_rules,
)
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import SEVERITIES, CannotJudge, Finding, Remedy
from trainer.diagnosis.in_words import in_words
from trainer.diagnosis.registry import RULES, checked_findings
from trainer.run_dir import RunDir, write_json

_WIDTH = 80


@dataclass(frozen=True)
class Diagnosis:
    """What all rules together say.

    Attributes:
        findings: The gravest first, and causes before what they cause.
        not_judged: Why a rule could not run, by its id.
        num_rules: That did run.
        missing: Why some evidence is not there, by its name.
        unheard: Why a training cannot be called healthy, though nothing was found: too
            little of its gradients is known. Empty if it can.
    """

    findings: tuple[Finding, ...]
    not_judged: dict[str, str]
    num_rules: int
    missing: dict[str, str]
    unheard: str = ""

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 with a finding of severity error, 2 if it cannot be judged."""
        if any(finding.severity == "error" for finding in self.findings):
            return 1
        return 2 if self.unheard or not self.num_rules else 0

    def __str__(self) -> str:
        return format_diagnosis(self)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs; remedies have their `options` too."""
        findings = [
            {
                **asdict(finding),
                "remedies": [{**asdict(r), "options": r.options} for r in finding.remedies],
            }
            for finding in self.findings
        ]
        return {
            "verdict": ("healthy", "unhealthy", "could not judge")[self.exit_code],
            "unheard": self.unheard,
            "findings": findings,
            "rules_run": self.num_rules,
            "not_judged": self.not_judged,
            "missing": self.missing,
        }


def diagnose_run(run: RunDir) -> Diagnosis:
    """Judge a run, and keep the answer in its `diagnosis.json`.

    Raises:
        RunDirectoryError: If the run cannot be read, or not be written to.
    """
    diagnosis = diagnose(Evidence.of_run(run))
    keep_diagnosis(run, diagnosis)
    return diagnosis


def keep_diagnosis(run: RunDir, diagnosis: Diagnosis) -> None:
    """Write a run's `diagnosis.json`; no verdict at all does not replace one."""
    if diagnosis.exit_code == 2 and run.diagnosis.exists():
        return
    write_json(run.diagnosis, {"run": str(run.path), **diagnosis.as_json()})


def diagnose(evidence: Evidence) -> Diagnosis:
    """Ask every rule; one that fails takes neither the others nor a training with it."""
    findings: list[Finding] = []
    not_judged: dict[str, str] = {}
    for each in RULES.values():
        try:
            findings += checked_findings(each, each.check(evidence))
        except CannotJudge as reason:
            not_judged[each.id] = str(reason)
        # A rule may be anyone's, and raise anything.
        except Exception as error:
            not_judged[each.id] = f"the rule failed{_place(error)}: {type(error).__name__}: {error}"
    findings.sort(key=lambda f: (SEVERITIES.index(f.severity), RULES[f.rule].rank))
    return Diagnosis(
        tuple(with_possible_remedies(finding, evidence.config) for finding in findings),
        not_judged,
        len(RULES) - len(not_judged),
        evidence.missing,
        _unheard(evidence),
    )


def _unheard(evidence: Evidence) -> str:
    try:
        return "" if len(evidence.windows) else "no window was recorded"
    except CannotJudge as reason:
        return str(reason)


def _place(error: Exception) -> str:
    [*_, last] = traceback.extract_tb(error.__traceback__)
    return f" ({Path(last.filename).name}, line {last.lineno})"


def with_possible_remedies(finding: Finding, config: Config | None) -> Finding:
    """Leave out what changes nothing in this config, or does not fit it.

    Without a config there is nothing to set, and remedies are said in words.
    """
    if config is None:
        return replace(finding, remedies=tuple(map(in_words, finding.remedies)))
    kept = tuple(remedy for remedy in finding.remedies if _changes(config, remedy))
    return replace(finding, remedies=kept)


def _changes(config: Config, remedy: Remedy) -> bool:
    values = config.model_dump(mode="json")
    for key, value in remedy.patch.items():
        *sections, last = key.split(".")
        section: Any = values
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            return False
        section[last] = value
    try:
        changed = Config.model_validate(values)
    except ValidationError:
        return False
    return changed != config and not any(problem for check in CHECKS for problem in check(changed))


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Return the diagnosis for people, within 80 columns."""
    lines = []
    for finding in diagnosis.findings:
        lines += [*_paragraph(f"{finding.severity.upper()} {finding.rule}: {finding.message}.", "")]
        lines += _paragraph(_evidence_line(finding), "  ")
        for remedy in finding.remedies:
            lines += (
                [f"  try {_options(remedy)}", f"      ({remedy.why})"]
                if remedy.patch
                else _paragraph(f"try {remedy.why}", "  ")
            )
        lines.append("")
    if diagnosis.exit_code == 2:
        why = diagnosis.unheard or "no rule could run"
        lines += [*_paragraph(f"could not judge whether it is healthy: {why}.", ""), ""]
    elif not diagnosis.findings:
        lines += ["healthy: no rule found anything", ""]
    lines += _paragraph(f"{diagnosis.num_rules} rules ran.", "")
    names_of: dict[str, list[str]] = {}
    for name, reason in {**diagnosis.not_judged, **diagnosis.missing}.items():
        names_of.setdefault(reason, []).append(name)
    for reason, names in names_of.items():
        lines += _paragraph(f"not judged: {', '.join(names)} ({reason})", "")
    return "\n".join(lines)


def headline(finding: Finding) -> str:
    """Return a finding in few lines, without its evidence, within 80 columns."""
    text = f"{finding.severity.upper()} {finding.rule}: {finding.message}."
    return "\n".join(_paragraph(text, ""))


def _evidence_line(finding: Finding) -> str:
    numbers = ", ".join(
        f"{name} {value:.3g} (bound {finding.thresholds[name]:.3g})"
        if name in finding.thresholds
        else f"{name} {value:.3g}"
        for name, value in finding.numbers.items()
    )
    if not finding.windows_seen:
        return f"{numbers}{_layers(finding.layers)}"
    first, last = finding.steps
    text = f"steps {first:,} to {last:,}"
    if finding.windows_seen > 1:
        text += f", {finding.windows_fired} of {finding.windows_seen} windows"
    return f"{text}: {numbers}{_layers(finding.layers)}"


def _options(remedy: Remedy) -> str:
    """The options, on several lines of one command where one is too short."""
    if len(remedy.options) + len("  try ") <= _WIDTH:
        return remedy.options
    return remedy.options.replace(" --set ", " \\\n      --set ")


def _layers(names: Sequence[str], most: int = 4) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"; {', '.join(names[:most])}{more}"


def _paragraph(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )
