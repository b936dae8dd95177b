"""Augmentation of whole training batches, a pure function of the seed and the step.

Only stateless random ops are used, each augmentation with draws of its own: a
resumed run augments like an uninterrupted one, and adding an augmentation leaves
the draws of the others alone. Dimensions used below:
    batch     images of one step, in shuffled order
    height, width, channels    of one image
    classes   labels are one-hot, or blends of one-hot
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from trainer.config.schema import Augmentation, Cutout, HorizontalFlip, Mixup, RandomShift
from trainer.errors import ConfigError


def fold_seed(seed: int, purpose: str, number: tf.Tensor) -> tf.Tensor:
    """Return a stateless seed for one purpose at one step or epoch.

    Args:
        seed: Of the run.
        purpose: Separates streams; different purposes draw independently.
        number: Step or epoch, scalar int64.

    Returns:
        Shape (2,), int64.
    """
    # A checksum, because Python's own hash of a string differs between processes.
    return tf.random.fold_in(tf.constant([seed, zlib.crc32(purpose.encode())], tf.int64), number)


@dataclass(frozen=True)
class _Draw:
    """Where one augmentation takes its randomness from."""

    run_seed: int
    purpose: str
    step: tf.Tensor

    def seed(self, what: str = "") -> tf.Tensor:
        return fold_seed(self.run_seed, f"{self.purpose}/{what}", self.step)


def augment_batch(
    images: tf.Tensor,
    labels: tf.Tensor,
    *,
    indices: tf.Tensor,
    epoch: tf.Tensor,
    step: tf.Tensor,
    seed: int,
    augmentations: Sequence[Augmentation],
    mean_color: np.ndarray | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Apply `augmentations` in their order to one batch.

    Args:
        images: Shape (batch, height, width, channels), uint8 or float32, 0..255.
        labels: Shape (batch, classes), float32.
        indices: Place of each image in the training set, shape (batch,), int64.
        epoch: Scalar int64, counted from zero.
        step: Scalar int64, counted from zero over all epochs.
        seed: Of the run.
        augmentations: What to do.
        mean_color: Fills the squares of `Cutout`, shape (channels,), float32, 0..255.

    Returns:
        Images and labels in the shapes of the arguments. Images keep their dtype,
        but are float32 after `Mixup`.

    Raises:
        ConfigError: If a shift with reflection is not smaller than the image.
    """
    occurrences: Counter[str] = Counter()
    for augmentation in augmentations:
        kind = augmentation.kind
        # Named by kind and not by place in the list, so that neighbours do not matter.
        draw = _Draw(seed, f"{kind}/{occurrences[kind]}", step)
        occurrences[kind] += 1
        match augmentation:
            case HorizontalFlip(mode="random"):
                images = _flip(images, _draw_flips(images, draw))
            case HorizontalFlip(mode="alternating"):
                images = _flip(images, _alternate_flips(indices, epoch, draw))
            case RandomShift():
                images = _shift(images, augmentation, draw)
            case Cutout():
                if mean_color is None:
                    raise ValueError("`mean_color` must be given for Cutout. Received: None")
                images = _cut_out(images, augmentation.size, mean_color, draw)
            case Mixup():
                images, labels = _mix_up(images, labels, augmentation.alpha, draw)
            case _:
                raise ValueError(f"no such augmentation. Received: kind={kind!r}")
    return images, labels


def _draw_flips(images: tf.Tensor, draw: _Draw) -> tf.Tensor:
    return _draw_integers(tf.shape(images)[:1], 2, draw.seed())


def _alternate_flips(indices: tf.Tensor, epoch: tf.Tensor, draw: _Draw) -> tf.Tensor:
    """Mirror an image in even epochs or in odd ones, by a bit that is fixed for the run."""
    first = tf.strings.to_hash_bucket_strong(
        tf.strings.as_string(indices), 2, key=[draw.run_seed, zlib.crc32(draw.purpose.encode())]
    )
    return tf.cast((first + epoch) % 2, tf.int32)


def _flip(images: tf.Tensor, flipped: tf.Tensor) -> tf.Tensor:
    """Mirror the images whose entry in `flipped`, shape (batch,), int32, is 1 and not 0."""
    # Picking whole images takes a fifth of the time of a broadcast tf.where on a CPU.
    both = tf.stack([images, tf.reverse(images, axis=[2])], axis=1)
    return tf.gather(both, flipped, axis=1, batch_dims=1)


