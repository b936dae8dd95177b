"""Wrong labels on purpose, to study what they do to a training."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from trainer.data.sources import Split


def with_label_noise(split: Split, share: float, seed: int) -> Split:
    """Replace a share of the labels by classes drawn uniformly (Zhang et al. 2017).

    The right class can be drawn too, so that a share of 1 leaves labels that say nothing
    about the images, and about `share * (1 - 1 / num_classes)` of the labels are wrong.

    Args:
        split: Training images. They stay as they are, and in place.
        share: Exactly `round(share * num_images)` labels are drawn, 0 to 1.
        seed: Decides which labels and by what. The labels that a smaller share replaces
            are among those of a larger one, and get the same classes.
    """
    count = round(share * split.num_images)
    if count == 0:
        return split
    # A stream of its own: the validation split is drawn from the bare seed.
    random = np.random.default_rng([seed, zlib.crc32(b"label_noise")])
    order = random.permutation(split.num_images)
    drawn = random.integers(split.num_classes, size=split.num_images, dtype=np.int32)
    labels = split.labels.copy()
    labels[order[:count]] = drawn[:count]
    return replace(split, labels=labels)
