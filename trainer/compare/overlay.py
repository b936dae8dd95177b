"""Lines of several runs in one plot: a colour, a dash and a symbol a group."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.compare.groups import Group
from trainer.pages import plot_text
from trainer.report.reading import RunFiles
from trainer.report.scales import numbers

STYLES = (
    ("solid", "var(--one)", "circle"),
    ("dash", "var(--two)", "diamond"),
    ("dot", "var(--three)", "square"),
    ("solid", "var(--four)", "triangle-up"),
    ("dash", "var(--five)", "x"),
    ("dot", "var(--six)", "circle-open"),
    ("solid", "var(--seven)", "diamond-open"),
    ("dash", "var(--eight)", "square-open"),
)
"""Dash, colour and symbol of each group: what differs in colour differs otherwise as well."""
_MOST_WITH_MARKERS = 60


@dataclass(frozen=True)
class Line:
    """One run in a plot.

    Attributes:
        x: Places, numbers or names.
        y: Values, NaN where there is none.
        words: What each point says, in plotly's HTML; empty where others say enough.
        is_outside: Whether a point stands outside the scale, for zero or what is not finite.
        note: What all points say below their own words, in plotly's HTML.
    """

    x: Sequence[Any]
    y: Sequence[float]
    words: Sequence[str]
    is_outside: Sequence[bool] = ()
    note: str = ""


def legend_entries(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Return the entries of a legend."""
    entries = []
    for group, (dash, colour, _) in zip(groups, STYLES, strict=False):
        many = len(group.runs)
        entries.append(
            (dash, colour, f"{group.label} (mean of {many})" if many > 1 else group.label)
        )
    return entries


def overlaid(
    groups: Sequence[Group],
    line_of: Callable[[RunFiles], Line | None],
    axes: tuple[str, str],
    has_markers: bool | None = None,
) -> list[dict[str, Any]]:
    """Return the traces of all runs that have a line.

    A group of several runs has a thin line for each, and a thick one for their mean as far
    as all of them reach.

    Args:
        groups: At most eight.
        line_of: Makes the line of a run, None without one.
        axes: Of plotly, such as x2 and y2.
        has_markers: Whether points are marked; where there are few, if None.
    """
    traces = []
    for group, style in zip(groups, STYLES, strict=False):
        lines = [line_of(run) for run in group.runs]
        drawn = [(line, name) for line, name in zip(lines, group.labels, strict=True) if line]
        mean = _mean([line for line, _ in drawn]) if len(drawn) > 1 else None
        for line, name in drawn:
            traces.append(_trace(line, name, axes, style, mean is not None, has_markers))
        if mean is not None:
            name = f"{group.label}, mean of {len(drawn)}"
            traces.append(_trace(mean, name, axes, style, False, has_markers))
    return traces


def _trace(
    line: Line,
    name: str,
    axes: tuple[str, str],
    style: tuple[str, str, str],
    is_thin: bool,
    has_markers: bool | None,
) -> dict[str, Any]:
    dash, colour, symbol = style
    is_marked = len(line.x) <= _MOST_WITH_MARKERS if has_markers is None else has_markers
    # A line that is not marked is not seen if it has one point.
    is_marked = (is_marked and not is_thin) or len(line.x) < 3 or any(line.is_outside)
    return {
        "type": "scatter",
        "mode": "lines+markers" if is_marked else "lines",
        "name": plot_text(name),
        "x": list(line.x),
        "y": numbers(line.y, 5),
        "xaxis": axes[0],
        "yaxis": axes[1],
        **_hover(line),
        "line": {"color": colour, "dash": dash, "width": 1 if is_thin else 2.5},
        "opacity": 0.6 if is_thin else 1,
        "marker": _marker(line, colour, symbol, is_thin),
    }


def _hover(line: Line) -> dict[str, Any]:
    if not line.words:
        return {"hoverinfo": "skip"}
    note = f"<br>{line.note}" if line.note else ""
    template = f"%{{text}}{note}<extra>%{{fullData.name}}</extra>"
    return {"text": list(line.words), "hovertemplate": template}


def _marker(line: Line, colour: str, symbol: str, is_thin: bool) -> dict[str, Any]:
    if not any(line.is_outside):
        return {"color": colour, "symbol": symbol, "size": 4 if is_thin else 7}
    return {
        "color": colour,
        "symbol": ["x" if each else symbol for each in line.is_outside],
        "size": [8 if each else 0 if is_thin else 7 for each in line.is_outside],
        # Or plotly draws them as bubbles.
        "opacity": 1,
        "line": {"width": 0},
    }


def _mean(lines: Sequence[Line]) -> Line | None:
    xs, ys, outside = [], [], []
    for index, x in enumerate(lines[0].x):
        if any(index >= len(line.x) or line.x[index] != x for line in lines):
            break
        values = [line.y[index] for line in lines]
        flags = [bool(line.is_outside) and line.is_outside[index] for line in lines]
        # Zero has no place on a logarithmic scale, and no mean with what has one.
        is_sound = not any(flags) or (all(flags) and len(set(values)) == 1)
        xs.append(x)
        ys.append(statistics.fmean(values) if is_sound else math.nan)
        outside.append(is_sound and any(flags))
    if not any(math.isfinite(each) for each in ys):
        return None
    # The thin lines say it too, and long ones would say much.
    is_short = len(xs) <= _MOST_WITH_MARKERS
    words = [_between(lines, index) for index in range(len(xs))] if is_short else []
    return Line(xs, ys, words, outside, lines[0].note)


def _between(lines: Sequence[Line], index: int) -> str:
    return "<br>".join(line.words[index] for line in lines)
