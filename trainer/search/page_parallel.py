"""Parallel coordinates: a line a trial, through its values to its score.

plotly has such a plot, but without a name under the mouse, a look of its own for what failed, a
place for what is not used, or a way to stand upright on a phone. This one is of plain lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.search_schema import SearchConfig
from trainer.pages import Figure, plot_text
from trainer.search.display import short_names
from trainer.search.page_figures import hover_text
from trainer.search.pruning import is_scored
from trainer.search.scales import number_ticks, places_of, spread, ticks
from trainer.search.trials import TrialRecord

_LANE = -0.16
"""Where an axis shows what has no place on it."""


@dataclass(frozen=True)
class _Axis:
    """One axis of the parallel coordinates.

    Attributes:
        name: Above it.
        places: Of each trial; None: in the lane.
        ticks: Positions with their labels.
        lane: What it means to be in the lane.
    """

    name: str
    places: Sequence[float | None]
    ticks: Sequence[tuple[float, str]]
    lane: str


def parallel_coordinates(
    search: SearchConfig, trials: Sequence[TrialRecord], best: TrialRecord | None
) -> Figure:
    """Return the plot of all values against the score: a line a trial that has ended.

    Args:
        search: With the space.
        trials: That have ended, at least one.
        best: Which stands out.
    """
    goodness = _goodness(search, trials)
    # The best ones are drawn last, on top.
    order = sorted(range(len(trials)), key=lambda i: (trials[i] is best, goodness[i]))
    axes = [*_parameter_axes(search, trials, goodness), _score_axis(search, trials)]
    wide, narrow = (
        Figure(
            label="Parallel coordinates: a line a trial, through its values to its score",
            data=[
                _line(search, trials[i], i, axes, goodness[i], trials[i] is best, is_wide)
                for i in order
            ],
            layout=_parallel_layout(axes, is_wide),
            height=480 if is_wide else 50 + 88 * len(axes),
            is_brushed=True,
        )
        for is_wide in (True, False)
    )
    # Beside each other, axes need room for their labels.
    return replace(wide, narrow=narrow, narrow_below=max(600, 80 * len(axes)))


def _goodness(search: SearchConfig, trials: Sequence[TrialRecord]) -> list[float]:
    """Return a place on the colour scale for each trial: by rank, below all without a score."""
    sign = 1 if search.is_maximized else -1
    scores = sorted({sign * t.outcome.score for t in trials if t.outcome and is_scored(search, t)})
    last = len(scores) - 1
    # A single one is the best.
    places = {score: rank / last if last else 1.0 for rank, score in enumerate(scores)}
    return [
        places[sign * t.outcome.score] if t.outcome and is_scored(search, t) else -1.0
        for t in trials
    ]


def _parameter_axes(
    search: SearchConfig, trials: Sequence[TrialRecord], goodness: Sequence[float]
) -> list[_Axis]:
    names = short_names(list(search.space))
    axes = []
    for key, parameter in search.space.items():
        places = places_of(key, parameter, trials)
        if parameter.choice or parameter.boolean:
            places = spread(places, goodness)
        lane = "not used" if any(key not in t.point.values for t in trials) else ""
        axes.append(_Axis(names[key], places, ticks(parameter), lane))
    return axes


def _score_axis(search: SearchConfig, trials: Sequence[TrialRecord]) -> _Axis:
    scores = [t.outcome.score for t in trials if t.outcome and is_scored(search, t)] or [0.0, 1.0]
    low, high = min(scores), max(scores)
    if low == high:
        low, high = low - 0.5, high + 0.5
    is_log = low > 0 and high / low > 30
    places: list[float | None] = []
    for trial in trials:
        assert trial.outcome is not None
        score = trial.outcome.score
        if not is_scored(search, trial):
            places.append(None)
        elif is_log:
            places.append(math.log(score / low) / math.log(high / low))
        else:
            places.append((score - low) / (high - low))
    marks = number_ticks(low, high, is_log)
    if not search.is_maximized:
        # Up is better, whatever the objective.
        places = [None if each is None else 1 - each for each in places]
        marks = [(1 - at, text) for at, text in marks]
    unscored = [t.outcome for t in trials if t.outcome and not is_scored(search, t)]
    has_failed = all(each.state == "failed" for each in unscored)
    lane = ("failed" if has_failed else "no score") if unscored else ""
    return _Axis(search.objective, places, marks, lane)


def _line(
    search: SearchConfig,
    trial: TrialRecord,
    index: int,
    axes: Sequence[_Axis],
    goodness: float,
    is_best: bool,
    is_wide: bool,
) -> dict[str, Any]:
    along = list(range(len(axes)))
    places = [axis.places[index] for axis in axes]
    across = [_LANE if each is None else round(each, 4) for each in places]
    outcome = trial.outcome
    assert outcome is not None
    has_no_score = not is_scored(search, trial)
    colour = "var(--bad)" if has_no_score else f"scale({goodness:.3f})"
    dash = {"done": "solid", "pruned": "dash", "failed": "dot"}[outcome.state]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": along if is_wide else across,
        "y": across if is_wide else [-each for each in along],
        "line": {
            "color": colour,
            "dash": dash,
            "width": 5 if is_best else 1.3 if has_no_score else 1.8,
        },
        "marker": {
            "color": colour,
            "size": 9 if is_best else 6,
            "symbol": [
                "x-thin-open" if has_no_score else "circle-open" if place is None else "circle"
                for place in places
            ],
        },
        # What is not selected fades as a whole line.
        "unselected": {"marker": {"opacity": 1}},
        "text": hover_text(trial, search),
        "hoverinfo": "text",
    }


def _parallel_layout(axes: Sequence[_Axis], is_wide: bool) -> dict[str, Any]:
    shapes, annotations = [], []
    for index, axis in enumerate(axes):
        is_score = index == len(axes) - 1
        at = index if is_wide else -index
        low = _LANE if axis.lane else 0
        spots = [("x0", at), ("x1", at), ("y0", low), ("y1", 1)]
        if not is_wide:
            spots = [("y0", at), ("y1", at), ("x0", low), ("x1", 1)]
        ink = "var(--ink)" if is_score else "var(--soft)"
        shapes.append(
            {
                "type": "line",
                "layer": "below",
                "line": {"color": ink, "width": 2 if is_score else 1},
                **dict(spots),
            }
        )
        annotations.append(_name(axis, at, is_wide, is_score, len(axes) > 6))
        for place, text in [*axis.ticks, (_LANE, axis.lane)]:
            if text:
                annotations.append(_tick(plot_text(text), at, place, is_wide, is_score))
    hidden = {"visible": False, "fixedrange": True}
    last = len(axes) - 1
    has_lane = any(axis.lane for axis in axes)
    across = {**hidden, "range": [_LANE - 0.07 if has_lane else -0.07, 1.09]}
    if is_wide:
        margin = {"l": _room(axes[0]), "r": _room(axes[-1]), "t": 8, "b": 8}
        x, y = {**hidden, "range": [-0.05, last + 0.05]}, across
    else:
        margin = {"l": 4, "r": 4, "t": 8, "b": 8}
        x, y = across, {**hidden, "range": [-last - 0.35, 0.45]}
    drawn = {"shapes": shapes, "annotations": annotations}
    return {"xaxis": x, "yaxis": y, "margin": margin, **drawn}


def _room(axis: _Axis) -> int:
    """Return the pixels that the labels of an outer axis need."""
    letters = max(len(text) for text in (*(text for _, text in axis.ticks), axis.lane))
    return max(60, 18 + 7 * letters)


def _name(
    axis: _Axis, at: float, is_wide: bool, is_score: bool, is_crowded: bool
) -> dict[str, Any]:
    spot: dict[str, Any] = {"x": at, "y": 1.03, "xanchor": "center", "yanchor": "bottom"}
    if not is_wide:
        spot = {"x": 0, "xref": "paper", "y": at, "xanchor": "left", "yanchor": "bottom"}
        spot["yshift"] = 10
    lines = _wrapped(axis.name) if is_wide and is_crowded else [axis.name]
    text = "<br>".join(map(plot_text, lines))
    text = f"<b>{text}</b>" if is_score else text
    return {"text": text, "showarrow": False, "bgcolor": "var(--veil)", **spot}


def _wrapped(name: str) -> list[str]:
    """Break a long name after the dot or the line that is next to its middle."""
    breaks = [i + 1 for i, letter in enumerate(name[:-1]) if letter in "._"]
    if len(name) < 11 or not breaks:
        return [name]
    middle = min(breaks, key=lambda i: abs(i - len(name) / 2))
    return [name[:middle], name[middle:]]


def _tick(text: str, at: float, place: float, is_wide: bool, is_score: bool) -> dict[str, Any]:
    spot: dict[str, Any]
    if is_wide and is_score:
        spot = {"x": at, "y": place, "xanchor": "left", "xshift": 9}
    elif is_wide:
        spot = {"x": at, "y": place, "xanchor": "right", "xshift": -9}
    else:
        spot = {"x": place, "y": at, "yanchor": "top", "yshift": -7}
        if len(text) > 8 and not 0.1 < place < 0.9:
            # Centred, it would leave the screen.
            spot["xanchor"] = "left" if place < 0.5 else "right"
    return {
        "text": text,
        "showarrow": False,
        "font": {"size": 11, "color": "var(--soft)"},
        "bgcolor": "var(--veil)",
        "borderpad": 1,
        **spot,
    }
