"""Plots against time: loss, accuracy, learning rate, clipping, throughput and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.diagnosis.finding import Finding
from trainer.gradient_log import GradientLog
from trainer.pages import Figure
from trainer.recorded_steps import is_shorter
from trainer.report.columns import Columns
from trainer.report.reading import RunFiles
from trainer.report.scales import numbers

LOSS_ANCHOR = "loss-by-time"
CLIP_ANCHOR = "clipping-by-time"
_MOST_EPOCHS_WITH_MARKERS = 60
_MOST_OF_LINEAR = 15
_LEAST_OF_ACCURACY = 0.02


def loss_figure(
    files: RunFiles, columns: Columns | None, findings: Mapping[str, Finding]
) -> Figure | None:
    """Return loss, accuracy and learning rate against time; None if nothing of it is there.

    Args:
        files: Of the run.
        columns: Of the log's time axis, None without a log.
        findings: What to mark, by the id of the mark.
    """
    rows: list[tuple[str, list[dict[str, Any]]]] = [
        ("loss", [*_step_losses(files, columns), *_by_epoch(files, "loss", "val_loss")]),
        ("accuracy", _by_epoch(files, "accuracy", "val_accuracy")),
        ("learning rate", _learning_rate(files, columns)),
    ]
    rows = [(name, traces) for name, traces in rows if traces]
    if not rows:
        return None
    shares = [1.0 if name != "learning rate" else 0.45 for name, _ in rows]
    layout = stacked([name for name, _ in rows], shares, "epoch" if files.epoch_steps else "step")
    for index, (name, traces) in enumerate(rows):
        layout[f"yaxis{index + 1}" if index else "yaxis"] |= value_scale(name, traces)
    has_curve = rows[0][0] == "loss"
    shapes, annotations = _where_not_finite(files, has_curve)
    layout |= {"shapes": shapes, "annotations": annotations}
    return Figure(
        label="Curves by epoch: " + ", ".join(name for name, _ in rows),
        data=[
            {**trace, "yaxis": f"y{index + 1}" if index else "y"}
            for index, (_, traces) in enumerate(rows)
            for trace in traces
        ],
        layout=layout,
        height=int(110 + 190 * sum(shares)),
        legend=_loss_legend(files, columns),
        anchor=LOSS_ANCHOR,
        marks={key: [band(_when(files, finding))] for key, finding in findings.items()},
    )


def _loss_legend(files: RunFiles, columns: Columns | None) -> list[tuple[str, str, str]]:
    entries = []
    if files.history:
        entries.append(("solid", "var(--accent)", "training, mean of the epoch"))
        if any("val_loss" in row for row in files.history):
            entries.append(("dash", "var(--warn)", "validation, at the end of the epoch"))
    if columns is not None:
        each = columns.windows_each
        of = "each window" if each == 1 else f"up to {each} windows"
        entries.append(("solid", "var(--faint)", f"loss of steps, median of {of}"))
    return entries


def value_scale(name: str, traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a scale on which the curves differ, and noise of nothing does not fill the plot."""
    values = [each for trace in traces for each in trace["y"] if each is not None]
    if not values:
        return {}
    low, high = min(values), max(values)
    if name == "loss" and is_for_log(low, high):
        return {"type": "log", **_decade_ticks(low, high)}
    if name == "accuracy" and high - low < _LEAST_OF_ACCURACY:
        middle = (low + high) / 2
        return {"range": [middle - _LEAST_OF_ACCURACY, middle + _LEAST_OF_ACCURACY]}
    if name == "learning rate":
        return {"rangemode": "tozero", "exponentformat": "power"}
    return {"exponentformat": "power"}


def is_for_log(low: float, high: float) -> bool:
    """Whether values are too far apart for a linear scale."""
    return low > 0 and high / low > _MOST_OF_LINEAR


