"""Plots against time, those of all runs laid over each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.compare.groups import Group
from trainer.compare.overlay import Line, legend_entries, overlaid
from trainer.pages import Figure
from trainer.report.columns import Columns
from trainer.report.curves import is_for_log, medians, value_scale
from trainer.report.profile import extent, points, ticks
from trainer.report.reading import RunFiles

VANISHED = 1e-3
"""First over last layer, below which a gradient is said to vanish (Zhang et al. 2021)."""


@dataclass(frozen=True)
class _Panel:
    """One of the plots of the curves.

    Attributes:
        title: Of its vertical axis.
        kind: What `value_scale` calls it.
        line_of: Makes the line of a run, None without one.
        place: Row from the top, and column; alone in its row it is as wide as both.
    """

    title: str
    kind: str
    line_of: Callable[[RunFiles], Line | None]
    place: tuple[int, int]


def curves_figure(groups: Sequence[Group]) -> Figure | None:
    """Return losses, accuracies and learning rates; None if there are none at all.

    Args:
        groups: At most eight.
    """
    panels = [
        _Panel("training loss", "loss", loss_line(groups), (0, 0)),
        _Panel("validation loss", "loss", _by_epoch("val_loss"), (0, 1)),
        _Panel("training accuracy", "accuracy", _by_epoch("accuracy"), (1, 0)),
        _Panel("validation accuracy", "accuracy", _by_epoch("val_accuracy"), (1, 1)),
        _Panel("learning rate", "learning rate", _learning_rate, (2, 0)),
    ]
    drawn = [
        (panel, traces)
        for panel, traces in (
            (panel, overlaid(groups, panel.line_of, _axes(index)))
            for index, panel in enumerate(panels)
        )
        if traces
    ]
    if not drawn:
        return None
    label = "Curves of all runs: " + ", ".join(panel.title for panel, _ in drawn)
    data = [trace for _, traces in drawn for trace in traces]
    rows = sorted({panel.place[0] for panel, _ in drawn})
    wide: dict[str, Any] = {"hovermode": "closest"}
    narrow: dict[str, Any] = {"hovermode": "closest"}
    for position, (panel, traces) in enumerate(drawn):
        row, column = panel.place
        is_alone = sum(other.place[0] == row for other, _ in drawn) == 1
        start = 0.0 if is_alone else 0.53 * column
        across = [start, 1.0 if is_alone else start + 0.47]
        # All plots are zoomed along time together.
        leader = drawn[0][1][0]["xaxis"]
        _lay_out(wide, panel, traces, leader, across, (rows.index(row), len(rows)))
        _lay_out(narrow, panel, traces, leader, [0.0, 1.0], (position, len(drawn)))
    tall = Figure(label, data, narrow, 90 + 190 * len(drawn))
    entries = legend_entries(groups)
    return Figure(label, data, wide, 90 + 220 * len(rows), legend=entries, narrow=tall)


def _lay_out(
    layout: dict[str, Any],
    panel: _Panel,
    traces: Sequence[dict[str, Any]],
    leader: str,
    across: list[float],
    place: tuple[int, int],
) -> None:
    """Put a plot into a layout, as one row of so many."""
    x, y = traces[0]["xaxis"], traces[0]["yaxis"]
    time: dict[str, Any] = {"domain": across, "anchor": y, "zeroline": False}
    if place[0] == place[1] - 1:
        time["title"] = {"text": "epoch", "standoff": 4}
    if x != leader:
        time["matches"] = leader
    values = {"title": {"text": panel.title, "standoff": 6}, "nticks": 5}
    values |= value_scale(panel.kind, traces)
    if panel.kind == "learning rate":
        peaks = [max((y for y in trace["y"] if y is not None), default=0) for trace in traces]
        if is_for_log(min(peaks), max(peaks)):
            values["type"] = "log"
    layout[f"xaxis{x[1:]}"] = time
    layout[f"yaxis{y[1:]}"] = {**values, "domain": domain(*place), "anchor": x}


def domain(row: int, count: int) -> list[float]:
    """Return where a row of plots lies, counted from the top; from 0 to 1, bottom up."""
    gap = 0.22 / count
    height = (1 - gap * (count - 1)) / count
    top = 1 - row * (height + gap)
    return [max(top - height, 0.0), top]


def _axes(index: int) -> tuple[str, str]:
    suffix = str(index + 1) if index else ""
    return f"x{suffix}", f"y{suffix}"


def _by_epoch(name: str) -> Callable[[RunFiles], Line | None]:
    def line_of(run: RunFiles) -> Line | None:
        values = run.column(name)
        if not any(map(math.isfinite, values)):
            return None
        # An epoch's figures are those at its end.
        epochs = [row.get("epoch", index) + 1 for index, row in enumerate(run.history)]
        words = [f"epoch {x:g}: {y:.4f}" for x, y in zip(epochs, values, strict=True)]
        return Line(epochs, values, words)

    return line_of


def has_losses_of_steps(groups: Sequence[Group]) -> bool:
    """Whether the loss of each step is there for every run, to be drawn by epoch."""
    return all(
        run.log is not None and run.log.header.has_loss and run.epoch_steps is not None
        for group in groups
        for run in group.runs
    )


def loss_line(groups: Sequence[Group]) -> Callable[[RunFiles], Line | None]:
    """Return what draws the training loss: by step if all runs have it, else by epoch."""
    return (
        (lambda run: _of_steps(run, "loss")) if has_losses_of_steps(groups) else _by_epoch("loss")
    )


def _learning_rate(run: RunFiles) -> Line | None:
    if run.log is not None and run.epoch_steps is not None:
        return _of_steps(run, "learning_rate")
    return _by_epoch("learning_rate")(run)


def _of_steps(run: RunFiles, column: str) -> Line | None:
    if run.log is None or run.epoch_steps is None:
        return None
    columns = Columns.of(run.log)
    values = medians(columns.of_steps(run.log.steps["step"], run.log.steps[column]))
    if not any(map(math.isfinite, values)):
        return None
    epochs = _middles(columns) / run.epoch_steps
    words = [f"epoch {x:.3g}: {y:.4g}" for x, y in zip(epochs, values, strict=True)]
    return Line([float(f"{each:.6g}") for each in epochs], values, words)


def _middles(columns: Columns) -> np.ndarray:
    return np.asarray((columns.edges[:-1] + columns.edges[1:]) / 2)


def ratio_figure(groups: Sequence[Group]) -> Figure | None:
    """Return the first layer's gradient over the last one's by time; None without a log.

    Args:
        groups: At most eight.
    """
    runs = [run for group in groups for run in group.runs]
    logged = {id(run): ratios for run in runs if (ratios := _ratios(run)) is not None}
    if not logged:
        return None
    rows = [values for _, values in logged.values()]
    low, high = extent(rows)
    low, high = min(low, -1), max(high, 1)
    by_epoch = all(run.epoch_steps is not None for run in runs if id(run) in logged)

    def line_of(run: RunFiles) -> Line | None:
        if id(run) not in logged:
            return None
        columns, values = logged[id(run)]
        scale = (run.epoch_steps or 1.0) if by_epoch else 1.0
        drawn = points(values, low, high, "", "")
        times = [float(f"{each:.6g}") for each in _middles(columns) / scale]
        unit = "epoch" if by_epoch else "step"
        words = [f"{unit} {x:.6g}: {word}" for x, word in zip(times, drawn["text"], strict=True)]
        y = [math.nan if each is None else float(each) for each in drawn["y"]]
        return Line(times, y, words, is_outside(values))

    levels = [(0.0, "solid")]
    if low <= math.log10(VANISHED):
        levels.append((math.log10(VANISHED), "dot"))
    return Figure(
        "Gradient of the first layer over that of the last one, by time",
        overlaid(groups, line_of, ("x", "y")),
        {
            "xaxis": {"title": {"text": "epoch" if by_epoch else "step"}, "zeroline": False},
            "yaxis": {
                "title": {"text": "first over last layer", "standoff": 6},
                "zeroline": False,
                **ticks(low, high, rows),
            },
            "shapes": [_level(place, dash) for place, dash in levels],
        },
        340,
        legend=[
            *legend_entries(groups),
            ("solid", "var(--soft)", "as strong as at the last layer"),
            ("dot", "var(--soft)", f"vanishing below {VANISHED:g}"),
        ],
    )


def is_outside(values: np.ndarray) -> list[bool]:
    """Return which values have no place on a logarithmic scale: zero, or not finite."""
    return [bool(value == 0 or math.isinf(value)) for value in values.tolist()]


def _ratios(run: RunFiles) -> tuple[Columns, np.ndarray] | None:
    """Return the ratio in each column, infinite where a gradient was not finite."""
    if run.log is None or len(run.log.kernels) < 2:
        return None
    first, last = run.log.kernels[[0, -1]]
    columns = Columns.of(run.log)
    norms = run.log.stat("raw_norm/median").astype(np.float64)
    lost = ~np.isfinite(run.log.stat("raw_norm/max")[:, [first, last]]).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(lost, np.nan, norms[:, first] / norms[:, last])
    ratios = np.where(np.isinf(ratios), np.nan, ratios)
    gathered = columns.gather(ratios[:, None])[:, 0]
    return columns, np.where(columns.any_of(lost[:, None])[:, 0], np.inf, gathered)


def _level(place: float, dash: str) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": place,
        "y1": place,
        "line": {"color": "var(--soft)", "width": 1.5, "dash": dash},
        "layer": "below",
    }
