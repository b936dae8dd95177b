"""Profiles by depth side by side: what each kernel gets, early, halfway and at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from trainer.compare.curves import domain, is_outside
from trainer.compare.groups import Group
from trainer.compare.overlay import Line, legend_entries, overlaid
from trainer.gradient_log import GradientLog
from trainer.pages import Figure, plot_text
from trainer.report.columns import forward_order, raw_is_nonfinite, update_is_nonfinite
from trainer.report.profile import extent, points, ticks, window_name
from trainer.report.reading import RunFiles
from trainer.report.scales import place_axis, unique_labels

# Two networks are of one depth if the shorter one is the longer one without a few
# projections on its shortcuts.
_LEAST_IN_COMMON = 0.75
_WIDE_LABELS, _NARROW_LABELS = 12, 14
# A printed page is wider.
_NARROW_BELOW = 660
_TIMES = ("first", "middle", "last")
_UPDATES = "update_ratio/median"
_QUANTITIES = (("gradient norm", "raw_norm/median"), ("update ratio", _UPDATES))


def common_places(logs: Sequence[GradientLog]) -> list[str] | None:
    """Return the kernels of all logs in their order; None if the networks differ in depth.

    Args:
        logs: At least one.
    """
    names = [kernel_names(log) for log in logs]
    longest = max(names, key=len)
    for each in names:
        rest = iter(longest)
        if len(each) < _LEAST_IN_COMMON * len(longest) or not all(name in rest for name in each):
            return None
    return longest


def kernel_names(log: GradientLog) -> list[str]:
    """Return the kernels of a log, first layer first; all variables if there are none."""
    kernels = log.kernels if len(log.kernels) else forward_order(log)
    return unique_labels([log.header.paths[i].removesuffix("/kernel") for i in kernels])


def profiles_figure(groups: Sequence[Group]) -> Figure | None:
    """Return gradient norm and update ratio by depth in three windows; None without a log.

    Args:
        groups: At most eight.
    """
    logs = [run.log for group in groups for run in group.runs if run.log is not None]
    if not logs:
        return None
    places = common_places(logs)
    count = max(len(log.window_steps) for log in logs)
    times = [_TIMES[-1]] if count == 1 else [_TIMES[0], _TIMES[-1]] if count == 2 else _TIMES
    data: list[dict[str, Any]] = []
    wide: dict[str, Any] = _empty_layout()
    narrow: dict[str, Any] = _empty_layout()
    for row, (title, stat) in enumerate(_QUANTITIES):
        rows = [_profile(log, stat, _window(log, time)) for log in logs for time in times]
        low, high = extent(rows)
        values = {"zeroline": False, **ticks(low, high, rows)}
        named = {**values, "title": {"text": title, "standoff": 6}}
        for column, time in enumerate(times):
            index = row * len(times) + column
            suffix = str(index + 1) if index else ""
            line_of = partial(
                _line, stat=stat, time=time, extent=(low, high), has_names=places is not None
            )
            data += overlaid(groups, line_of, (f"x{suffix}", f"y{suffix}"))
            box = (_across(column, len(times)), domain(row, len(_QUANTITIES)))
            depth = _depth_axis(places, _WIDE_LABELS, is_labelled=row == len(_QUANTITIES) - 1)
            _place(wide, suffix, box, depth, values if column else named, f"{time} window")
            count = len(_QUANTITIES) * len(times)
            depth = _depth_axis(places, _NARROW_LABELS, is_labelled=index == count - 1)
            box = ([0.0, 1.0], domain(index, count))
            _place(narrow, suffix, box, depth, named, f"{time} window")
            if column:
                wide[f"yaxis{suffix}"]["showticklabels"] = False
    label = "Gradient norm and update ratio by depth in the " + ", ".join(times) + " window"
    tall = Figure(label, data, narrow, 150 + 210 * len(_QUANTITIES) * len(times))
    return Figure(
        label,
        data,
        wide,
        700,
        legend=legend_entries(groups),
        narrow=tall,
        narrow_below=_NARROW_BELOW,
    )


def _empty_layout() -> dict[str, Any]:
    # The headings of the topmost plots stand in the margin.
    return {"hovermode": "closest", "annotations": [], "margin": {"l": 8, "r": 12, "t": 28, "b": 8}}


def _place(
    layout: dict[str, Any],
    suffix: str,
    box: tuple[list[float], list[float]],
    depth: dict[str, Any],
    values: dict[str, Any],
    heading: str,
) -> None:
    across, down = box
    layout[f"xaxis{suffix}"] = {**depth, "anchor": f"y{suffix}", "domain": across}
    layout[f"yaxis{suffix}"] = {**values, "anchor": f"x{suffix}", "domain": down}
    layout["annotations"].append(_heading(heading, sum(across) / 2, down[1]))


def _across(column: int, count: int) -> list[float]:
    gap = 0.03
    width = (1 - gap * (count - 1)) / count
    return [column * (width + gap), column * (width + gap) + width]


def _depth_axis(places: Sequence[str] | None, room: int, is_labelled: bool) -> dict[str, Any]:
    shown = {"showticklabels": is_labelled}
    if places is not None:
        axis = place_axis(places, room, 20)
        return {**axis, **shown, "tickangle": -90, "tickfont": {"size": 11}}
    return {
        **shown,
        **({"title": {"text": "depth", "standoff": 4}} if is_labelled else {}),
        "range": [-0.04, 1.04],
        "tickvals": [0, 0.5, 1],
        "ticktext": ["first", "half", "last"],
        "zeroline": False,
    }


def _heading(text: str, x: float, y: float) -> dict[str, Any]:
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"color": "var(--soft)", "size": 12},
    }


def _window(log: GradientLog, time: str) -> int:
    count = len(log.window_steps)
    return {"first": 0, "middle": count // 2, "last": count - 1}[time]


def _profile(log: GradientLog, stat: str, window: int) -> np.ndarray:
    kernels = log.kernels if len(log.kernels) else forward_order(log)
    values = log.stat(stat)[window, kernels].astype(np.float64)
    is_lost = update_is_nonfinite(log) if stat == _UPDATES else raw_is_nonfinite(log)
    return np.where(is_lost[window, kernels], np.inf, values)


def _line(
    run: RunFiles, stat: str, time: str, extent: tuple[int, int], has_names: bool
) -> Line | None:
    log = run.log
    if log is None:
        return None
    window = _window(log, time)
    values = _profile(log, stat, window)
    names = kernel_names(log)
    drawn = points(values, *extent, "", "")
    words = [f"{name}: {text}" for name, text in zip(names, drawn["text"], strict=True)]
    depth = [round(index / max(len(names) - 1, 1), 4) for index in range(len(names))]
    y = [math.nan if each is None else float(each) for each in drawn["y"]]
    where = plot_text(window_name(log, window))
    return Line(names if has_names else depth, y, words, is_outside(values), where)
