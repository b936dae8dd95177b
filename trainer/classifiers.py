"""Open whatever holds a trained classifier: a run, a SavedModel, a LiteRT or an ONNX file."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import load_config
from trainer.errors import MissingDependencyError, ModelFileError, RunDirectoryError
from trainer.export import probe
from trainer.export.versions import versions_of
from trainer.run_dir import RunDir, read_json

_FILES = {".tflite": ("litert", "ai_edge_litert"), ".onnx": ("onnx", "onnxruntime")}
_EXPORT_FILE = "export.json"
_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Classifier:
    """Something that gives probabilities for images.

    Attributes:
        path: What was opened.
        class_names: In the order of the probabilities.
        image_size: Height and width of the images in pixels.
        probabilities_of: From images, shape (batch, height, width, 3), uint8, to
            probabilities, shape (batch, num_classes), float32.
    """

    path: Path
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    probabilities_of: Callable[[np.ndarray], np.ndarray]


def needs_tensorflow(path: Path) -> bool:
    """Whether what lies at a path is opened with TensorFlow."""
    return path.suffix not in _FILES


def open_classifier(path: Path) -> Classifier:
    """Open a run directory, a SavedModel, a folder of its versions, or an exported file.

    Raises:
        ModelFileError: If there is none of these, or it is damaged.
        RunDirectoryError: If it is a run without a model.
        MissingDependencyError: If the package that reads it is not installed.
    """
    if (path / "config.yaml").is_file():
        return _open_run(RunDir.open(path))
    if (path / "saved_model.pb").is_file():
        return _open_exported(path, "saved_model")
    if versions := versions_of(path):
        return open_classifier(path / str(versions[-1]))
    if path.is_file() and path.suffix in _FILES:
        kind, module = _FILES[path.suffix]
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"{path}: reading it needs {module}, which is not installed. "
                f"Install it: scripts/setup_env.sh {kind}"
            )
        return _open_exported(path, kind)
    what = "is none of these" if path.exists() else "does not exist"
    raise ModelFileError(
        f"{path}: a model must be a run directory, a SavedModel, a .tflite or an .onnx file, "
        f"and this {what}"
    )


def _open_run(run: RunDir) -> Classifier:
    from trainer.evaluate import load_run_model, predict_logits, softmax

    facts = read_json(run.data)
    model = load_run_model(run)
    views = load_config(run.config).evaluation.views
    height, width, _ = facts["image_shape"]
    return Classifier(
        run.path,
        tuple(facts["class_names"]),
        (height, width),
        lambda images: softmax(predict_logits(model, images, len(images), views)),
    )


def _open_exported(path: Path, kind: str) -> Classifier:
    task = {"path": str(path), "kind": kind, "signature": _SIGNATURE}
    try:
        answer, facts = probe.OPENERS[kind](task)
        [(_, (_, height, width, _))] = facts["inputs"].values()
        outputs = facts["outputs"]
        _, (_, num_classes) = outputs.get("probabilities") or next(iter(outputs.values()))
    # The runtimes raise nearly anything on a damaged file, or one that is not ours.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFileError(f"{path}: the model cannot be loaded ({reason})") from error
    return Classifier(
        path,
        _class_names(path, num_classes),
        (height, width),
        lambda images: answer(images)["probabilities"],
    )


def _class_names(path: Path, num_classes: int) -> tuple[str, ...]:
    """Return the names in the `export.json` of the version, or numbers."""
    for folder in (path, *list(path.parents)[:2]):
        file = folder / _EXPORT_FILE
        if file.is_file():
            try:
                facts: dict[str, Any] = read_json(file)
                return tuple(facts["class_names"])
            except (RunDirectoryError, KeyError, json.JSONDecodeError) as error:
                raise ModelFileError(f"{file}: this file is damaged ({error})") from error
    return tuple(str(index) for index in range(num_classes))
