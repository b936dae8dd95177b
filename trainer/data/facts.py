"""Measure what labelled images are like, once, when a run loads them. NumPy only.

What comes out is a few numbers a split and eight bytes an image, so that a diagnosis can
judge the data, and an evaluation can look for its images among those of the training,
without reading the images again. Dimensions used below:
    images, height, width, channels    of a split, uint8, 0..255
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from trainer.data.sources import Split
from trainer.pixels import level_counts, moments_of_levels

# Bounds the memory for what is compared at a time.
_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class SplitFacts:
    """What the images and labels of one split are like.

    Attributes:
        num_images: In the split.
        images_per_class: Labels of each class, as the training sees them.
        pixel_min: Darkest level of each channel, 0..255.
        pixel_max: Brightest level of each channel.
        pixel_mean: Mean level of each channel.
        pixel_std: Standard deviation of each channel about its mean.
        constant_images: Images of one colour only.
    """

    num_images: int
    images_per_class: tuple[int, ...]
    pixel_min: tuple[int, ...]
    pixel_max: tuple[int, ...]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    constant_images: int

    @classmethod
    def of(cls, split: Split) -> SplitFacts:
        """Measure a split."""
        counts = level_counts(split.images)
        means, stds = moments_of_levels(counts)
        present = counts > 0
        return cls(
            num_images=split.num_images,
            images_per_class=_as_ints(np.bincount(split.labels, minlength=split.num_classes)),
            pixel_min=_as_ints(present.argmax(axis=1)),
            pixel_max=_as_ints(255 - present[:, ::-1].argmax(axis=1)),
            pixel_mean=tuple(means.tolist()),
            pixel_std=tuple(stds.tolist()),
            constant_images=_count_constant(split.images),
        )


@dataclass(frozen=True)
class Duplicates:
    """Images that are there more than once, equal in every pixel.

    Attributes:
        within_train: Training images less the different ones among them.
        contradictory: Training images that equal one with another label.
        validation_in_train: Validation images that equal a training image; None without
            validation.
    """

    within_train: int
    contradictory: int
    validation_in_train: int | None

    @classmethod
    def of(
        cls, digests: np.ndarray, labels: np.ndarray, validation: np.ndarray | None
    ) -> Duplicates:
        """Compare images by their digests.

        Args:
            digests: Of the training images, shape (images,), uint64.
            labels: Of the training images, shape (images,), integer.
            validation: Digests of the validation images, or None.
        """
        distinct, image_of = np.unique(digests, return_inverse=True)
        lowest = np.full(len(distinct), np.iinfo(labels.dtype).max, labels.dtype)
        highest = np.full(len(distinct), np.iinfo(labels.dtype).min, labels.dtype)
        np.minimum.at(lowest, image_of, labels)
        np.maximum.at(highest, image_of, labels)
        return cls(
            within_train=len(digests) - len(distinct),
            contradictory=int((lowest != highest)[image_of].sum()),
            validation_in_train=None if validation is None else count_seen(validation, distinct),
        )


def image_digests(images: np.ndarray) -> np.ndarray:
    """Return a number for each image that no other image has.

    It is 64 bits of BLAKE2b. That two different ones of a million images get the same one
    has a probability of 3e-8. The same image has the same number on every machine, if it
    has the same shape.

    Args:
        images: Shape (images, height, width, channels), uint8.

    Returns:
        Shape (images,), uint64.
    """
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def count_seen(digests: np.ndarray, others: np.ndarray) -> int:
    """Return how many images are among others, by the digests of both."""
    return int(np.isin(digests, others).sum())


def _count_constant(images: np.ndarray) -> int:
    channels = images.shape[-1]
    rows = images.reshape(len(images), -1)
    size = max(1, _CHUNK_BYTES // rows.shape[1])
    chunks = (rows[start : start + size] for start in range(0, len(rows), size))
    # Each pixel equals the next one.
    return sum(
        int((chunk[:, channels:] == chunk[:, :-channels]).all(axis=1).sum()) for chunk in chunks
    )


def _as_ints(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
