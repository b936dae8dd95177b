"""Classify image files with the model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config import load_config
from trainer.data.directory import EXTENSIONS, read_image
from trainer.errors import DataError
from trainer.evaluate import load_run_model, predict_logits
from trainer.run_dir import RunDir, read_json


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


def predict(run: RunDir, paths: Sequence[Path], batch_size: int = 128) -> list[Prediction]:
    """Classify images, in the order given; a folder stands for the images in it.

    Each file is taken alone: one that cannot be read costs only its own row.

    Raises:
        RunDirectoryError: If the run lacks a model.
        DataError: If there is no image file at all.
    """
    files = [file for path in paths for file in _image_files(path)]
    if not files:
        raise DataError(
            "at least one image is needed, and there is none in "
            f"{', '.join(str(path) for path in paths)}"
        )
    facts = read_json(run.data)
    height, width, _ = facts["image_shape"]
    model = load_run_model(run)
    views = load_config(run.config).evaluation.views
    images: list[np.ndarray] = []
    errors: dict[Path, str] = {}
    for file in files:
        try:
            images.append(read_image(file, (height, width)))
        except (DataError, OSError) as error:
            errors[file] = str(error)
    probabilities = iter(
        _softmax(predict_logits(model, np.stack(images), batch_size, views)) if images else ()
    )
    return [
        Prediction(str(file), None, 0.0, {}, errors[file])
        if file in errors
        else _prediction(file, next(probabilities), facts["class_names"])
        for file in files
    ]


def _image_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS)


def _prediction(file: Path, probabilities: np.ndarray, names: Sequence[str]) -> Prediction:
    best = int(probabilities.argmax())
    by_name = {name: float(p) for name, p in zip(names, probabilities, strict=True)}
    return Prediction(str(file), names[best], float(probabilities[best]), by_name)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def format_predictions(predictions: Sequence[Prediction]) -> str:
    """Return one line an image: probability, class, file."""
    return "\n".join(
        f"   -  -            {p.path}: {p.error}"
        if p.error
        else f"{p.probability:6.3f}  {p.label:12} {p.path}"
        for p in predictions
    )