def _shift(images: tf.Tensor, spec: RandomShift, draw: _Draw) -> tf.Tensor:
    pixels = spec.pixels
    _, height, width, channels = images.shape
    if spec.padding == "reflect" and pixels >= min(height, width):
        raise ConfigError(
            "random_shift with padding: reflect needs pixels smaller than the image. "
            f"Received: pixels={pixels}, images of {height}x{width}. Lower pixels or use "
            "padding: zero"
        )
    offsets = _draw_integers([tf.shape(images)[0], 2], 2 * pixels + 1, draw.seed()) - pixels
    # So far outside that the sum below is negative, whatever the other axis says.
    rows = _sources(offsets[:, 0], height, spec.padding, outside=-1)
    columns = _sources(offsets[:, 1], width, spec.padding, outside=-height * width)
    black = tf.zeros([channels], images.dtype)
    return _take_pixels(images, rows[:, :, None] * width + columns[:, None, :], black)


def _sources(offsets: tf.Tensor, length: int, padding: str, outside: int) -> tf.Tensor:
    """Return where each of `length` pixels comes from along one axis, shape (batch, length)."""
    places = offsets[:, None] + tf.range(length)
    if padding == "reflect":
        return length - 1 - tf.abs(length - 1 - tf.abs(places))
    return tf.where((places >= 0) & (places < length), places, outside)


def _cut_out(images: tf.Tensor, size: int, mean_color: np.ndarray, draw: _Draw) -> tf.Tensor:
    _, height, width, _ = images.shape
    batch = tf.shape(images)[:1]
    rows = _covered(_draw_integers(batch, height, draw.seed("row")), size, height)
    columns = _covered(_draw_integers(batch, width, draw.seed("column")), size, width)
    square = rows[:, :, None] & columns[:, None, :]
    color = np.round(mean_color) if images.dtype.is_integer else mean_color
    itself = tf.reshape(tf.range(height * width), [height, width])
    return _take_pixels(images, tf.where(square, -1, itself), tf.cast(color, images.dtype))


def _covered(centers: tf.Tensor, size: int, length: int) -> tf.Tensor:
    """Mark what `size` pixels around each center cover of `length`, shape (batch, length)."""
    distance = tf.range(length) - (centers[:, None] - size // 2)
    return (distance >= 0) & (distance < size)


def _take_pixels(images: tf.Tensor, sources: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    """Build each image from its own pixels, in one gather.

    Args:
        images: Shape (batch, height, width, channels).
        sources: Row-major place of each new pixel in the old image, or negative for
            `fill`, shape (batch, height, width), int32.
        fill: Shape (channels,), dtype of `images`.

    Returns:
        Shape and dtype of `images`.
    """
    _, height, width, channels = images.shape
    batch = tf.shape(images)[0]
    fills = tf.broadcast_to(fill, [batch, 1, channels])
    pixels = tf.concat([fills, tf.reshape(images, [batch, height * width, channels])], axis=1)
    return tf.gather(pixels, tf.maximum(sources + 1, 0), axis=1, batch_dims=1)


def _mix_up(
    images: tf.Tensor, labels: tf.Tensor, alpha: float, draw: _Draw
) -> tuple[tf.Tensor, tf.Tensor]:
    ours, theirs = (
        tf.random.stateless_gamma([], draw.seed(name), alpha) for name in ("ours", "theirs")
    )
    # At a tiny alpha both gammas can underflow to zero. The weight is 0 then, an end of the
    # interval, and such a beta has nearly all of its mass at the two ends.
    weight = tf.math.divide_no_nan(ours, ours + theirs)

    def blend(values: tf.Tensor) -> tf.Tensor:
        partners = tf.cast(tf.reverse(values, axis=[0]), tf.float32)
        return weight * tf.cast(values, tf.float32) + (1.0 - weight) * partners

    return blend(images), blend(labels)


def _draw_integers(shape: tf.Tensor | list[tf.Tensor], below: int, seed: tf.Tensor) -> tf.Tensor:
    """Draw uniformly from 0 to `below` - 1, int32."""
    return tf.random.stateless_uniform(shape, seed, maxval=below, dtype=tf.int32)
