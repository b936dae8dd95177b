"""The profile by depth: what each kernel gets, at the beginning, in the middle and at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.gradient_log import GradientLog
from trainer.pages import Figure, plot_text
from trainer.report.columns import forward_order, raw_is_nonfinite, update_is_nonfinite
from trainer.report.scales import numbers, place_axis, power, unique_labels

STYLES = (
    ("dot", "var(--warn)", "diamond", "first"),
    ("dash", "var(--accent)", "square", "middle"),
    ("solid", "var(--ink)", "circle", "last"),
)
"""Dash, colour and symbol of the chosen windows, and which one it is."""


def chosen_windows(log: GradientLog) -> list[tuple[int, tuple[str, str, str, str]]]:
    """Return the first, the middle and the last window of a log with their styles."""
    count = len(log.window_steps)
    chosen = dict(zip((0, count // 2, count - 1), STYLES, strict=True))
    # Of a short log some of them are the same one.
    return sorted(chosen.items())


def window_name(log: GradientLog, window: int) -> str:
    """Return which steps a window holds."""
    first, last = (int(step) for step in log.window_steps[window])
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def profile_figure(log: GradientLog) -> Figure:
    """Return gradient norm and update ratio by depth.

    Args:
        log: With at least one window.
    """
    kernels = log.kernels if len(log.kernels) else forward_order(log)
    labels = unique_labels([log.header.paths[i].removesuffix("/kernel") for i in kernels])
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"hovermode": "x unified"}
    for name, stat, is_nonfinite, axis, along in (
        ("gradient norm", "raw_norm/median", raw_is_nonfinite(log), "", (0.53, 1.0)),
        ("update ratio", "update_ratio/median", update_is_nonfinite(log), "2", (0.0, 0.47)),
    ):
        values, lost = log.stat(stat)[:, kernels].astype(np.float64), is_nonfinite[:, kernels]
        rows = {
            window: np.where(lost[window], np.inf, values[window])
            for window, _ in chosen_windows(log)
        }
        low, high = extent(list(rows.values()))
        for window, (dash, colour, symbol, _) in chosen_windows(log):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": plot_text(window_name(log, window)),
                    "x": labels,
                    "yaxis": f"y{axis}",
                    "line": {"color": colour, "dash": dash, "width": 2},
                    **points(rows[window], low, high, colour, symbol),
                    "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
                }
            )
        layout[f"yaxis{axis}"] = {
            "domain": along,
            "title": {"text": name, "standoff": 6},
            "zeroline": False,
            **ticks(low, high, list(rows.values())),
        }
    below = {"anchor": "y2", "tickangle": -45, "tickfont": {"size": 11}}
    layout["xaxis"] = {**place_axis(labels, 36), **below}
    narrow = {**layout, "xaxis": {**place_axis(labels, 14, 20), **below, "tickangle": -90}}
    label = "Gradient norm and update ratio by depth, of the first, the middle and the last window"
    entries = [
        (dash, colour, f"{which}: {window_name(log, window)}")
        for window, (dash, colour, _, which) in chosen_windows(log)
    ]
    tall = Figure(label, data, narrow, 560)
    return Figure(label, data, layout, 560, legend=entries, narrow=tall)


def extent(rows: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return the powers of ten between which the positive values of some rows lie."""
    values = np.concatenate(rows)
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return -1, 0
    low, high = math.floor(np.log10(values.min())), math.ceil(np.log10(values.max()))
    return low, max(high, low + 1)


def points(
    row: np.ndarray, low: int, high: int, colour: str, symbol: str
) -> dict[str, list[Any] | dict[str, Any]]:
    """Return where each value is drawn; zeros below, and what is not finite above the rest."""
    places: list[float] = []
    for value in row.tolist():
        if value == 0:
            places.append(low - 1)
        elif math.isinf(value):
            places.append(high + 1)
        else:
            places.append(math.log10(value) if value == value else float("nan"))
    is_outside = [value == 0 or math.isinf(value) for value in row.tolist()]
    return {
        "y": list(numbers(places)),
        "text": [_in_words(value) for value in row.tolist()],
        "marker": {
            "color": ["var(--bad)" if outside else colour for outside in is_outside],
            "symbol": ["x" if outside else symbol for outside in is_outside],
            "size": 6,
        },
    }


def _in_words(value: float) -> str:
    if value != value:
        return "absent"
    return "not finite" if math.isinf(value) else f"{value:.3g}"


def ticks(low: int, high: int, rows: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return a logarithmic axis, with places for what has no logarithm if there is any."""
    values = np.concatenate(rows)
    stride = math.ceil((high - low) / 6)
    places = list(range(low, high + 1, stride))
    texts = [power(place) for place in places]
    bottom, top = low - 0.3, high + 0.3
    if (values == 0).any():
        places, texts, bottom = [low - 1, *places], ["0", *texts], low - 1.4
    if np.isinf(values).any():
        places, texts, top = [*places, high + 1], [*texts, "not finite"], high + 1.4
    return {"tickvals": places, "ticktext": texts, "range": [bottom, top]}
