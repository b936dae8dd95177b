"""A tiny run that is exported once, with images and what the trained model says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from tiny import write_tiny_config

from trainer.config import load_config
from trainer.data.sources import load_split
from trainer.export.exporting import export
from trainer.export.formats import chosen_formats
from trainer.run_dir import RunDir, read_json
from trainer.train import train


@dataclass(frozen=True)
class Exported:
    """A run and its export.

    Attributes:
        run: It has learned enough to call different images by different names.
        images: Shape (5, 32, 32, 3), uint8, of more than one predicted class.
        probabilities: Shape (5, 10), float64, by Keras and NumPy alone.
        folder: The images as `0.png` to `4.png`, and nothing else.
    """

    run: RunDir
    images: np.ndarray
    probabilities: np.ndarray
    folder: Path

    @property
    def version(self) -> Path:
        return self.run.saved_model / "1"

    @property
    def litert(self) -> Path:
        return self.version / "litert" / "model_float32.tflite"

    @property
    def onnx(self) -> Path:
        return self.version / "onnx" / "model_float32.onnx"

    @property
    def class_names(self) -> list[str]:
        return list(read_json(self.run.data)["class_names"])


def export_tiny_run(folder: Path) -> Exported:
    for module in ("ai_edge_litert", "onnxruntime", "tf2onnx"):
        pytest.importorskip(module)
    config = load_config(
        write_tiny_config(folder), ["fit.epochs=1", "optimizer.learning_rate=3e-2"]
    )
    run = train(config, runs_dir=folder / "runs", command=["trainer", "train"])
    export(run, chosen_formats(["litert-float32", "onnx-float32"]))
    images = load_split(config.data, "test", config.seed).images
    model = keras.models.load_model(run.model, compile=False)
    probabilities = softmax(model.predict(images, verbose=0))
    classes, first = np.unique(probabilities.argmax(axis=1), return_index=True)
    assert len(classes) > 1
    chosen = list(dict.fromkeys([*first, *range(len(images))]))[:5]
    pictures = folder / "pictures"
    pictures.mkdir()
    for index, image in enumerate(images[chosen]):
        Image.fromarray(image).save(pictures / f"{index}.png")
    return Exported(run, images[chosen], probabilities[chosen], pictures)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(axis=1, keepdims=True)
