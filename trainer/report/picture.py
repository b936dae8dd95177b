"""The gradient picture: where, and when, how strong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.diagnosis.finding import Finding
from trainer.gradient_log import GradientLog
from trainer.pages import Figure
from trainer.report.columns import (
    Columns,
    Picture,
    activation_picture,
    forward_order,
    gradient_picture,
    ratio_picture,
)
from trainer.report.scales import place_axis, power_ticks, unique_labels

ANCHOR = "gradient-picture"
_ABOUT_UPDATES = frozenset({"large_updates", "small_updates", "momentum", "frozen"})
_LABEL_HEIGHT = 15
# Seen on any colour, that of what is not finite too.
_FRAME = ({"color": "var(--paper)", "width": 6}, {"color": "var(--bad)", "width": 2.5})
_CSS_HEIGHTS = (280, 680)
_GAP = 108
"""CSS pixels between the panels of a narrow screen: for an axis, and the next one's scale."""


@dataclass(frozen=True)
class _Panel:
    """One of the pictures side by side.

    Attributes:
        title: Above it.
        picture: What it shows.
        paths: Of its rows.
        labels: The same for people, unique.
        axis: What its axes' names end with: nothing, 2 or 3.
    """

    title: str
    picture: Picture
    paths: Sequence[str]
    labels: Sequence[str]
    axis: str


def picture_figure(log: GradientLog, columns: Columns, findings: Mapping[str, Finding]) -> Figure:
    """Return gradient norms, update ratios and activations by depth and time.

    Args:
        log: With at least one window.
        columns: Of its time axis.
        findings: What to mark, by the id of the mark.
    """
    everything = forward_order(log)
    kernels = log.kernels if len(log.kernels) else everything
    norm, ratio = gradient_picture(log, columns), ratio_picture(log, columns)
    activations = activation_picture(log, columns) if log.header.activations else None
    views = []
    for name, chosen in (("Kernels", kernels), ("All variables", everything)):
        paths = [log.header.paths[index] for index in chosen]
        labels = unique_labels([path.removesuffix("/kernel") for path in paths])
        panels = [
            _Panel("gradient norm", norm.rows(chosen), paths, labels, ""),
            _Panel("update ratio", ratio.rows(chosen), paths, labels, "2"),
        ]
        if activations is not None:
            layers = log.header.activations
            panels.append(
                _Panel("activation spread", activations, layers, unique_labels(layers), "3")
            )
        views.append(_view(name, panels, columns, findings))
        if len(kernels) == len(everything):
            return _view("", panels, columns, findings)
    first, second = views
    return Figure(
        first.label,
        first.data,
        first.layout,
        first.height,
        narrow=first.narrow,
        anchor=ANCHOR,
        marks=first.marks,
        name=first.name,
        views=[second],
    )


def _view(
    name: str, panels: Sequence[_Panel], columns: Columns, findings: Mapping[str, Finding]
) -> Figure:
    data = [trace for panel in panels for trace in _traces(panel, columns)]
    label = "Heatmaps by place and step: " + ", ".join(panel.title for panel in panels)
    marks = {key: _shapes(finding, panels) for key, finding in findings.items()}
    wide, wide_height = _wide_layout(panels)
    narrow, narrow_height = _narrow_layout(panels)
    return Figure(
        label,
        data,
        wide,
        wide_height,
        narrow=Figure(label, data, narrow, narrow_height),
        anchor=ANCHOR,
        marks={key: shapes for key, shapes in marks.items() if shapes},
        name=name,
    )


def _traces(panel: _Panel, columns: Columns) -> list[dict[str, Any]]:
    picture = panel.picture
    place = {
        "type": "heatmap",
        "x": columns.edges.tolist(),
        "y": list(panel.labels),
        "xaxis": f"x{panel.axis}",
        "yaxis": f"y{panel.axis}",
        "hoverongaps": False,
    }
    where = "%{y}<br>step %{x:,.0f}<br>"
    traces = [
        {
            **place,
            "z": _rows(np.round(picture.log10, 2)),
            "coloraxis": f"coloraxis{panel.axis}",
            "hovertemplate": f"{where}{panel.title} 10<sup>%{{z:.2f}}</sup><extra></extra>",
        }
    ]
    for flags, colour, meaning in (
        (picture.is_zero, "var(--zero)", "exactly 0"),
        (picture.is_nonfinite, "var(--bad)", "not finite"),
    ):
        if flags.any():
            traces.append(
                {
                    **place,
                    "z": [[1 if each else None for each in row] for row in flags],
                    "colorscale": [[0, colour], [1, colour]],
                    "showscale": False,
                    "hovertemplate": f"{where}{panel.title}: {meaning}<extra></extra>",
                }
            )
    return traces


def _rows(values: np.ndarray) -> list[list[float | None]]:
    return [[None if each != each else each for each in row] for row in values.tolist()]


