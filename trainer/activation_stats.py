"""The arithmetic of the activation statistics, inside the traced step.

Replicas see different images: each computes parts of its own (`PARTS`), and
`combine_replicas` makes one figure of them on the host, so that no value travels
between devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.bounded_values import SATURATIONS, Bounded, Saturation
from trainer.gradient_stats import Rows, sums_of_squares
from trainer.recorded_steps import ACTIVATIONS

PARTS = ("count", *ACTIVATIONS)
"""What each replica computes: the number of values looked at, and their statistics."""

# Passing over sixteen images of a 32x32 map every step is most of what the statistics cost.
_ENOUGH_VALUES = 2**16
_FEWEST_IMAGES = 4


def saturation_of(layer: keras.layers.Layer) -> Saturation | None:
    """Return where a layer's output is saturated, or None if that has no bounds.

    A block's own `last_activation` counts before its `activation`: it says what the
    output passes through last, and None that it is a sum.
    """
    last = getattr(layer, "last_activation", layer)
    function = getattr(last, "activation", None)
    return SATURATIONS.get(function) if callable(function) else None


def activation_parts(
    outputs: Sequence[Sequence[tf.Tensor]],
    saturations: Sequence[Saturation | None],
    num_images: int | None,
    is_bad: tf.Tensor | None = None,
    inner: Sequence[Sequence[Bounded]] | None = None,
) -> tf.Tensor:
    """Return `PARTS` of each layer's outputs.

    Args:
        outputs: Per layer what it returned in this step, once for each call, any floating
            dtype, images along the first axis. A layer's calls count as one set of values.
        saturations: Per layer.
        num_images: Only the first so many images are looked at, fewer where an image has so
            many values that a few of them tell as much; None is all.
        is_bad: Whether the step is not finite, a boolean scalar: non-finite values are
            then counted over all images, whatever `num_images` says, and are zero in
            other steps. None counts them always, without a branch.
        inner: Per layer its bounded values inside: the saturated fraction is the largest
            of them and of the output.

    Returns:
        Shape (layers, len(PARTS)), float32; NaN for a layer without outputs.
    """
    seen = [index for index, calls in enumerate(outputs) if calls]
    if not seen:
        return tf.fill((len(outputs), len(PARTS)), np.float32(np.nan))
    values = [_values(outputs[index], num_images) for index in seen]

    def nonfinite_counts() -> tf.Tensor:
        counted = [_values(outputs[index], None) for index in seen]
        return tf.stack([tf.reduce_sum(_indicator(~tf.math.is_finite(each))) for each in counted])

    counts = (
        nonfinite_counts()
        if is_bad is None
        else tf.cond(is_bad, nonfinite_counts, lambda: tf.zeros(len(values)))
    )
    saturated = [
        _saturated_fraction(each, saturations[index], inner[index] if inner else (), num_images)
        for each, index in zip(values, seen, strict=True)
    ]
    rows = Rows(values)
    sizes = rows.sizes()
    mean, deviation, largest, zeros = tf.unstack(rows.each(_row_parts), axis=1)
    # A maximum may pass over NaN; the mean does not.
    largest = tf.where(tf.math.is_nan(mean) & tf.math.is_finite(largest), mean, largest)
    std = deviation / tf.sqrt(sizes)
    parts = tf.stack([sizes, mean, std, largest, zeros, tf.stack(saturated), counts], axis=1)
    if len(seen) == len(outputs):
        return parts
    absent = tf.fill((1, len(PARTS)), np.float32(np.nan))
    places = [seen.index(index) if index in seen else len(seen) for index in range(len(outputs))]
    return tf.gather(tf.concat([parts, absent], axis=0), places)


def _row_parts(rows: tf.Tensor, axis: tf.Tensor) -> tf.Tensor:
    """Mean, L2 norm about it, largest magnitude and zeros of each row, shape (rows, 4)."""
    mean = tf.reduce_mean(rows, axis, keepdims=True)
    columns = [
        tf.squeeze(mean, axis=1),
        tf.cast(tf.sqrt(sums_of_squares(rows - mean, axis)), tf.float32),
        # No matrix of magnitudes is made.
        tf.maximum(tf.reduce_max(rows, axis), -tf.reduce_min(rows, axis)),
        tf.reduce_mean(_indicator(tf.equal(rows, 0)), axis),
    ]
    return tf.stack(columns, axis=1)


def combine_replicas(parts: np.ndarray) -> np.ndarray:
    """Make the statistics of all values of those of each replica's share.

    Args:
        parts: Shape (replicas, ..., len(PARTS)), float32. A share may be empty.

    Returns:
        Shape (..., len(ACTIVATIONS)), float32.
    """
    if len(parts) == 1:
        return parts[0, ..., 1:]
    parts = parts.astype(np.float64)
    counts = parts[..., :1]
    with np.errstate(invalid="ignore", over="ignore"):
        shares = counts / counts.sum(axis=0)
        # Statistics of no values are NaN or infinite.
        mean, std, max_abs, zeros, saturated, nonfinite = np.moveaxis(
            np.where(counts == 0, 0.0, parts[..., 1:]), -1, 0
        )
        shares = shares[..., 0]
        total_mean = (shares * mean).sum(axis=0)
        variance = (shares * (std**2 + np.square(mean - total_mean))).sum(axis=0)
        columns = [
            total_mean,
            np.sqrt(variance),
            max_abs.max(axis=0),
            (shares * zeros).sum(axis=0),
            (shares * saturated).sum(axis=0),
            # Only what was recorded has shares.
            np.where(np.isnan(shares).any(axis=0), np.nan, nonfinite.sum(axis=0)),
        ]
        return np.stack(columns, axis=-1).astype(np.float32)


def _values(calls: Sequence[tf.Tensor], num_images: int | None) -> tf.Tensor:
    """What one layer returned, as one float32 tensor."""
    parts = [
        tf.cast(
            call
            if num_images is None or not call.shape.rank
            else call[: _enough(call, num_images)],
            "float32",
        )
        for call in calls
    ]
    return parts[0] if len(parts) == 1 else tf.concat([tf.reshape(p, [-1]) for p in parts], 0)


def _enough(call: tf.Tensor, num_images: int) -> int:
    """Of the images of a large map, as many as hold `_ENOUGH_VALUES`, but a few at least."""
    size = call.shape[1:].num_elements()
    if not size:
        return num_images
    return min(num_images, max(_FEWEST_IMAGES, _ENOUGH_VALUES // size))


def _saturated_fraction(
    values: tf.Tensor,
    saturation: Saturation | None,
    inner: Sequence[Bounded],
    num_images: int | None,
) -> Any:
    bounded = [] if saturation is None else [(values, saturation)]
    bounded += [(_values([each], num_images), where) for each, where in inner]
    if not bounded:
        return tf.constant(np.nan, tf.float32)
    return tf.reduce_max(tf.stack([_share_beyond(*each) for each in bounded]))


def _share_beyond(values: tf.Tensor, saturation: Saturation) -> tf.Tensor:
    if saturation.of_largest:
        values = tf.reduce_max(values, axis=-1)
    return tf.reduce_mean(_indicator(tf.abs(values - saturation.center) > saturation.radius))


def _indicator(is_so: tf.Tensor) -> tf.Tensor:
    return tf.cast(is_so, tf.float32)
