"""Labels and ticks that the plots of a report share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.pages import plot_text, rounded


def power(exponent: float) -> str:
    """Return a power of ten in plotly's HTML."""
    return f"10<sup>{exponent:g}</sup>".replace("-", "\u2212")


def power_ticks(low: float, high: float, most: int = 6) -> tuple[list[float], list[str]]:
    """Return positions and labels of a logarithmic scale.

    Args:
        low: Smallest logarithm, to base ten.
        high: Largest one.
        most: Ticks.
    """
    whole = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    if len(whole) < 2:
        places = [round(float(each), 2) for each in np.linspace(low, high, 3)]
        return places, [f"{10**each:.2g}" for each in places]
    stride = math.ceil(len(whole) / most)
    kept = list(whole)[::-1][::stride][::-1]
    return [float(each) for each in kept], [power(each) for each in kept]


def unique_labels(paths: Sequence[str]) -> list[str]:
    """Return the names of places on an axis, where two of one name would be one place."""
    labels: list[str] = []
    seen: dict[str, int] = {}
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        name = plot_text(path)
        labels.append(name if seen[path] == 1 else f"{name} ({seen[path]})")
    return labels


def place_axis(labels: Sequence[str], room: int, most_letters: int = 26) -> dict[str, Any]:
    """Return an axis of places, with as many labels as there is room for.

    Args:
        labels: Unique.
        room: Labels that fit.
        most_letters: Of a label; longer ones lose their middle.
    """
    stride = max(1, math.ceil(len(labels) / max(room, 1)))
    shown = list(labels[::stride])
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(labels),
        "tickmode": "array",
        "tickvals": shown,
        "ticktext": [_shortened(each, most_letters) for each in shown],
        "showgrid": False,
    }


def _shortened(label: str, most: int) -> str:
    # What is escaped must not be cut in two.
    if len(label) <= most or "&" in label:
        return label
    tail = (most - 1) * 2 // 3
    return f"{label[: most - 1 - tail]}\u2026{label[-tail:]}"


def numbers(values: Sequence[float] | np.ndarray, digits: int = 4) -> list[float | None]:
    """Return numbers for a plot, None where one is not finite."""
    return [rounded(float(each), digits) for each in values]


def plain(value: float) -> str:
    """Return a number for a table."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:.3g}"
