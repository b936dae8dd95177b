"""The page of a comparison, from top to bottom."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.compare.curves import curves_figure, has_losses_of_steps, ratio_figure
from trainer.compare.groups import ABSENT, Group, value_text
from trainer.compare.profiles import common_places, profiles_figure
from trainer.compare.results import Results
from trainer.compare.tables import results_blocks
from trainer.compare.verdict import (
    listed,
    missing,
    verdict,
)
from trainer.diagnosis import Finding
from trainer.pages import (
    Figure,
    Html,
    Section,
    bullets,
    copyable,
    element,
    legend,
    render_page,
    table,
)

Blocks = list[str | Html | Figure]

# Differs between any two runs, and says nothing of them.
_NOT_COMPARED = frozenset({"command", "seed", "runtime"})
_MOST_IN_A_TITLE = 3


def comparison_page(results: Results, folder: Path) -> str:
    """Return the page of a comparison.

    Args:
        results: Of the runs.
        folder: That it will lie in; links lead from there.

    Raises:
        MissingDependencyError: If plotly is not there.
    """
    groups = results.groups
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    sections = [
        Section("Results", results_blocks(results, folder)),
        Section("What differs", _differences_section(results)),
        Section("Curves", _curves_section(groups)),
        Section("Gradients by depth", _profiles_section(groups)),
        Section("First over last layer", _ratio_section(groups)),
        Section("Findings", _findings_section(groups)),
        Section("Compare again", _command_section(groups)),
    ]
    num_runs = sum(len(group.runs) for group in groups)
    names = listed([group.label for group in groups])
    return render_page(
        f"Comparison of {names if len(groups) <= _MOST_IN_A_TITLE else f'{num_runs} runs'}",
        _sentence(verdict(results)),
        sections,
        summary=_missing(results),
        footer=f"Written {written} from {num_runs} runs.",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("not ") else text


def _missing(results: Results) -> Html | None:
    found = missing(results)
    if not found:
        return None
    count = sum(len(group.runs) for group in results.groups)
    # What several runs lack is said once.
    by_reason: dict[tuple[str, str], list[str]] = {}
    for label, absent in found.items():
        for what, reason in absent.items():
            by_reason.setdefault((what, reason), []).append(label)
    items = bullets(
        [element("b", f"{_which(labels, count)}, {what}"), f": {reason}"]
        for (what, reason), labels in by_reason.items()
    )
    return element("aside", element("h2", "What is missing"), items, class_="missing")


def _which(labels: Sequence[str], count: int) -> str:
    if len(labels) < count:
        return listed(labels)
    return "both runs" if count == 2 else f"all {count} runs"


def _differences_section(results: Results) -> Blocks:
    groups = [group for group in results.groups if group.values is not None]
    blocks: Blocks = []
    if len(results.groups) == 1:
        blocks.append("All runs have one config; they differ in nothing but their seed and name.")
    elif results.differences:
        columns = ["key", *(group.label for group in groups)]
        rows = [[key, *map(_value, row)] for key, row in results.differences.items()]
        blocks.append("The keys of the full configs that differ, defaults included; not the name.")
        blocks.append(table(columns, rows, label="Keys of the configs that differ"))
    without = [group.label for group in results.groups if group.values is None]
    if without:
        blocks.append(f"The config of {listed(without)} is not known.")
    if len(seeds := {seed for group in results.groups for seed in group.seeds}) == 1:
        (seed,) = seeds
        told = "Their seed is not known." if seed is None else f"All have seed {seed}."
    else:
        told = f"Seeds of {'; '.join(map(_seeds, results.groups))}."
    blocks.append(told)
    return [*blocks, *_environments(results.groups)]


def _seeds(group: Group) -> str:
    listed_seeds = ", ".join("unknown" if seed is None else str(seed) for seed in group.seeds)
    return f"{group.label}: {listed_seeds}"


def _value(value: Any) -> Html | str:
    text = value_text(value)
    return element("span", text, class_="soft") if value is ABSENT else element("code", text)


def _environments(groups: Sequence[Group]) -> Blocks:
    runs = [(label, run) for g in groups for label, run in zip(g.labels, g.runs, strict=True)]
    told = [(label, _flat(run.environment)) for label, run in runs if run.environment]
    keys = dict.fromkeys(key for _, values in told for key in values)
    rows = [
        [key, *(values.get(key, "\u2013") for _, values in told)]
        for key in keys
        if len({values.get(key) for _, values in told}) > 1
    ]
    if not rows:
        return []
    columns = ["environment", *(label for label, _ in told)]
    return [
        element("h3", "Environment"),
        "The runs were not made in the same circumstances:",
        table(columns, rows, label="What differs in the environment"),
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if not prefix and key in _NOT_COMPARED:
            continue
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def _curves_section(groups: Sequence[Group]) -> Blocks:
    figure = curves_figure(groups)
    if figure is None:
        return ["No run has ended an epoch or recorded a step: there is no curve to draw."]
    loss = (
        "the training loss is the median of the steps in each window"
        if has_losses_of_steps(groups)
        else "the training loss is the mean of each epoch"
    )
    thin = " Thin lines are single seeds." if any(len(g.runs) > 1 for g in groups) else ""
    words = f"Accuracies are those of whole epochs; {loss}.{thin}"
    return [legend(figure.legend, scale=None), figure, _soft(words)]


def _profiles_section(groups: Sequence[Group]) -> Blocks:
    figure = profiles_figure(groups)
    if figure is None:
        return ["No run has recorded its gradients."]
    logs = [run.log for group in groups for run in group.runs if run.log is not None]
    words = (
        "Each run's own first, middle and last window of recorded steps. Gradient norm: L2 norm "
        "of the raw gradient of each kernel, before clipping. Update ratio: norm of a step's "
        "change over norm of the weight."
    )
    if common_places(logs) is None:
        words += (
            " The networks differ in their layers: places are laid from the first kernel to the "
            "last one, whatever lies between; point at a line to read which layer it is."
        )
    return [
        "From the first layer on the left to the last one on the right: level is healthy, a "
        "slope of many powers of ten is a signal that dies or blows up on its way.",
        legend(figure.legend, scale=None),
        figure,
        _soft(words),
    ]


def _ratio_section(groups: Sequence[Group]) -> Blocks:
    figure = ratio_figure(groups)
    if figure is None:
        return ["No run has recorded its gradients."]
    return [
        "How much of the gradient arrives at the first layer, over time: the norm of the first "
        "kernel's gradient over that of the last one's.",
        legend(figure.legend, scale=None),
        figure,
    ]


def _findings_section(groups: Sequence[Group]) -> Blocks:
    by_label = {
        label: _gravest(run.diagnosis.findings)
        for group in groups
        for label, run in zip(group.labels, group.runs, strict=True)
    }
    rules = dict.fromkeys(rule for found in by_label.values() for rule in found)
    if not rules:
        return ["No rule found anything in any run."]
    columns = ["finding", *by_label, "what it says of the first that has it"]
    rows = []
    for rule in rules:
        first = next(found[rule] for found in by_label.values() if rule in found)
        cells = [
            element("span", found[rule].severity, class_=_KINDS[found[rule].severity])
            if rule in found
            else "\u2013"
            for found in by_label.values()
        ]
        rows.append([rule, *cells, first.message])
    return [table(columns, rows, label="Findings by run", prose=columns[-1:])]


def _gravest(findings: Sequence[Finding]) -> dict[str, Finding]:
    """Return one finding a rule: the first, for the gravest come first."""
    by_rule: dict[str, Finding] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, finding)
    return by_rule


_KINDS = {"error": "bad", "warning": "warn", "note": "soft"}


def _command_section(groups: Sequence[Group]) -> Blocks:
    paths = [str(run.path) for group in groups for run in group.runs]
    blocks: Blocks = [copyable(shlex.join(["trainer", "compare", *paths]), "This comparison")]
    without = [run for group in groups for run in group.runs if run.is_run and not run.evaluation]
    if without:
        lines = "\n".join(shlex.join(["trainer", "evaluate", str(run.path)]) for run in without)
        blocks.append(copyable(lines, "Evaluate on the test set, then compare again"))
    return blocks


def _soft(text: str) -> Html:
    return element("p", text, class_="soft small")
