"""What a comparison comes to, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from trainer.compare.groups import ABSENT, MOST_KEYS_OF_A_LABEL, Group
from trainer.compare.results import (
    FIRST_OVER_LAST,
    Decision,
    Interval,
    Quantity,
    Results,
    group_mean,
)
from trainer.diagnosis.finding import Severity
from trainer.report.reading import RunFiles
from trainer.report.verdict import absences

_MOST_IN_A_SENTENCE = 3


def verdict(results: Results) -> str:
    """Return which is better, whether that is more than chance, and how the gradients stand."""
    parts = [_accuracy(results), _gradients(results.groups)]
    note = _other_differences(results)
    return "; ".join(part for part in (*parts, note) if part) + "."


def _accuracy(results: Results) -> str:
    quantity = results.accuracy()
    groups = results.groups
    if quantity is None:
        them = listed([group.label for group in groups]) if len(groups) > 1 else "the runs"
        return f"{them} have no accuracy in common"
    images = f"of the {quantity.title.removesuffix(' accuracy')} images right"
    decision = results.decisions[quantity.key]
    if len(groups) == 1:
        (group,) = groups
        seeds = "one seed" if group.num_seeds == 1 else f"{group.num_seeds} seeds"
        return (
            f"{len(group.runs)} runs of one config ({seeds}) get "
            f"{interval_text(quantity, _shown(group, decision, 0))} {images}"
        )
    order = _best_first(results, quantity)
    figures = [
        (groups[index].label, interval_text(quantity, _shown(groups[index], decision, index)))
        for index in order
    ]
    if reason := results.why_incomparable(quantity):
        each = listed([f"{label} {figure}" for label, figure in figures])
        return f"not to be held against each other, because {reason}: {each} {images}"
    if decision.better is not None:
        first, *others = _shortened(figures)
        rest = listed([f"{label} with {figure}" for label, figure in others])
        return f"{first[0]} is better than {rest}: it gets {first[1]} {images}"
    means = [quantity.text(group_mean(group, quantity)) for group in groups]
    if len(set(means)) == 1:
        all_of_them = "both" if len(groups) == 2 else "all"
        return f"{listed([g.label for g in groups])} {all_of_them} get {means[0]} {images}"
    (best, figure), *others = _shortened(figures)
    rest = ", ".join(f"{label} {each}" for label, each in others)
    return f"{best} gets {figure} {images}, {rest}, {_doubt(decision)}"


def _doubt(decision: Decision) -> str:
    if any(each is not None and each.num_seeds < 2 for each in decision.intervals):
        return "and one seed cannot tell whether that is more than chance"
    if "overlap" in decision.reason:
        return "which is within what seeds differ by"
    return f"and which is better is open: {decision.reason}"


def _shown(group: Group, decision: Decision, index: int) -> Interval:
    interval = decision.intervals[index]
    if interval is not None:
        return interval
    return Interval(group_mean(group, decision.quantity), math.nan, 1)


def interval_text(quantity: Quantity, interval: Interval) -> str:
    """Return a mean with half the width of its 95 % interval, if it has one."""
    mean = quantity.text(interval.mean)
    if not math.isfinite(interval.half_width):
        return mean
    half = quantity.text(interval.half_width)
    unit = "\u00a0%" if mean.endswith("\u00a0%") else ""
    return f"{mean.removesuffix(unit)}\u00a0\u00b1\u00a0{half.removesuffix(unit)}{unit}"


def _best_first(results: Results, quantity: Quantity) -> list[int]:
    means = [group_mean(group, quantity) for group in results.groups]
    return sorted(range(len(means)), key=lambda index: -means[index])


def _shortened(figures: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    if len(figures) <= _MOST_IN_A_SENTENCE:
        return list(figures)
    return [
        figures[0],
        figures[1],
        (f"{len(figures) - 3} others, and last {figures[-1][0]}", figures[-1][1]),
    ]


def _gradients(groups: Sequence[Group]) -> str:
    told = [(group, _ratio(group), _judged(group)) for group in groups]
    if len(groups) > _MOST_IN_A_SENTENCE:
        ill = [
            f"{group.label} ({health(group.runs)})"
            for group, _, state in told
            if state.startswith("not in order")
        ]
        return f"the gradients are not in order in {listed(ill)}" if ill else ""
    parts = []
    is_named = False
    for group, ratio, state in told:
        if all(run.log is None for run in group.runs):
            parts.append(f"of {group.label} no gradients are known")
        elif math.isnan(ratio):
            parts.append(
                f"in {group.label} the first or the last layer's gradient is zero or not finite "
                f"({state})"
            )
        elif is_named:
            parts.append(f"in {group.label} {FIRST_OVER_LAST.text(ratio)} ({state})")
        else:
            is_named = True
            parts.append(
                f"in {group.label} the first layer's gradient is {FIRST_OVER_LAST.text(ratio)} of "
                f"the last one's ({state})"
            )
    return ", ".join(parts)


def _ratio(group: Group) -> float:
    found = [ratio for ratio in map(FIRST_OVER_LAST.of, group.runs) if math.isfinite(ratio)]
    return median(found) if found else math.nan


_SOUND = ("in order", "not recorded", "not judged")
WARNED = "warning: "
_MOST_WARNINGS = 2


def _judged(group: Group) -> str:
    state = health(group.runs)
    return state if state in _SOUND or state.startswith(WARNED) else f"not in order: {state}"


def health(runs: Sequence[RunFiles]) -> str:
    """Return the errors that rules found in any of some runs, else their warnings, if any."""
    if all(run.log is None for run in runs):
        return "not recorded"
    if errors := _rules(runs, "error"):
        return ", ".join(errors)
    if any(run.diagnosis.exit_code == 2 for run in runs):
        return "not judged"
    warnings = _rules(runs, "warning")
    if not warnings:
        return "in order"
    more = len(warnings) - _MOST_WARNINGS
    return WARNED + ", ".join(warnings[:_MOST_WARNINGS]) + (f" and {more} more" if more > 0 else "")


def _rules(runs: Sequence[RunFiles], severity: Severity) -> list[str]:
    """Return the rules that found something of a severity, the gravest first."""
    found = [
        finding.rule
        for run in runs
        for finding in run.diagnosis.findings
        if finding.severity == severity
    ]
    return list(dict.fromkeys(found))


def _other_differences(results: Results) -> str:
    differing = results.differences
    # Keys of a section that only one kind has belong to the kind.
    common = [key for key, row in differing.items() if ABSENT not in row]
    if len(common) <= MOST_KEYS_OF_A_LABEL:
        return ""
    return f"they differ in {len(differing)} keys of the config"


def listed(items: Sequence[str]) -> str:
    """Return names as a sentence has them."""
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last


def missing(results: Results) -> dict[str, dict[str, str]]:
    """Return what the comparison cannot show, and why, by run."""
    found = {}
    for group in results.groups:
        for label, run in zip(group.labels, group.runs, strict=True):
            absent = absences(run)
            if run.is_run and not run.evaluation and "evaluation" not in absent:
                absent["test accuracy"] = "the run was not evaluated on the test set"
            if run.log is None and "log" not in absent:
                absent["gradients"] = "they were not recorded"
            if absent:
                found[label] = absent
    return found
