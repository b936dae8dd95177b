"""The plots of a search's page, but for the parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.search_schema import SearchConfig
from trainer.pages import Figure, plot_text, rounded
from trainer.search.display import short_names
from trainer.search.importance import Importance, Importances
from trainer.search.pruning import is_scored
from trainer.search.scales import label
from trainer.search.trials import TrialRecord

_MOST_CURVE_POINTS = 120_000


def hover_text(trial: TrialRecord, search: SearchConfig) -> str:
    """Return what a plot says of a trial, in plotly's HTML."""
    names = short_names(list(search.space))
    outcome = trial.outcome
    head = f"<b>trial {trial.number}</b>"
    if outcome is None:
        head += f" unfinished after {len(trial.history)} epochs"
    elif outcome.state == "failed":
        head += f" failed: {plot_text(outcome.cause)}"
    elif not is_scored(search, trial):
        head += f" pruned: {plot_text(outcome.cause)}"
    else:
        how = "" if outcome.state == "done" else f" (pruned: {plot_text(outcome.cause)})"
        head += f" {plot_text(search.objective)} {outcome.score:.5g}{how}"
    lines = [
        f"{plot_text(names[key])} {plot_text(label(value))}"
        for key, value in trial.point.values.items()
        if key in names
    ]
    return "<br>".join([head, *lines])


def learning_curves(
    search: SearchConfig, trials: Sequence[TrialRecord], best: TrialRecord | None
) -> Figure:
    """Return the objective of every trial by epoch.

    Args:
        search: With the objective.
        trials: With a history, at least one.
        best: Which stands out.
    """
    ordered = sorted(trials, key=lambda t: (t is best, is_scored(search, t)))
    curves = [[rounded(row.get(search.objective)) for row in t.history] for t in ordered]
    stride = max(1, math.ceil(sum(map(len, curves)) / _MOST_CURVE_POINTS))
    values = [each for curve in curves for each in curve if each is not None]
    is_log = bool(values) and min(values) > 0 and max(values) / min(values) > 30
    data = [
        _curve(search, trial, curve, trial is best, stride)
        for trial, curve in zip(ordered, curves, strict=True)
    ]
    epochs: dict[str, Any] = {"title": {"text": "epoch"}}
    if max(map(len, curves)) <= 12:
        epochs["dtick"] = 1
    axis: dict[str, Any] = {"title": {"text": plot_text(search.objective)}}
    if is_log:
        axis["type"] = "log"
    return Figure(
        label=f"Learning curves: {search.objective} of every trial by epoch",
        data=data,
        layout={"xaxis": epochs, "yaxis": axis},
    )


def _curve(
    search: SearchConfig,
    trial: TrialRecord,
    values: Sequence[float | None],
    is_best: bool,
    stride: int,
) -> dict[str, Any]:
    colour, dash = curve_style(trial)
    kept = values[::stride]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(kept) < 3 or is_best else "lines",
        "x0": 1,
        "dx": stride,
        "y": kept,
        "line": {
            "color": "var(--ink)" if is_best else colour,
            "dash": dash,
            "width": 4 if is_best else 1.6,
        },
        "opacity": 1 if is_best else 0.75,
        "text": hover_text(trial, search),
        "hovertemplate": "%{text}<br>epoch %{x}: %{y:.5g}<extra></extra>",
    }


def curve_style(trial: TrialRecord) -> tuple[str, str]:
    """Return the colour and the dash of a trial's curve."""
    if trial.outcome is None:
        return "var(--soft)", "dashdot"
    return {
        "done": ("var(--accent)", "solid"),
        "pruned": ("var(--warn)", "dash"),
        "failed": ("var(--bad)", "dot"),
    }[trial.outcome.state]


def importance_figure(search: SearchConfig, found: Importances) -> Figure:
    """Return the importance of each parameter with its interval."""
    names = short_names(list(search.space))
    # Plotly counts from below.
    parameters = list(reversed(found.parameters))
    groups = [
        _intervals([each for each in parameters if each.is_told_from_chance], names, "accent"),
        _intervals([each for each in parameters if not each.is_told_from_chance], names, "soft"),
    ]
    return Figure(
        label="Importance of each parameter for the score, with its interval",
        data=[group for group in groups if group["x"]],
        layout={
            "xaxis": {"title": {"text": "share of the differences"}, "zerolinewidth": 2},
            "yaxis": {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": [plot_text(names[each.key]) for each in parameters],
                "range": [-0.6, len(parameters) - 0.4],
                "ticksuffix": "  ",
                "fixedrange": True,
                "showgrid": False,
            },
        },
        height=90 + 40 * len(parameters),
    )


def _intervals(
    parameters: Sequence[Importance], names: Mapping[str, str], colour: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "y": [plot_text(names[each.key]) for each in parameters],
        "x": [each.mean for each in parameters],
        "marker": {
            "color": f"var(--{colour})",
            "size": 11,
            "symbol": "circle" if colour == "accent" else "circle-open",
            "line": {"width": 2, "color": f"var(--{colour})"},
        },
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [each.high - each.mean for each in parameters],
            "arrayminus": [each.mean - each.low for each in parameters],
            "color": f"var(--{colour})",
            "thickness": 2,
            "width": 0,
        },
        "text": [f"{each.mean:.2f} ({each.low:.2f} to {each.high:.2f})" for each in parameters],
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
