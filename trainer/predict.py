"""Classify image files, each alone: one that cannot be read costs only its own row."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.classifiers import Classifier
from trainer.data.directory import EXTENSIONS, read_image
from trainer.errors import DataError

STANDARD_INPUT = "-"

# Every image has a zero byte near its beginning, and no path has one.
_IMAGE_START = 512


@dataclass(frozen=True)
class Source:
    """An image file.

    Attributes:
        name: Path, or `-` for standard input.
        content: Of the file, if it was read already.
        problem: Why there is no image, if that is known already.
    """

    name: str
    content: bytes | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image file.

    Attributes:
        path: The file.
        label: Name of the most probable class; None if the file cannot be read.
        probability: Of `label`.
        probabilities: Of every class, by name.
        error: Why the file cannot be read, or None.
    """

    path: str
    label: str | None
    probability: float
    probabilities: dict[str, float]
    error: str | None = None


def sources_of(arguments: Sequence[str], standard_input: bytes = b"") -> list[Source]:
    """Return the images that are meant.

    Args:
        arguments: Files; folders, which stand for the images in and below them; `-`.
        standard_input: What `-` stands for: one image, or a path a line.

    Raises:
        DataError: If there is no image at all.
    """
    sources = []
    for argument in arguments:
        if argument != STANDARD_INPUT:
            sources += _in_path(Path(argument))
        elif b"\0" in standard_input[:_IMAGE_START]:
            sources.append(Source(STANDARD_INPUT, standard_input))
        else:
            lines = os.fsdecode(standard_input).splitlines()
            sources += [each for line in lines if line.strip() for each in _in_path(Path(line))]
    if all(source.problem for source in sources):
        raise DataError(
            "at least one image is needed, and there is none in "
            f"{', '.join('standard input' if a == STANDARD_INPUT else a for a in arguments)}"
        )
    return sources


def _in_path(path: Path) -> list[Source]:
    try:
        if not path.is_dir():
            return [Source(str(path))]
    # What is no path at all, such as one that is too long, is a row of its own too.
    except OSError as error:
        return [Source(str(path), problem=f"{path}: {error.strerror}")]
    files = [file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS]
    found = [Source(str(file)) for file in sorted(files) if file.is_file()]
    return found or [Source(str(path), problem=f"{path}: there is no image in this folder")]


def predict(
    classifier: Classifier, sources: Iterable[Source], batch_size: int = 128
) -> Iterator[Prediction]:
    """Classify images and yield the predictions in their order, a batch at a time."""
    remaining = iter(sources)
    while batch := list(islice(remaining, batch_size)):
        found = [_read(source, classifier.image_size) for source in batch]
        images = [image for image in found if isinstance(image, np.ndarray)]
        probabilities = iter(classifier.probabilities_of(np.stack(images)) if images else ())
        for source, image in zip(batch, found, strict=True):
            if isinstance(image, np.ndarray):
                yield _prediction(source.name, next(probabilities), classifier.class_names)
            else:
                yield Prediction(source.name, None, 0.0, {}, image)


def _read(source: Source, image_size: tuple[int, int]) -> np.ndarray | str:
    """Return the image, or why it cannot be read."""
    if source.problem is not None:
        return source.problem
    try:
        # Pillow only warns between its limit of pixels and twice that; here the limit is one.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return read_image(Path(source.name), image_size, source.content)
    except (DataError, OSError) as error:
        return str(error)


def _prediction(name: str, probabilities: np.ndarray, class_names: Sequence[str]) -> Prediction:
    best = int(probabilities.argmax())
    by_name = {label: float(p) for label, p in zip(class_names, probabilities, strict=True)}
    return Prediction(name, class_names[best], float(probabilities[best]), by_name)


def format_prediction(prediction: Prediction) -> str:
    """Return a row of the table: probability, class, file."""
    if prediction.error:
        # The error names the file.
        return f"     -  {'-':12} {prediction.error}"
    return f"{prediction.probability:6.3f}  {prediction.label:12} {prediction.path}"