def _shapes(finding: Finding, panels: Sequence[_Panel]) -> list[dict[str, Any]]:
    """Return frames around what a finding is about; all places where it names none."""
    first, last = finding.steps
    wanted = "update ratio" if finding.rule in _ABOUT_UPDATES else "gradient norm"
    frames: list[dict[str, Any]] = []
    for panel in panels:
        if panel.axis != "3" and panel.title != wanted:
            continue
        rows = _rows_of(finding.layers, panel.paths)
        if not finding.layers and panel.title == wanted:
            rows = list(range(len(panel.paths)))
        frames += [
            {
                "type": "rect",
                "xref": f"x{panel.axis}",
                "yref": f"y{panel.axis}",
                "x0": first,
                "x1": last + 1,
                "y0": low - 0.5,
                "y1": high + 0.5,
                "line": line,
            }
            for low, high in _runs(rows)
            for line in _FRAME
        ]
    return frames


def _rows_of(names: Sequence[str], paths: Sequence[str]) -> list[int]:
    """Return the rows of some variables; where they are not drawn, those of their layers."""
    wanted = set(names)
    rows = [index for index, path in enumerate(paths) if path in wanted]
    if rows:
        return rows
    layers = {name.rpartition("/")[0] for name in wanted} - {""}
    return [index for index, path in enumerate(paths) if path.rpartition("/")[0] in layers]


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Return first and last of each group of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], row)
        else:
            runs.append((row, row))
    return runs


def _plot_height(panel: _Panel, most: int) -> int:
    return int(np.clip(_LABEL_HEIGHT * len(panel.labels), _CSS_HEIGHTS[0], most))


def _wide_layout(panels: Sequence[_Panel]) -> tuple[dict[str, Any], int]:
    inner = max(_plot_height(panel, _CSS_HEIGHTS[1]) for panel in panels)
    spans = [(0.0, 0.37), (0.4, 0.69), (0.72, 1.0)] if len(panels) == 3 else [(0, 0.51), (0.55, 1)]
    layout: dict[str, Any] = {"margin": {"t": 64, "l": 8, "r": 8, "b": 48}}
    for panel, span in zip(panels, spans, strict=True):
        layout |= _axes(panel, span, (0.0, 1.0), inner, letters=26)
    layout["annotations"] = [each for panel in panels for each in _titles(panel)]
    layout["yaxis2"] |= {"matches": "y", "showticklabels": False}
    if len(panels) == 3:
        layout["yaxis3"]["side"] = "right"
    return layout, inner + 112


def _narrow_layout(panels: Sequence[_Panel]) -> tuple[dict[str, Any], int]:
    heights = [_plot_height(panel, 420) for panel in panels]
    inner = sum(heights) + _GAP * (len(panels) - 1)
    layout: dict[str, Any] = {"margin": {"t": 64, "l": 4, "r": 10, "b": 48}}
    top = inner
    for panel, height in zip(panels, heights, strict=True):
        span = ((top - height) / inner, top / inner)
        layout |= _axes(panel, (0.0, 1.0), span, height, letters=20)
        layout[f"coloraxis{panel.axis}"]["colorbar"]["y"] = span[1] + 6 / inner
        layout[f"yaxis{panel.axis}"]["tickfont"] = {"size": 9}
        top -= height + _GAP
    layout["annotations"] = [each for panel in panels for each in _titles(panel)]
    return layout, inner + 112


def _titles(panel: _Panel) -> list[dict[str, Any]]:
    """Return what stands above and below a panel.

    A colour scale without a colour has no title, and that of an axis is moved by labels.
    """
    place = {
        "xref": f"x{panel.axis} domain",
        "yref": f"y{panel.axis} domain",
        "x": 0.5,
        "showarrow": False,
    }
    above = {"text": f"<b>{panel.title}</b>", "y": 1, "yanchor": "bottom", "yshift": 36}
    below = {"text": "step", "y": 0, "yanchor": "top", "yshift": -22}
    return [{**place, **above}, {**place, **below, "font": {"color": "var(--soft)"}}]


def _axes(
    panel: _Panel,
    across: tuple[float, float],
    along: tuple[float, float],
    height: int,
    letters: int,
) -> dict[str, Any]:
    low, high = panel.picture.extent
    places, texts = power_ticks(low, high, most=5)
    x: dict[str, Any] = {
        "domain": across,
        "anchor": f"y{panel.axis}",
        "showgrid": False,
        "zeroline": False,
        "nticks": 6,
    }
    if panel.axis:
        # A zoom into one of them is one into all.
        x["matches"] = "x"
    return {
        f"xaxis{panel.axis}": x,
        f"yaxis{panel.axis}": {
            **place_axis(panel.labels, height // _LABEL_HEIGHT, letters),
            "domain": along,
            "anchor": f"x{panel.axis}",
            "autorange": "reversed",
            "tickfont": {"size": 11},
        },
        f"coloraxis{panel.axis}": {
            "colorscale": "scale",
            "cmin": low,
            "cmax": high,
            "colorbar": {
                "orientation": "h",
                "x": sum(across) / 2,
                "len": across[1] - across[0],
                "y": 1.01,
                "yanchor": "bottom",
                "thickness": 9,
                "outlinewidth": 0,
                "ypad": 4,
                "tickvals": places,
                "ticktext": texts,
                "tickfont": {"size": 11},
            },
        },
    }
