"""Reduce what was recorded of each window to few columns, so that any log fits a picture.

A value of a picture is a number, zero, not finite, or absent; on a logarithmic scale the
last three have no place, and are kept apart. NumPy only.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from trainer.gradient_log import GradientLog

MOST_COLUMNS = 300
_MOST_CELLS = 60_000


@dataclass(frozen=True)
class Columns:
    """Consecutive windows of a log, gathered into columns.

    Attributes:
        bounds: First window of each column, and the number of windows at the end; shape
            (columns + 1,), int64.
        edges: Step at which each column begins, and the one after the last; shape
            (columns + 1,), int64.
    """

    bounds: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, log: GradientLog) -> Columns:
        """Gather the windows of a log with at least one; the more variables, the fewer columns."""
        num_windows = len(log.window_steps)
        wide = _MOST_CELLS // max(len(log.header.variables), 1)
        count = min(num_windows, MOST_COLUMNS, max(wide, 60))
        bounds = np.linspace(0, num_windows, count + 1).round().astype(np.int64)
        first, last = log.window_steps[:, 0], log.window_steps[:, 1]
        return cls(bounds, np.append(first[bounds[:-1]], last[-1] + 1))

    def __len__(self) -> int:
        return len(self.edges) - 1

    @property
    def windows_each(self) -> int:
        """Windows in the largest column."""
        return int(np.diff(self.bounds).max())

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return the median over each column's windows without NaN, NaN where all are.

        Args:
            values: Shape (windows, rows).

        Returns:
            Shape (columns, rows), float64.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.stack([np.nanmedian(part, axis=0) for part in self._parts(values)])

    def any_of(self, flags: np.ndarray) -> np.ndarray:
        """Return whether a flag is set in any of each column's windows, shape (columns, rows)."""
        return np.stack([part.any(axis=0) for part in self._parts(flags)])

    def _parts(self, values: np.ndarray) -> list[np.ndarray]:
        return [
            values[low:high] for low, high in zip(self.bounds[:-1], self.bounds[1:], strict=True)
        ]

    def of_steps(self, steps: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
        """Return the values of the steps in each column.

        Args:
            steps: Ascending, shape (steps,).
            values: Of these steps, shape (steps,).
        """
        return np.split(values, np.searchsorted(steps, self.edges[1:-1]))


@dataclass(frozen=True)
class Picture:
    """A quantity by place and time, as a picture shows it.

    Attributes:
        log10: Shape (rows, columns), float64; NaN where the value has no logarithm.
        is_zero: Whether it is exactly 0, the same shape.
        is_nonfinite: Whether any of it was not finite, the same shape.
    """

    log10: np.ndarray
    is_zero: np.ndarray
    is_nonfinite: np.ndarray

    @classmethod
    def of(cls, columns: Columns, values: np.ndarray, is_nonfinite: np.ndarray) -> Picture:
        """Gather a quantity.

        Args:
            columns: Of the log.
            values: Shape (windows, rows); at least 0, NaN where absent.
            is_nonfinite: Shape (windows, rows), bool: where something was not finite.
        """
        exact = values.astype(np.float64)
        gathered = columns.gather(np.where(np.isfinite(exact), exact, np.nan)).T
        with np.errstate(divide="ignore", invalid="ignore"):
            log10 = np.where(gathered > 0, np.log10(gathered), np.nan)
        flags = columns.any_of(is_nonfinite | np.isinf(exact)).T
        return cls(np.where(flags, np.nan, log10), (gathered == 0) & ~flags, flags)

    def rows(self, indices: np.ndarray) -> Picture:
        """Return some of its rows."""
        return Picture(self.log10[indices], self.is_zero[indices], self.is_nonfinite[indices])

    @property
    def extent(self) -> tuple[float, float]:
        """Smallest and largest logarithm, at least one apart."""
        finite = self.log10[np.isfinite(self.log10)]
        if not finite.size:
            return -1.0, 0.0
        low, high = float(finite.min()), float(finite.max())
        middle = (low + high) / 2
        return min(low, middle - 0.5), max(high, middle + 0.5)


def gradient_picture(log: GradientLog, columns: Columns) -> Picture:
    """Return the raw norm of each variable: the median over the steps of each column."""
    return Picture.of(columns, log.stat("raw_norm/median"), raw_is_nonfinite(log))


def ratio_picture(log: GradientLog, columns: Columns) -> Picture:
    """Return the update ratio of each variable; absent where the weight is nothing but zeros."""
    return Picture.of(columns, log.stat("update_ratio/median"), update_is_nonfinite(log))


def activation_picture(log: GradientLog, columns: Columns) -> Picture:
    """Return the standard deviation of what each layer puts out; absent where not recorded."""
    with np.errstate(invalid="ignore"):
        is_nonfinite = log.activation("nonfinite_count/max") > 0
    return Picture.of(columns, log.activation("std/median"), is_nonfinite)


def raw_is_nonfinite(log: GradientLog) -> np.ndarray:
    """Return where a raw gradient was not finite, shape (windows, variables), bool."""
    return np.asarray(~np.isfinite(log.stat("raw_norm/max")))


def update_is_nonfinite(log: GradientLog) -> np.ndarray:
    """Return where an update or its weight was not finite, shape (windows, variables), bool."""
    norms = log.stat("update_norm/max"), log.stat("weight_norm/max")
    return ~(np.isfinite(norms[0]) & np.isfinite(norms[1]))


def forward_order(log: GradientLog) -> np.ndarray:
    """Return the indices of all variables, first layer first, shape (variables,), int64."""
    return np.array(log.header.order or range(len(log.header.variables)), np.int64)
