"""What is measured at each step, and what a window of steps comes to. NumPy only.

Words: *raw* is the gradient of the loss, unscaled, summed over replicas, before
clipping; *clipped* is after clipping; *update* is the weight after the step minus the
weight before it; *update ratio* is the norm of the update over that of the weight
before the step; *activations* are the outputs of layers in the forward pass of the
step. All norms are L2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

NORMS = ("raw_norm", "clipped_norm", "update_norm", "weight_norm")
"""Per variable and step; `weight_norm` is that of the weight before the step."""

MOMENTS = ("raw_mean", "raw_std", "raw_max_abs", "raw_zero_fraction", "raw_nonfinite_count")
"""Per variable, over its components, at steps that are recorded in full; NaN elsewhere."""

ACTIVATIONS = (
    "mean",
    "std",
    "max_abs",
    "zero_fraction",
    "saturated_fraction",
    "nonfinite_count",
)
"""Per activation layer, over the values of its output, at the steps whose activations are
recorded; NaN elsewhere. Zeros are exact; saturated values are those where the slope of the
activation function is below 0.01 (sigmoid: below 0.0101 or above 0.9899, tanh: beyond
0.995), NaN for functions without bounds."""

_HISTOGRAM_EXPONENTS = range(-42, 22)
HISTOGRAM_BOUNDS = np.array(
    [
        *(-(2.0**power) for power in reversed(_HISTOGRAM_EXPONENTS)),
        *(2.0**power for power in _HISTOGRAM_EXPONENTS),
    ]
)
"""Bounds of the bins in which the values of a gradient are counted, by powers of two from
2^-42 to 2^21 on both sides of a bin for all that is smaller; float64. A bound itself is in
the bin that is farther from 0. The outermost bins hold what is larger, too; what is not
finite is not counted."""

STEP_DTYPE = np.dtype(
    [
        ("step", "<i8"),
        ("loss", "<f4"),
        ("raw_norm", "<f4"),
        ("clipped_norm", "<f4"),
        ("update_norm", "<f4"),
        ("weight_norm", "<f4"),
        ("learning_rate", "<f4"),
        ("loss_scale", "<f4"),
        ("skipped", "<f4"),
        ("replica_norm", "<f4"),
    ]
)
"""One row a step. `step` counts from 0, skipped steps included; `loss` is the step's own,
data and regularizers, unscaled; the norms are those of all variables as one vector;
`skipped` is 1 where the optimizer made no update (loss scaling met an overflow);
`replica_norm` is the root mean square, over replicas, of the raw norm that each one's
share of the batch has by itself, NaN with one replica: what it exceeds `raw_norm` by is
noise of the batch."""

_PARTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "min": lambda series: series.min(axis=0),
    "median": lambda series: _median(series),
    "max": lambda series: series.max(axis=0),
}

_ROUNDING = 1e-5

WINDOW_STATS = (
    *(f"{norm}/{part}" for norm in (*NORMS, "update_ratio") for part in _PARTS),
    "clipped_fraction",
    *MOMENTS,
)
"""One value per variable and window. `<norm>/min`, `/median` and `/max` are over the window's
steps; `clipped_fraction` is the share of steps at which clipping made the variable's
gradient shorter; of `MOMENTS`, `raw_max_abs` is the window's largest,
`raw_nonfinite_count` its sum, and the others are those of its last step recorded in full."""

WINDOW_ACTIVATIONS = (
    *(f"{name}/{part}" for name in ACTIVATIONS for part in _PARTS),
    "dead_fraction",
)
"""One value per activation layer and window, over the window's steps whose activations
were recorded. `dead_fraction` is the share of the layer's units (channels) that are exactly
zero for every image of the probe set, at every position, when the window ends; NaN without
a probe set."""


def _no_activations() -> np.ndarray:
    return np.empty((0, 0, len(ACTIVATIONS)), np.float32)


@dataclass(frozen=True)
class RecordedSteps:
    """What the recorder holds of consecutive recorded steps, as it comes from the graph.

    Attributes:
        steps: Shape (steps,), dtype `STEP_DTYPE`.
        norms: Shape (steps, variables, len(NORMS)), float32.
        moments: Shape (steps, variables, len(MOMENTS)), float32; NaN at steps that
            were not recorded in full.
        activations: Shape (steps, layers, len(ACTIVATIONS)), float32; NaN at steps whose
            activations were not recorded. No layers by default.
        dead_fraction: Of each layer over the probe set at the end of these steps, shape
            (layers,), or None.
        histograms: Counts of the values of each raw gradient between `HISTOGRAM_BOUNDS`,
            shape (steps, variables, bins), float32; NaN at steps that were not recorded in
            full. None if nothing was counted.
    """

    steps: np.ndarray
    norms: np.ndarray
    moments: np.ndarray
    activations: np.ndarray = field(default_factory=_no_activations)
    dead_fraction: np.ndarray | None = None
    histograms: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def has_activations(self) -> np.ndarray:
        """Whether each step's activations were recorded, shape (steps,), bool."""
        if not self.activations.size:
            return np.zeros(len(self), np.bool_)
        counts = self.activations[:, :, ACTIVATIONS.index("nonfinite_count")]
        return np.asarray(~np.isnan(counts).all(axis=1))

    def summarize(self) -> np.ndarray:
        """Return the window's table, shape (len(WINDOW_STATS), variables), float32."""
        raw, clipped, update, weight = np.moveaxis(self.norms.astype(np.float64), -1, 0)
        # A weight of zeros (a bias at its start) has no ratio: NaN, or 0 while it stays.
        with np.errstate(divide="ignore", invalid="ignore"):
            stays = (weight == 0) & (update == 0)
            ratio = np.where(weight > 0, update / weight, np.where(stays, 0.0, np.nan))
        rows = [
            summarize(series)
            for series in (raw, clipped, update, weight, ratio)
            for summarize in _PARTS.values()
        ]
        rows.append(np.mean(is_shorter(clipped, raw), axis=0))
        full = self.moments[~np.isnan(self.moments[:, 0, -1])]
        if len(full):
            rows += list(full[-1, :, :2].T)
            rows += [full[:, :, 2].max(axis=0), full[-1, :, 3], full[:, :, 4].sum(axis=0)]
        else:
            rows += [np.full(raw.shape[1], np.nan)] * len(MOMENTS)
        return _stacked(rows)

    def summarize_activations(self) -> np.ndarray | None:
        """Return the window's activations, None if nothing of it recorded them.

        Returns:
            Shape (len(WINDOW_ACTIVATIONS), layers), float32.
        """
        has_activations = self.has_activations
        absent = np.full(self.activations.shape[1], np.nan)
        dead = absent if self.dead_fraction is None else self.dead_fraction
        if not has_activations.any():
            if self.dead_fraction is None:
                return None
            return _stacked([absent] * (len(WINDOW_ACTIVATIONS) - 1) + [dead])
        columns = np.moveaxis(self.activations[has_activations].astype(np.float64), -1, 0)
        rows = [summarize(c) for c in columns for summarize in _PARTS.values()]
        return _stacked([*rows, dead])


def _stacked(rows: list[np.ndarray]) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.stack(rows).astype("<f4")


def _median(series: np.ndarray) -> np.ndarray:
    """Median over steps, NaN where any step is, without NumPy's warning for it."""
    with np.errstate(invalid="ignore"):
        middle = np.sort(series, axis=0)
        lower, upper = middle[(len(middle) - 1) // 2], middle[len(middle) // 2]
        # Halves first: the sum of two large norms could overflow.
        return np.where(np.isnan(series).any(axis=0), np.nan, lower / 2 + upper / 2)


def is_shorter(clipped: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Return where clipping made a norm shorter by more than rounding does.

    Clipping multiplies what it leaves alone by one, computed as a quotient of norms, which
    moves a norm by some 1e-7 in float32.

    Args:
        clipped: Norms behind clipping, any shape.
        raw: Norms before it, the same shape.

    Returns:
        Bool, the same shape; False where the raw norm is not finite.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(raw) & (clipped < raw * (1 - _ROUNDING)))
