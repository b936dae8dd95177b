"""The tables of results, and why what is marked is marked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.compare.overlay import STYLES
from trainer.compare.results import Decision, Interval, Results
from trainer.compare.verdict import WARNED, health, interval_text
from trainer.pages import Cell, Figure, Html, bullets, element, link, table
from trainer.report.reading import RunFiles
from trainer.run_dir import RunDir


def results_blocks(results: Results, folder: Path) -> list[str | Html | Figure]:
    """Return the figures of each group with several seeds, of each run, and what is marked.

    Args:
        results: Of the runs.
        folder: That the page will lie in; links lead from there.
    """
    groups = results.groups
    has_seeds = any(len(group.runs) > 1 for group in groups)
    blocks: list[str | Html | Figure] = []
    if has_seeds:
        blocks += [element("h3", "By config"), _group_table(results), element("h3", "By run")]
    blocks.append(_run_table(results, folder))
    blocks.append(_how_it_is_decided(results))
    return blocks


def _group_table(results: Results) -> Html:
    titles = [each.title for each in results.quantities]
    columns = ["config", "seeds", "findings", *titles]
    rows = []
    for index, group in enumerate(results.groups):
        cells: list[Any] = [_named(group.label, index), group.num_seeds]
        cells.append(_health_cell(group.runs))
        for quantity in results.quantities:
            decision = results.decisions[quantity.key]
            cells.append(_marked(decision, index, decision.intervals[index]))
        rows.append(cells)
    return table(columns, rows, label="Results by config", numbers=["seeds", *titles])


def _marked(decision: Decision, index: int, interval: Interval | None) -> Html | str:
    if interval is None:
        return "\u2013"
    text = interval_text(decision.quantity, interval)
    if decision.better != index:
        return text
    return element("strong", text, " ", element("span", "better", class_="under"), class_="good")


def _run_table(results: Results, folder: Path) -> Html:
    titles = [each.title for each in results.quantities]
    columns = ["run", "state", "epochs", "findings", *titles, "folder"]
    rows = []
    for index, group in enumerate(results.groups):
        for label, run in zip(group.labels, group.runs, strict=True):
            cells: list[Any] = [_named(label, index), run.state if run.is_run else "bare log"]
            cells += [epochs_text(run), _health_cell([run])]
            for quantity in results.quantities:
                value = quantity.of(run)
                text = quantity.text(value) if math.isfinite(value) else "\u2013"
                cells.append(Cell(text, value))
            rows.append([*cells, _folder(run, folder)])
    numbers = ["epochs", *titles]
    return table(columns, rows, label="Results by run", numbers=numbers, is_sortable=True)


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
        "what else the machine did; MiB are the most that the process has had. First over last: "
        "the gradient norm of the first kernel over that of the last one, in the last window."
    )
    return element("div", element("p", rule, note), unmarked, class_="soft small")
