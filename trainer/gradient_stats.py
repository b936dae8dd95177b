"""The arithmetic of the gradient statistics: norms, moments, and what clipping leaves.

All functions work on tensors inside a traced step, and none waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.recorded_steps import HISTOGRAM_BOUNDS

# The root of the largest float32.
_LARGEST_SQUARABLE = 1.8446743e19
# Values of a tensor that is stacked with others: to copy a larger one takes longer than
# the few nodes that it saves.
_LARGEST_STACKED = 2**16
# Values that are taken in float64: a copy of more would be felt in memory.
_LARGEST_COPIED = 2**20

_FLOAT32_BIAS = 127
_LARGEST_EXPONENT = 127
_BINS_OF_A_SIGN = len(HISTOGRAM_BOUNDS) // 2 - 1
_LOWEST_EXPONENT = int(np.log2(HISTOGRAM_BOUNDS[_BINS_OF_A_SIGN + 1]))


class Rows:
    """Tensors, those of equal shape stacked as the rows of one matrix.

    A graph of a few nodes a shape instead of a tensor: for a deep network they are most
    of the time to trace the recorder and of the memory to hold it.

    Args:
        tensors: Float32, of any shapes; those of unknown or large shapes stay alone.
    """

    def __init__(self, tensors: Sequence[tf.Tensor]) -> None:
        self._groups = _group_by_shape([tensor.shape for tensor in tensors])
        self._matrices = [_stacked([tensors[i] for i in group]) for group in self._groups]

    def minus(self, other: Rows) -> Rows:
        """Return the differences to as many tensors of the same shapes."""
        result = copy(self)
        pairs = zip(self._matrices, other._matrices, strict=True)
        result._matrices = [ours - theirs for ours, theirs in pairs]
        return result

    def sizes(self) -> tf.Tensor:
        """Return the number of values of each tensor, shape (tensors,), float32."""
        return self.each(_row_sizes)

    def each(self, function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """Return a result for each tensor, along the first axis and in their order.

        Args:
            function: From a matrix (rows, size), and the number of its second axis, to the
                results of its rows.
        """
        # One node for all the reductions, not one for each.
        axis = tf.constant(1)
        results = tf.concat([function(matrix, axis) for matrix in self._matrices], axis=0)
        return tf.gather(results, np.argsort(np.concatenate(self._groups)))


def _stacked(tensors: list[tf.Tensor]) -> tf.Tensor:
    stacked = tensors[0] if len(tensors) == 1 else tf.stack(tensors)
    return tf.reshape(stacked, [len(tensors), -1])


def _row_sizes(rows: tf.Tensor, axis: tf.Tensor) -> tf.Tensor:
    num_rows, size = rows.shape
    if size is None:
        return tf.fill([num_rows], tf.cast(tf.shape(rows)[1], tf.float32))
    return tf.constant(size, tf.float32, [num_rows])


def _group_by_shape(shapes: Sequence[tf.TensorShape]) -> list[list[int]]:
    groups: list[list[int]] = []
    last_of: dict[tuple[int, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        if not shape.is_fully_defined():
            groups.append([index])
            continue
        key = tuple(shape)
        group = last_of.get(key)
        if group is None or prod(key) > _LARGEST_STACKED:
            group = last_of[key] = []
            groups.append(group)
        group.append(index)
    return groups


def sums_of_squares(rows: tf.Tensor, axis: tf.Tensor) -> tf.Tensor:
    """Return the sum of squares of each row, over the whole range of float32.

    Args:
        rows: Shape (rows, size), float32.
        axis: Of `size`.

    Returns:
        Shape (rows,), float64; not finite where a value is not.
    """
    if rows.shape.is_fully_defined() and rows.shape.num_elements() <= _LARGEST_COPIED:
        return tf.reduce_sum(tf.square(tf.cast(rows, tf.float64)), axis)
    # Too large for a copy in float64. Squares of what is below 1e-19 or above 1e19 would
    # leave the range of float32.
    largest = tf.maximum(tf.reduce_max(rows, axis), -tf.reduce_min(rows, axis))
    scale = tf.where(tf.math.is_finite(largest) & (largest > 0), largest, 1.0)
    scaled = tf.reduce_sum(tf.square(rows / scale[:, None]), axis)
    return tf.square(tf.cast(scale, tf.float64)) * tf.cast(scaled, tf.float64)


def l2_norms(rows: Rows) -> tf.Tensor:
    """Return the L2 norm of each tensor, shape (tensors,), float32."""
    return tf.cast(tf.sqrt(rows.each(sums_of_squares)), tf.float32)


def moments(rows: Rows) -> tf.Tensor:
    """Return `recorded_steps.MOMENTS` of each tensor, shape (tensors, len(MOMENTS)), float32.

    Each is made of reductions of their own, so that XLA can compute them beside the
    training step without another look at a result. The variance is a difference of
    means, which float64 allows: no square of a float32 leaves its range, and digits are
    lost only where the deviation is below 1e-7 of the mean, which is where those of
    float32 end.
    """
    mean, mean_square, max_abs, zeros, nonfinite = tf.unstack(rows.each(_moment_parts), axis=1)
    variance = mean_square - tf.square(mean)
    columns = [
        mean,
        tf.sqrt(tf.where(variance < 0, tf.zeros_like(variance), variance)),
        # XLA's maximum on a CPU passes over NaN; the mean does not.
        tf.where(tf.math.is_nan(mean) & tf.math.is_finite(max_abs), mean, max_abs),
        zeros,
        nonfinite,
    ]
    return tf.cast(tf.stack(columns, axis=1), tf.float32)


def _moment_parts(rows: tf.Tensor, axis: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(rows, tf.float64)
    columns = [
        tf.reduce_mean(wide, axis),
        tf.reduce_mean(tf.square(wide), axis),
        tf.reduce_max(tf.abs(wide), axis),
        tf.reduce_mean(tf.cast(tf.equal(rows, 0), tf.float64), axis),
        tf.reduce_sum(tf.cast(~tf.math.is_finite(rows), tf.float64), axis),
    ]
    return tf.stack(columns, axis=1)


def histograms(rows: Rows) -> tf.Tensor:
    """Return the counts of the values of each tensor, shape (tensors, bins), float32.

    Bins are those of `recorded_steps.HISTOGRAM_BOUNDS`. They are found from the exponents
    of the numbers, without a logarithm.
    """
    return rows.each(_bin_counts)


def _bin_counts(rows: tf.Tensor, axis: tf.Tensor) -> tf.Tensor:
    bits = tf.bitcast(rows, tf.int32)
    exponent = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 23), 255) - _FLOAT32_BIAS
    # From 1 at the smallest magnitude that is told apart from 0.
    place = tf.minimum(exponent - _LOWEST_EXPONENT + 1, _BINS_OF_A_SIGN)
    place = tf.where(exponent < _LOWEST_EXPONENT, 0, place)
    place = _BINS_OF_A_SIGN + tf.where(bits < 0, -place, place)
    num_rows, num_bins = tf.shape(rows)[0], 2 * _BINS_OF_A_SIGN + 1
    place += num_bins * tf.range(num_rows)[:, None]
    # A negative segment is left out.
    place = tf.where(exponent > _LARGEST_EXPONENT, -1, place)
    # Not of float32, which stops counting at 2^24.
    ones = tf.ones_like(place)
    counts = tf.cast(tf.math.unsorted_segment_sum(ones, place, num_bins * num_rows), tf.float32)
    return tf.reshape(counts, [num_rows, num_bins])


def clipped_norms(
    grads: Sequence[Any], raw_norm: tf.Tensor, clipping: dict[str, float]
) -> tf.Tensor:
    """Return the norms after Keras' clipping, exactly `raw_norm` where it changes nothing.

    Args:
        grads: Raw gradients, those of embeddings as `tf.IndexedSlices`.
        raw_norm: Their L2 norms, shape (len(grads),), float32.
        clipping: The one clipping that is set, such as `{"clipnorm": 1.0}`, or nothing.

    Returns:
        Shape (len(grads),), float32.
    """
    if "clipvalue" in clipping:
        bound = clipping["clipvalue"]
        clipped = [map_values(lambda v: tf.clip_by_value(v, -bound, bound), g) for g in grads]
        return l2_norms(Rows([tf.convert_to_tensor(grad) for grad in clipped]))
    norm = raw_norm
    sparse = [i for i, grad in enumerate(grads) if isinstance(grad, tf.IndexedSlices)]
    if clipping and sparse:
        # Keras clips by the norm of an embedding's rows before those of one token are added up.
        row_norms = l2_norms(Rows([grads[i].values for i in sparse]))
        norm = tf.tensor_scatter_nd_update(norm, [[i] for i in sparse], row_norms)
    # Keras divides by the root of a float32 sum of squares, infinite from here on: that
    # leaves 0 of a gradient, and NaN where it is not finite or clipped with all others.
    if "clipnorm" in clipping:
        bound = clipping["clipnorm"]
        norm = tf.where(norm < _LARGEST_SQUARABLE, norm, np.inf)
        # Not by a factor that is one: Eigen's division of many numbers at a time rounds.
        return tf.where(norm > bound, raw_norm * (bound / norm), raw_norm)
    if "global_clipnorm" in clipping:
        total = norm_of_norms(norm)
        factor = tf.minimum(1.0, clipping["global_clipnorm"] / total)
        return raw_norm * tf.where(total < _LARGEST_SQUARABLE, factor, np.nan)
    return raw_norm


def norm_of_norms(norms: tf.Tensor) -> tf.Tensor:
    """Return the norm of all variables as one vector: the norm over the first axis."""
    total = tf.sqrt(tf.reduce_sum(tf.square(tf.cast(norms, tf.float64)), axis=0))
    return tf.cast(total, tf.float32)


def map_values(function: Callable[[tf.Tensor], tf.Tensor], grad: Any) -> Any:
    """Apply `function` to a gradient; to the rows that are there, if it is an embedding's."""
    if isinstance(grad, tf.IndexedSlices):
        return tf.IndexedSlices(function(grad.values), grad.indices, grad.dense_shape)
    return function(grad)
