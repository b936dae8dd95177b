"""The images that a run trains on, and those set aside for validation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainer.config import Config
from trainer.data.label_noise import with_label_noise
from trainer.data.sources import Split, load_split
from trainer.errors import DataError


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on and is validated with.

    Attributes:
        train: With the labels that the model is shown.
        validation: None if none is set aside.
        num_wrong_labels: Training labels that `data.label_noise` has changed.
    """

    train: Split
    validation: Split | None
    num_wrong_labels: int = 0


def load_training_data(config: Config) -> TrainingData:
    """Load what a run of this config trains on.

    Raises:
        ConfigError, DataError: As `load_split` and `split_off_validation` do.
    """
    split = load_split(config.data, "train", config.seed)
    train, validation = split_off_validation(split, config.data.validation_split, config.seed)
    noisy = with_label_noise(train, config.data.label_noise, config.seed)
    return TrainingData(noisy, validation, int((noisy.labels != train.labels).sum()))


def split_off_validation(split: Split, fraction: float, seed: int) -> tuple[Split, Split | None]:
    """Divide a split in two, with the same share of every class in both.

    Args:
        split: The training images, validation included.
        fraction: Share of each class to set aside, at least 0 and less than 1. A
            class of n images gives exactly `round(fraction * n)` of them.
        seed: Decides which images; the same seed always picks the same ones.

    Returns:
        The rest and the validation split, disjoint and both in the order of
        `split`; `split` itself and None if the fraction is 0.

    Raises:
        DataError: If a class would have no image in one of the two.
    """
    if fraction == 0:
        return split, None
    random = np.random.default_rng(seed)
    in_validation = np.zeros(split.num_images, dtype=bool)
    for label, name in enumerate(split.class_names):
        members = np.flatnonzero(split.labels == label)
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            raise DataError(
                "validation_split must leave at least one image of every class on both sides. "
                f"Received: validation_split={fraction}, which sets aside {count} of the "
                f"{len(members)} images of class {name!r}. Change validation_split, or set it to "
                "0, or add images of that class"
            )
        in_validation[random.permutation(members)[:count]] = True
    return _subset(split, ~in_validation), _subset(split, in_validation)


def _subset(split: Split, chosen: np.ndarray) -> Split:
    return replace(split, images=split.images[chosen], labels=split.labels[chosen])