def _decade_ticks(low: float, high: float) -> dict[str, Any]:
    """Return ticks that say their whole number: plotly's own leave the power of ten out."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    stride = math.ceil(len(decades) / 8)
    values = [float(f"{step}e{power}") for power in decades[::stride] for step in steps]
    return {"tickvals": values, "ticktext": [f"{each:g}" for each in values]}


def stacked(names: Sequence[str], shares: Sequence[float], time: str) -> dict[str, Any]:
    """Return the layout of plots that lie on top of each other over one time axis."""
    gap = 0.06
    room = 1 - gap * (len(names) - 1)
    layout: dict[str, Any] = {"hovermode": "x"}
    top = 1.0
    for index, (name, share) in enumerate(zip(names, shares, strict=True)):
        height = room * share / sum(shares)
        layout[f"yaxis{index + 1}" if index else "yaxis"] = {
            "domain": [max(top - height, 0), top],
            "title": {"text": name, "standoff": 6},
            "nticks": 5,
        }
        top -= height + gap
    last = "y" if len(names) == 1 else f"y{len(names)}"
    layout["xaxis"] = {"title": {"text": time}, "anchor": last, "zeroline": False}
    return layout


def band(steps: tuple[float, float]) -> dict[str, Any]:
    """Return a mark over all plots of a figure from one time to another."""
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": steps[0],
        "x1": steps[1],
        "y0": 0,
        "y1": 1,
        "fillcolor": "var(--bad)",
        "opacity": 0.12,
        "line": {"width": 0},
        "layer": "below",
    }


def _when(files: RunFiles, finding: Finding) -> tuple[float, float]:
    first, last = finding.steps
    if finding.windows_seen == 0 and first == last == 0 and files.history:
        # Of a rule that looks at epochs, or at all of the run.
        return 0.0, float(len(files.history))
    scale = files.epoch_steps or 1.0
    return first / scale, (last + 1) / scale


def _line(x: Sequence[float], y: Sequence[float | None], **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "x": list(x), "y": list(y), **more}


def _by_epoch(files: RunFiles, of_training: str, of_validation: str) -> list[dict[str, Any]]:
    # An epoch's figures are those at its end.
    epochs = [row.get("epoch", index) + 1 for index, row in enumerate(files.history)]
    mode = "lines+markers" if len(epochs) <= _MOST_EPOCHS_WITH_MARKERS else "lines"
    traces = []
    for name, colour, dash, symbol, words in (
        (of_training, "var(--accent)", "solid", "circle", "training"),
        (of_validation, "var(--warn)", "dash", "diamond", "validation"),
    ):
        values = numbers(files.column(name), 5)
        if any(each is not None for each in values):
            traces.append(
                _line(
                    epochs,
                    values,
                    mode=mode,
                    line={"color": colour, "dash": dash, "width": 2.5},
                    marker={"color": colour, "symbol": symbol, "size": 6},
                    hovertemplate=f"{words} %{{y:.4f}}<extra></extra>",
                )
            )
    return traces


def _times(files: RunFiles, columns: Columns) -> list[float]:
    scale = files.epoch_steps or 1.0
    middles = (columns.edges[:-1] + columns.edges[1:]) / 2
    return [float(f"{each:.6g}") for each in middles / scale]


def _step_losses(files: RunFiles, columns: Columns | None) -> list[dict[str, Any]]:
    if columns is None or files.log is None or not files.log.header.has_loss:
        return []
    steps = files.log.steps
    losses = numbers(medians(columns.of_steps(steps["step"], steps["loss"])), 5)
    if all(each is None for each in losses):
        return []
    return [
        _line(
            _times(files, columns),
            losses,
            mode="lines" if sum(each is not None for each in losses) > 2 else "lines+markers",
            line={"color": "var(--faint)", "width": 1.5},
            marker={"color": "var(--soft)", "size": 5},
            hovertemplate="of steps %{y:.4f}<extra></extra>",
        )
    ]


def _learning_rate(files: RunFiles, columns: Columns | None) -> list[dict[str, Any]]:
    style: dict[str, Any] = {
        "line": {"color": "var(--ink)", "width": 1.8},
        "hovertemplate": "learning rate %{y:.3g}<extra></extra>",
    }
    if columns is not None and files.log is not None:
        steps = files.log.steps
        rates = numbers(medians(columns.of_steps(steps["step"], steps["learning_rate"])))
        mode = "lines" if len(rates) > 2 else "lines+markers"
        return [_line(_times(files, columns), rates, mode=mode, **style)]
    rates = numbers(files.column("learning_rate"))
    if not any(each is not None for each in rates):
        return []
    epochs = [index + 1 for index in range(len(rates))]
    return [_line(epochs, rates, mode="lines+markers", **style)]


def medians(parts: Sequence[np.ndarray]) -> list[float]:
    """Return the median of the finite values of each part, NaN where there is none."""
    finite = [part[np.isfinite(part)].astype(np.float64) for part in parts]
    return [float(np.median(part)) if part.size else float("nan") for part in finite]


def _where_not_finite(
    files: RunFiles, has_curve: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a line where the loss was first not finite: a curve cannot show that."""
    first: float | None = None
    if files.log is not None and files.log.header.has_loss:
        steps = files.log.steps
        lost = steps["step"][~np.isfinite(steps["loss"])]
        first = float(lost[0]) / (files.epoch_steps or 1.0) if lost.size else None
    else:
        losses = files.column("loss")
        lost_epochs = [index for index, loss in enumerate(losses) if not np.isfinite(loss)]
        first = float(lost_epochs[0] + 1) if lost_epochs else None
    if first is None:
        return [], []
    line = {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": first,
        "x1": first,
        "y0": 0,
        "y1": 1,
        "line": {"color": "var(--bad)", "width": 2, "dash": "dot"},
    }
    note = {
        "x": first,
        "y": 1,
        "xref": "x",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "top",
        "text": f" {'loss not finite from here' if has_curve else 'the loss was never finite'}",
        "showarrow": False,
        "font": {"color": "var(--bad)"},
    }
    return [line], [note]


