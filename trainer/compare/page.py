"""The page of a comparison, from top to bottom."""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.compare.curves import VANISHED, curves_figure, has_losses_of_steps, ratio_figure
from trainer.compare.groups import ABSENT, Group, value_text
from trainer.compare.overlay import STYLES, legend_entries
from trainer.compare.profiles import common_places, profiles_figure
from trainer.compare.results import Decision, Interval, Results
from trainer.compare.verdict import (
    WARNED,
    health,
    interval_text,
    listed,
    missing,
    verdict,
)
from trainer.pages import (
    Cell,
    Figure,
    Html,
    Section,
    bullets,
    copyable,
    element,
    legend,
    link,
    render_page,
    table,
)
from trainer.report.reading import RunFiles
from trainer.run_dir import RunDir

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
        Section("Results", _results_section(results, folder)),
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


def _results_section(results: Results, folder: Path) -> Blocks:
    groups = results.groups
    has_seeds = any(len(group.runs) > 1 for group in groups)
    blocks: Blocks = []
    if has_seeds:
        blocks += [element("h3", "By config"), _group_table(results), element("h3", "By run")]
    blocks.append(_run_table(results, folder))
    blocks.append(_how_it_is_decided(results))
    return blocks


def _group_table(results: Results) -> Html:
    columns = ["config", "seeds", *(each.title for each in results.quantities), "findings"]
    rows = []
    for index, group in enumerate(results.groups):
        cells: list[Any] = [_named(group.label, index), group.num_seeds]
        for quantity in results.quantities:
            decision = results.decisions[quantity.key]
            cells.append(_marked(decision, index, decision.intervals[index]))
        rows.append([*cells, _health_cell(group.runs)])
    return table(columns, rows, label="Results by config", numbers=columns[1:-1])


def _marked(decision: Decision, index: int, interval: Interval | None) -> Html | str:
    if interval is None:
        return "\u2013"
    text = interval_text(decision.quantity, interval)
    if decision.better != index:
        return text
    return element("strong", text, " ", element("span", "better", class_="under"), class_="good")


def _run_table(results: Results, folder: Path) -> Html:
    titles = [each.title for each in results.quantities]
    columns = ["run", "state", "epochs", *titles, "findings", "folder"]
    rows = []
    for index, group in enumerate(results.groups):
        for label, run in zip(group.labels, group.runs, strict=True):
            cells: list[Any] = [_named(label, index), run.state if run.is_run else "bare log"]
            cells.append(epochs_text(run))
            for quantity in results.quantities:
                value = quantity.of(run)
                text = quantity.text(value) if math.isfinite(value) else "\u2013"
                cells.append(Cell(text, value))
            cells.append(_health_cell([run]))
            rows.append([*cells, _folder(run, folder)])
    return table(columns, rows, label="Results by run", numbers=columns[2:-2], is_sortable=True)


def _named(label: str, index: int) -> Html:
    dash, colour, _ = STYLES[index]
    stroke = element("span", class_=f"stroke {dash} key", style=f"border-color:{colour}")
    return element("span", stroke, label)


def _health_cell(runs: Sequence[RunFiles]) -> Html:
    state = health(runs)
    kind = {"in order": "good", "not recorded": "soft", "not judged": "soft"}.get(state)
    kind = kind or ("warn" if state.startswith(WARNED) else "bad")
    return element("span", state, class_=kind)


def epochs_text(run: RunFiles) -> str:
    """Return the epochs that have ended, of those that were asked for."""
    asked = "" if run.config is None else f"/{run.config.fit.epochs}"
    return f"{len(run.history)}{asked}"


def _folder(run: RunFiles, folder: Path) -> Html | str:
    name = run.path.resolve().name
    report = RunDir(run.path).report
    if not report.is_file():
        return name
    return link(name, os.path.relpath(report.resolve(), folder.resolve()))


def _how_it_is_decided(results: Results) -> Html:
    rule = (
        "\u201cBetter\u201d is marked where the 95\u00a0% interval of a config's mean over its "
        "seeds (Student's t, finished runs only) lies beyond that of every other config. "
        "\u00b1 is half the width of the interval. "
    )
    if len(results.groups) == 1:
        return element("p", "All runs are one config: there is nothing to mark.", class_="soft")
    reasons: dict[str, list[str]] = {}
    for decision in results.decisions.values():
        if decision.quantity.better is not None and decision.better is None:
            reasons.setdefault(decision.reason, []).append(decision.quantity.title)
    if all(group.num_seeds < 2 for group in results.groups):
        rule += (
            "Nothing is marked here: one seed each cannot tell a better config from a luckier "
            "seed. Train each with two or more seeds (--set seed=1), and compare all of them. "
        )
        reasons = {reason: titles for reason, titles in reasons.items() if "one seed" not in reason}
    explained = bullets(f"{', '.join(titles)}: {reason}" for reason, titles in reasons.items())
    unmarked = [element("p", "Not marked:", class_="soft"), explained] if reasons else []
    note = (
        "Accuracies are those at the end of the last epoch. Seconds and images/s also depend on "
        "what else the machine did. First over last: the gradient norm of the first kernel over "
        "that of the last one, in the last window."
    )
    return element("div", element("p", rule, note), unmarked, class_="soft small")


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
    return [legend(legend_entries(groups), scale=None), figure, _soft(words)]


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
        legend(legend_entries(groups), scale=None),
        figure,
        _soft(words),
    ]


def _ratio_section(groups: Sequence[Group]) -> Blocks:
    figure = ratio_figure(groups)
    if figure is None:
        return ["No run has recorded its gradients."]
    levels = [
        ("solid", "var(--soft)", "as strong as at the last layer"),
        ("dot", "var(--soft)", f"vanishing below {VANISHED:g}"),
    ]
    return [
        "How much of the gradient arrives at the first layer, over time: the norm of the first "
        "kernel's gradient over that of the last one's.",
        legend([*legend_entries(groups), *levels], scale=None),
        figure,
    ]


def _findings_section(groups: Sequence[Group]) -> Blocks:
    by_label = {
        label: {f.rule: f for f in run.diagnosis.findings}
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
