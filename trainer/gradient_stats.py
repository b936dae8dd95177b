"""The arithmetic of the gradient statistics: norms, moments, and what clipping leaves.

All functions work on tensors inside a traced step, and none waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import tensorflow as tf

# Squares of float32 lose their digits below and overflow above these (sum of squares / 2).
_SMALLEST_SAFE = 1e-30
_LARGEST_SAFE = 1e37
_LARGEST_SQUARABLE = 1.8446743e19
# Values in a stack of tensors: a copy of more would be felt in memory.
_LARGEST_STACK = 2**20


def l2_norms(tensors: Sequence[tf.Tensor], can_branch: bool = True) -> tf.Tensor:
    """Return the L2 norm of each tensor, shape (len(tensors),), float32.

    One fused pass over each tensor. Where a square would leave the range of
    float32 (norms below 1e-15 or above 1e18, and zeros), a second one in float64.

    Args:
        tensors: Float32, of any shapes.
        can_branch: Take all norms in float64 if not.
    """

    def in_float64() -> tf.Tensor:
        def norms(rows: tf.Tensor) -> tf.Tensor:
            return tf.sqrt(tf.reduce_sum(tf.square(tf.cast(rows, tf.float64)), axis=1))

        return tf.cast(_row_by_row(norms, tensors), tf.float32)

    if not can_branch:
        return in_float64()
    halves = tf.stack([tf.nn.l2_loss(tensor) for tensor in tensors])
    is_safe = (halves > _SMALLEST_SAFE) & (halves < _LARGEST_SAFE)
    norms = tf.sqrt(2.0 * halves)
    return tf.cond(
        tf.reduce_all(is_safe), lambda: norms, lambda: tf.where(is_safe, norms, in_float64())
    )


def moments(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return `gradient_log.MOMENTS` of each tensor, one row a tensor, float32.

    Each is a reduction of its own, so that XLA can compute it beside the training step
    without another look at a result. The variance is a difference of means, which float64
    allows: no square of a float32 leaves its range, and digits are lost only where the
    deviation is below 1e-7 of the mean, which is where those of float32 end.
    """

    def of_rows(rows: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(rows, tf.float64)
        mean = tf.reduce_mean(wide, axis=1)
        variance = tf.reduce_mean(tf.square(wide), axis=1) - tf.square(mean)
        max_abs = tf.reduce_max(tf.abs(rows), axis=1)
        columns = [
            mean,
            tf.sqrt(tf.where(variance < 0, tf.zeros_like(variance), variance)),
            # XLA's maximum on a CPU passes over NaN; the mean does not.
            tf.where(tf.math.is_nan(mean) & tf.math.is_finite(max_abs), np.nan, max_abs),
            tf.reduce_mean(tf.cast(tf.equal(rows, 0), tf.float32), axis=1),
            tf.reduce_sum(tf.cast(~tf.math.is_finite(rows), tf.float32), axis=1),
        ]
        return tf.stack([tf.cast(column, tf.float32) for column in columns], axis=1)

    return _row_by_row(of_rows, tensors)


def _row_by_row(
    function: Callable[[tf.Tensor], tf.Tensor], tensors: Sequence[tf.Tensor]
) -> tf.Tensor:
    """Compute one result a tensor, those of equal shape together.

    The graph then has a few nodes a shape instead of a tensor, which for a deep network
    is most of the time to trace it and of the memory to hold it.

    Args:
        function: From rows, one a tensor, shape (rows, size), to one result a row.
        tensors: Of any shapes.

    Returns:
        The results along the first axis, in the order of `tensors`.
    """
    groups: list[list[int]] = []
    open_group: dict[tuple[int, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        shape = tuple(tensor.shape) if tensor.shape.is_fully_defined() else None
        group = None if shape is None else open_group.get(shape)
        if shape is None or group is None or (len(group) + 1) * prod(shape) > _LARGEST_STACK:
            group = []
            groups.append(group)
            if shape is not None:
                open_group[shape] = group
        group.append(index)
    results = [
        function(tf.reshape(tf.stack([tensors[i] for i in group]), [len(group), -1]))
        for group in groups
    ]
    places = np.argsort(np.concatenate(groups))
    return tf.gather(tf.concat(results, axis=0), places)


def clipped_norms(
    grads: Sequence[Any], raw_norm: tf.Tensor, clipping: dict[str, float], can_branch: bool
) -> tf.Tensor:
    """Return the norms after Keras' clipping, exactly `raw_norm` where it changes nothing.

    Args:
        grads: Raw gradients, those of embeddings as `tf.IndexedSlices`.
        raw_norm: Their L2 norms, shape (len(grads),), float32.
        clipping: The one clipping that is set, such as `{"clipnorm": 1.0}`, or nothing.
        can_branch: As for `l2_norms`.

    Returns:
        Shape (len(grads),), float32.
    """
    if "clipvalue" in clipping:
        bound = clipping["clipvalue"]
        clipped = [map_values(lambda v: tf.clip_by_value(v, -bound, bound), g) for g in grads]
        return l2_norms([tf.convert_to_tensor(grad) for grad in clipped], can_branch)
    norm = raw_norm
    sparse = [i for i, grad in enumerate(grads) if isinstance(grad, tf.IndexedSlices)]
    if clipping and sparse:
        # Keras clips by the norm of an embedding's rows before those of one token are added up.
        row_norms = l2_norms([grads[i].values for i in sparse], can_branch)
        norm = tf.tensor_scatter_nd_update(norm, [[i] for i in sparse], row_norms)
    # Keras divides by the root of a float32 sum of squares, infinite from here on: that
    # leaves 0 of a gradient, and NaN where it is not finite or clipped with all others.
    if "clipnorm" in clipping:
        bound = clipping["clipnorm"]
        norm = tf.where(norm < _LARGEST_SQUARABLE, norm, np.inf)
        return raw_norm * (bound / tf.maximum(norm, bound))
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