def clip_figure(log: GradientLog, columns: Columns, findings: Mapping[str, Finding]) -> Figure:
    """Return how often the gradient was clipped, and what was left of it.

    Args:
        log: Of a training with clipping.
        columns: Of its time axis.
        findings: What to mark, by the id of the mark.
    """
    steps = log.steps
    raw, clipped = steps["raw_norm"].astype(np.float64), steps["clipped_norm"].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.where(raw > 0, clipped / raw, np.nan)
    shares = [
        float(np.mean(part)) if part.size else float("nan")
        for part in columns.of_steps(steps["step"], is_shorter(clipped, raw))
    ]
    is_clipped = is_shorter(log.stat("clipped_norm/median"), log.stat("raw_norm/median"))
    of_variables = columns.gather(is_clipped.mean(axis=1, keepdims=True))[:, 0]
    times = [float(each) for each in (columns.edges[:-1] + columns.edges[1:]) / 2]
    mode = "lines" if len(times) > 2 else "lines+markers"
    style = {"mode": mode, "hovertemplate": "%{y:.3f}<extra>%{fullData.name}</extra>"}
    return Figure(
        label="Share of steps that were clipped, and of the norm that was left, by step",
        data=[
            _line(
                times,
                numbers(shares),
                name="steps",
                line={"color": "var(--accent)", "width": 2.5},
                **style,
            ),
            _line(
                times,
                numbers(of_variables),
                name="variables",
                line={"color": "var(--warn)", "width": 2, "dash": "dash"},
                **style,
            ),
            _line(
                times,
                numbers(medians(columns.of_steps(steps["step"], left))),
                name="of the norm",
                yaxis="y2",
                line={"color": "var(--ink)", "width": 2},
                **style,
            ),
        ],
        layout=_from_zero_to_one(stacked(["clipped", "norm left"], [1, 1], "step")),
        height=340,
        legend=(
            ("solid", "var(--accent)", "share of steps at which anything was clipped"),
            ("dash", "var(--warn)", "share of variables that were at half of the steps"),
            ("solid", "var(--ink)", "norm after clipping over norm before it"),
        ),
        anchor=CLIP_ANCHOR,
        marks={
            key: [band((finding.steps[0], finding.steps[1] + 1))]
            for key, finding in findings.items()
        },
    )


def _from_zero_to_one(layout: dict[str, Any]) -> dict[str, Any]:
    for axis in ("yaxis", "yaxis2"):
        layout[axis] |= {"range": [-0.04, 1.04], "tickformat": ".0%", "zeroline": False}
    return layout


def speed_figure(files: RunFiles) -> Figure | None:
    """Return images a second and memory by epoch; None if no epoch has ended."""
    quantities = {
        "images/s": ("images_per_second", "%{y:,.0f} images/s, %{customdata:,.1f} s"),
        "MiB": ("memory_mib", "%{y:,.0f} MiB of the process at most so far"),
        "MiB of a GPU": ("gpu_memory_mib", "%{y:,.0f} MiB of a GPU at most so far"),
    }
    values = {title: numbers(files.column(key)) for title, (key, _) in quantities.items()}
    titles = [title for title, row in values.items() if any(each is not None for each in row)]
    if not titles:
        return None
    epochs = [row.get("epoch", index) + 1 for index, row in enumerate(files.history)]
    layout = stacked(titles, [1] * len(titles), "epoch")
    # A few epochs are no broad blocks.
    layout["xaxis"]["range"] = [0.4, max(len(epochs), 8) + 0.6]
    layout["xaxis"] |= {"dtick": 1} if len(epochs) <= 12 else {}
    for index in range(len(titles)):
        layout[f"yaxis{index + 1}" if index else "yaxis"] |= {"rangemode": "tozero"}
    return Figure(
        label=f"Training speed and memory by epoch: {', '.join(titles)}",
        data=[
            {
                "type": "bar",
                "x": epochs,
                "y": values[title],
                "yaxis": f"y{index + 1}" if index else "y",
                "marker": {"color": "var(--accent)"},
                "customdata": numbers(files.column("seconds")),
                "hovertemplate": f"epoch %{{x}}: {quantities[title][1]}<extra></extra>",
                "showlegend": False,
            }
            for index, title in enumerate(titles)
        ],
        layout={**layout, "bargap": 0.35},
        height=80 + 170 * len(titles),
    )
