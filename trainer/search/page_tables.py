"""The tables of a search's page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from trainer.config.search_schema import Parameter, SearchConfig
from trainer.pages import Cell, Html, bullets, element, link, table
from trainer.search.display import in_words, short_names
from trainer.search.pruning import is_scored
from trainer.search.trials import TrialRecord


def failures_table(trials: Sequence[TrialRecord]) -> str | Html:
    """Return why trials did not train to their end, the most frequent cause first."""
    by_cause: dict[tuple[str, str], list[TrialRecord]] = {}
    for trial in trials:
        if trial.outcome is not None and trial.outcome.state != "done":
            key = (trial.outcome.cause, trial.outcome.state)
            by_cause.setdefault(key, []).append(trial)
    if not by_cause:
        return "No trial failed, and none was stopped early."
    rows: list[list[Any]] = [
        [[cause, _state_word(state, "under")], len(same), _reasons(same)]
        for (cause, state), same in sorted(by_cause.items(), key=lambda item: -len(item[1]))
    ]
    return table(
        ["cause", "trials", "reasons in full"],
        rows,
        label="Trials that did not train to their end, by cause",
        numbers=["trials"],
        prose=["reasons in full"],
    )


def _reasons(trials: Sequence[TrialRecord]) -> Html:
    reasons: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        assert trial.outcome is not None
        reasons.setdefault(trial.outcome.reason, []).append(trial)
    return bullets([_links(same), f": {reason}"] for reason, same in reasons.items())


def _links(trials: Sequence[TrialRecord]) -> list[str]:
    links: list[str] = []
    for trial in trials:
        links += [", "] if links else []
        links.append(_folder_link(f"trial {trial.number}", trial))
    return links


def _folder_link(text: str, trial: TrialRecord) -> Html:
    return link(text, f"{trial.path.parent.name}/{trial.path.name}/")


def _state_word(state: str, place: str = "") -> Html:
    kind, word = {
        "done": ("good", "done"),
        "pruned": ("warn", "stopped early"),
        "failed": ("bad", "failed"),
    }.get(state, ("soft", state))
    return element("span", word, class_=f"{kind} {place}".rstrip())


def trials_table(
    search: SearchConfig, trials: Sequence[TrialRecord], best: TrialRecord | None
) -> Html:
    """Return all trials, with links to their folders."""
    names = short_names(list(search.space))
    columns = ["trial", search.objective, "how it ended", "gradients", "epochs", "seconds"]
    columns += [*names.values(), "why it ended", "worker"]
    numbers = [names[key] for key, each in search.space.items() if each.kind in _NUMBERS]
    return table(
        columns,
        [_trial_row(search, trial) for trial in trials],
        label="All trials",
        numbers=[search.objective, *numbers, "epochs", "seconds"],
        prose=["why it ended"],
        marked_row=None if best is None else list(trials).index(best),
        is_sortable=True,
    )


_NUMBERS = ("int", "float", "log_uniform")


def _trial_row(search: SearchConfig, trial: TrialRecord) -> list[Any]:
    outcome = trial.outcome
    number = Cell(_folder_link(str(trial.number), trial), trial.number)
    values = [_value_cell(trial, key) for key in search.space]
    epochs = Cell(f"{len(trial.history)}/{trial.point.epochs}", len(trial.history))
    if outcome is None:
        empty = Cell("")
        ended = _state_word("unfinished")
        return [number, empty, ended, empty, epochs, empty, *values, empty, trial.worker]
    health = {"healthy": "good", "unknown": "soft"}.get(outcome.health, "bad")
    has_score = is_scored(search, trial)
    return [
        number,
        Cell(f"{outcome.score:.4g}", outcome.score) if has_score else Cell(""),
        _state_word(outcome.state),
        element("span", outcome.health, class_=health),
        epochs,
        Cell(f"{outcome.seconds:.1f}", outcome.seconds),
        *values,
        outcome.reason,
        trial.worker,
    ]


def _value_cell(trial: TrialRecord, key: str) -> Cell:
    if key not in trial.point.values:
        return Cell("")
    value = trial.point.values[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(in_words(value), value if is_number else in_words(value))


def space_table(search: SearchConfig, best: TrialRecord | None) -> Html:
    """Return what was varied, with the best trial's values."""
    rows = []
    for key, parameter in search.space.items():
        values = {} if best is None else best.point.values
        conditions = [f"{k} is {' or '.join(map(in_words, v))}" for k, v in parameter.when.items()]
        rows.append(
            [
                element("code", key),
                _range(parameter),
                " and ".join(conditions),
                ", ".join(parameter.also),
                in_words(values[key]) if key in values else "",
            ]
        )
    columns = ["key", "values", "only if", "also sets", "best"]
    return table(columns, rows, label="What was varied", prose=["values"])


def _range(parameter: Parameter) -> str:
    if parameter.boolean:
        return "false or true"
    if parameter.choice:
        return ", ".join(
            each if isinstance(each, str) else json.dumps(each) for each in parameter.choice
        )
    low, high = map(in_words, parameter.extremes)
    kind = {"int": "whole", "float": "uniform", "log_uniform": "log-uniform"}[parameter.kind]
    step = f" in steps of {parameter.step}" if parameter.step else ""
    points = f", {parameter.points} values" if parameter.points else ""
    return f"{low} to {high}{step} ({kind}{points})"
