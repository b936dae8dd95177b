"""Open whatever holds a trained classifier: a run, a SavedModel, a LiteRT or an ONNX file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config import load_config
from trainer.errors import MissingDependencyError, ModelFileError, RunDirectoryError
from trainer.export import probe
from trainer.export.versions import versions_of
from trainer.run_dir import RunDir, read_json

_FILES = {".tflite": ("litert", "ai_edge_litert"), ".onnx": ("onnx", "onnxruntime")}
_EXPORT_FILE = "export.json"
_SIGNATURE = "serving_default"
# Not one: a file may be made for just one image.
_TRIAL_IMAGES = 3


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
    if not {"class_names", "image_shape"} <= facts.keys():
        raise RunDirectoryError(
            f"{run.data}: this artifact is damaged (no class_names or no image_shape)"
        )
    if facts["image_shape"][-1] != 3:
        raise ModelFileError(
            f"{run.path}: files are read as RGB, and this model takes images of "
            f"{facts['image_shape'][-1]} channels"
        )
    model = load_run_model(run)
    views = load_config(run.config).evaluation.views
    height, width, _ = facts["image_shape"]
    return Classifier(
        run.path,
        tuple(facts["class_names"]),
        (height, width),
        lambda images: softmax(predict_logits(model, images, len(images), views)[0]),
    )


def _open_exported(path: Path, kind: str) -> Classifier:
    task = {"path": str(path), "kind": kind, "signature": _SIGNATURE}
    try:
        answer, facts = probe.OPENERS[kind](task)
    # The runtimes raise nearly anything on a damaged file.
    except Exception as error:
        raise ModelFileError(
            f"{path}: the model cannot be loaded ({_first_line(error)})"
        ) from error
    try:
        [(_, [_, height, width, _])] = facts["inputs"].values()
        trial = np.zeros((_TRIAL_IMAGES, height, width, 3), np.uint8)
        _, num_classes = answer(trial)["probabilities"].shape
    # Or on one that is not ours.
    except Exception as error:
        raise ModelFileError(
            f"{path}: the model cannot be used. It must take any number of images (batch, "
            f"height, width, 3) of one size and return probabilities (batch, classes): "
            f"{_first_line(error)}"
        ) from error
    return Classifier(
        path,
        _class_names(path, num_classes),
        (height, width),
        lambda images: answer(images)["probabilities"],
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _class_names(path: Path, num_classes: int) -> tuple[str, ...]:
    """Return the names in the `export.json` of the version, or numbers."""
    for folder in (path, *list(path.absolute().parents)[:2]):
        file = folder / _EXPORT_FILE
        if file.is_file():
            names = read_json(file).get("class_names")
            if not isinstance(names, list) or len(names) != num_classes:
                raise ModelFileError(
                    f"{file}: `class_names` must name the {num_classes} classes of {path}. "
                    f"Received: {names}"
                )
            return tuple(names)
    return tuple(str(index) for index in range(num_classes))
