"""A parameter's values on its own scale, from 0 to 1."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.config.search_schema import Parameter
from trainer.search.display import in_words
from trainer.search.trials import TrialRecord

_MOST_LETTERS = 18


def position(parameter: Parameter, value: Any) -> float | None:
    """Return where a value lies: logarithmic, linear, or evenly spaced if it is a choice.

    Args:
        parameter: What the key is varied over.
        value: One of its values.

    Returns:
        0 at the low end or the first choice, 1 at the high end or the last one; None for what
        is no value of it.
    """
    if parameter.boolean or parameter.choice:
        written = [json.dumps(each) for each in parameter.extremes]
        text = json.dumps(value)
        return written.index(text) / (len(written) - 1) if text in written else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high = parameter.extremes
    if parameter.log_uniform:
        return math.log(value / low) / math.log(high / low) if value > 0 else None
    return (value - low) / (high - low)


def places_of(key: str, parameter: Parameter, trials: Sequence[TrialRecord]) -> list[float | None]:
    """Return where each trial's value of a key lies, None if the trial does not use the key."""
    # It may be null, which is a value.
    return [
        position(parameter, t.point.values[key]) if key in t.point.values else None for t in trials
    ]


def ticks(parameter: Parameter) -> list[tuple[float, str]]:
    """Return positions to label, with their labels: every choice, and round numbers."""
    if parameter.boolean or parameter.choice:
        last = len(parameter.extremes) - 1
        return [(i / last, label(value)) for i, value in enumerate(parameter.extremes)]
    low, high = parameter.extremes
    return number_ticks(low, high, is_log=parameter.log_uniform is not None)


def number_ticks(low: float, high: float, is_log: bool) -> list[tuple[float, str]]:
    """Return the ends of a range and round numbers between them, not too close.

    Args:
        low: The lower end, positive if the scale is logarithmic.
        high: The upper end, larger than `low`.
        is_log: Whether the scale is logarithmic.
    """

    def place(value: float) -> float:
        if is_log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    inner = _round_logs(low, high) if is_log else _round_steps(low, high)
    kept = [(0.0, low), (1.0, high)]
    for value in inner:
        if all(abs(place(value) - other) > 0.12 for other, _ in kept):
            kept.append((place(value), value))
    return [(at, in_words(value)) for at, value in sorted(kept)]


def _round_logs(low: float, high: float) -> Iterator[float]:
    """Powers of ten first, then what may still fit between them."""
    for factor in (1, 3):
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
            value = factor * 10.0**power
            if low < value < high:
                yield value


def _round_steps(low: float, high: float) -> Iterator[float]:
    rough = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * each for each in (1, 2, 2.5, 5, 10) if size * each >= rough * 0.999)
    if isinstance(low, int) and isinstance(high, int):
        step = max(1, round(step))
    value = math.ceil(low / step) * step
    while value < high:
        if value > low:
            yield value
        value += step


def label(value: Any) -> str:
    """Return a value in few letters."""
    text = in_words(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."


def spread(positions: Sequence[float | None], order: Sequence[float]) -> list[float | None]:
    """Move trials with the same position a little apart, so that each one is seen.

    Args:
        positions: Of a choice's values.
        order: By what those with the same one are sorted.
    """
    moved: list[float | None] = list(positions)
    for place in {each for each in positions if each is not None}:
        same = sorted(
            (i for i, each in enumerate(positions) if each == place), key=lambda i: order[i]
        )
        for rank, i in enumerate(same):
            moved[i] = place + 0.05 * ((rank + 0.5) / len(same) - 0.5)
    return moved
