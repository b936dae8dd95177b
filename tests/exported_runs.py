"""Tiny trained runs to export, and what their models answer by nothing but Keras and NumPy."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tiny import write_tiny_config

import trainer.layers  # noqa: F401
from trainer import cli
from trainer.config import load_config
from trainer.data.sources import Split, load_split
from trainer.run_dir import RunDir
from trainer.train import train

# Enough for probabilities that are not all alike.
LEARNS = ("fit.epochs=8", "optimizer.learning_rate=0.02")


def train_tiny(folder: Path, *overrides: str) -> RunDir:
    config = load_config(write_tiny_config(folder), (*LEARNS, *overrides))
    try:
        return train(config, runs_dir=folder / "runs", command=["trainer", "train"])
    finally:
        # An export is a process of its own, which knows nothing of the run's precision.
        keras.config.set_dtype_policy("float32")


def split_of(run: RunDir, part: str = "test") -> Split:
    config = load_config(run.config)
    return load_split(config.data, part, config.seed)  # type: ignore[arg-type]


def many_images(run: RunDir) -> np.ndarray:
    """Return 300 images: the test set, then noise of every brightness."""
    images = split_of(run).images
    generator = np.random.default_rng(0)
    shape = (300 - len(images), *images.shape[1:])
    brightness = generator.uniform(0, 256, (shape[0], 1, 1, 3))
    noise = generator.uniform(0, 1, shape) * brightness
    return np.concatenate([images, noise.astype(np.uint8)])


def moved(images: np.ndarray, by: int) -> np.ndarray:
    """Return images moved along both axes, the border reflected."""
    size = images.shape[1]
    taken = np.abs(np.arange(size) - by)
    taken = np.where(taken >= size, 2 * (size - 1) - taken, taken)
    return images[:, taken][:, :, taken]


def probabilities_of(run: RunDir, images: np.ndarray, views: str = "single") -> np.ndarray:
    """Return the trained model's probabilities, float64, the views added up as the words say."""
    model = keras.models.load_model(run.model, compile=False)

    def logits_of(seen: np.ndarray) -> np.ndarray:
        return model.predict(np.ascontiguousarray(seen), verbose=0).astype(np.float64)

    def both_ways(seen: np.ndarray) -> np.ndarray:
        return (logits_of(seen) + logits_of(seen[:, :, ::-1])) / 2

    if views == "single":
        logits = logits_of(images)
    elif views == "mirror":
        logits = both_ways(images)
    else:
        shifted = both_ways(moved(images, 1)) + both_ways(moved(images, -1))
        logits = both_ways(images) / 2 + shifted / 4
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the content of an image file."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def ask(model: Any, signature: str, batch: Any) -> dict[str, np.ndarray]:
    """Return the answers of a loaded SavedModel."""
    answer = model.signatures[signature]
    [(name, spec)] = answer.structured_input_signature[1].items()
    values = answer(**{name: tf.constant(batch, spec.dtype)})
    return {key: value.numpy() for key, value in values.items()}


def contents(directory: Path) -> dict[str, bytes]:
    """Return every file below a directory, hidden ones too."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def call(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Call the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
    # Exporting sets it for the rest of its process.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)
