"""Where labelled images come from: an open registry of sources by name.

A source is a callable `(data, part, seed) -> Split`. Any other than the built-in ones is a
Python file with such a function, `load`, which `data.source` names by its path; a program
of one's own can `register_source` instead. Whatever a source returns is checked by
`load_split` before anything is trained on it. The built-in sources import their modules on
first use, so that importing the registry stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeAlias

import numpy as np

from trainer.config.schema import DataConfig
from trainer.data.own_source import ENDING, load_own
from trainer.errors import ConfigError, DataError

Part: TypeAlias = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images that belong together: the train, validation or test split.

    Attributes:
        images: Shape `(num_images, height, width, channels)`, uint8, 0 to 255.
        labels: Shape `(num_images,)`, int32, indices into `class_names`.
        class_names: One name per class.
        origin: Where the images come from, for people: a folder, or
            `a drawing with seed 0`.
        synthetic: True if the images were drawn and not taken from the world, so
            that no report passes them off as a real data set.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    origin: str
    synthetic: bool

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


Source: TypeAlias = Callable[[DataConfig, Part, int], Split]

_SOURCES: dict[str, Source] = {}


def register_source(name: str) -> Callable[[Source], Source]:
    """Make a source known under the name that `data.source` gives.

    Args:
        name: A name that no other source has.

    Returns:
        A decorator that registers a callable `(data, part, seed) -> Split` and
        returns it unchanged.

    Raises:
        ValueError: If the name is taken.

    Example:

    ```python
    @register_source("satellite")
    def load_satellite(data: DataConfig, part: Part, seed: int) -> Split:
        ...
    ```
    """

    def register(source: Source) -> Source:
        if name in _SOURCES:
            raise ValueError(
                f"a data source can be registered only once under one name. Received: name={name!r}"
            )
        _SOURCES[name] = source
        return source

    return register


def load_split(data: DataConfig, part: Part, seed: int) -> Split:
    """Load one part of the data set that the config names, and check it.

    Args:
        data: The `data` section; its source decides which keys matter.
        part: `"train"` (validation images included) or `"test"`. A source reads
            nothing of the other part's images.
        seed: For sources that draw at random; the same seed gives the same bytes.

    Raises:
        ConfigError: If no source has the name `data.source`.
        DataError: If the data are missing or damaged, if a user's file fails, or if the
            source returns something that is no valid `Split`.
    """
    source = load_own if data.source.endswith(ENDING) else _SOURCES.get(data.source)
    if source is None:
        close = get_close_matches(data.source, _SOURCES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"data.source must be one of {', '.join(sorted(_SOURCES))}, or the path of a Python "
            f"file. Received: source={data.source!r}.{hint}"
        )
    split = source(data, part, seed)
    if not isinstance(split, Split):
        raise DataError(
            f"source {data.source} must return a trainer.data.sources.Split. "
            f"Received: {type(split).__name__}"
        )
    _check_arrays(split, data.source)
    _check_classes(split, data.source, part)
    return split


def _check_arrays(split: Split, source: str) -> None:
    images, labels = split.images, split.labels
    for name, array in (("images", images), ("labels", labels)):
        if not isinstance(array, np.ndarray):
            raise DataError(
                f"source {source} must return {name} as a NumPy array. "
                f"Received: {type(array).__name__}"
            )
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(
            f"source {source} must return images of shape (num_images, height, width, channels), "
            f"none of them 0. Received: images.shape={images.shape}"
        )
    if images.dtype != np.uint8:
        raise DataError(
            f"source {source} must return images as uint8, 0 to 255. "
            f"Received: images.dtype={images.dtype}"
        )
    if labels.shape != images.shape[:1] or labels.dtype != np.int32:
        raise DataError(
            f"source {source} must return one int32 label for each of its {len(images)} images. "
            f"Received: labels.shape={labels.shape}, labels.dtype={labels.dtype}"
        )


def _check_classes(split: Split, source: str, part: Part) -> None:
    names = split.class_names
    is_row = isinstance(names, tuple | list)
    if not is_row or not all(isinstance(name, str) for name in names):
        raise DataError(f"source {source} must return class names as strings. Received: {names!r}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            "classification needs at least 2 classes, each with its own name. "
            f"Source {source} found: {', '.join(names) or 'none'}"
        )
    if split.labels.min() < 0 or split.labels.max() >= len(names):
        raise DataError(
            f"source {source} must return labels from 0 to {len(names) - 1}, one for each of its "
            f"{len(names)} classes. "
            f"Received: labels from {split.labels.min()} to {split.labels.max()}"
        )
    counts = np.bincount(split.labels, minlength=len(names))
    if part == "train" and not counts.all():
        absent = [name for name, count in zip(names, counts, strict=True) if count == 0]
        raise DataError(
            f"every class needs at least one image to train on. Source {source} gave "
            f"{split.num_images} train images and none of: {', '.join(absent)}"
        )


@register_source("cifar10")
def _cifar10(data: DataConfig, part: Part, seed: int) -> Split:
    from trainer.data.cifar10 import load_cifar10

    return load_cifar10(data.path, part)


@register_source("directory")
def _directory(data: DataConfig, part: Part, seed: int) -> Split:
    from trainer.data.directory import load_directory

    assert data.path is not None and data.image_size is not None  # DataConfig requires both.
    return load_directory(data.path, part, data.image_size)


@register_source("shapes")
def _shapes(data: DataConfig, part: Part, seed: int) -> Split:
    from trainer.data.shapes import draw_shapes

    num_images = data.train_size if part == "train" else data.test_size
    return draw_shapes(num_images, part, seed)
