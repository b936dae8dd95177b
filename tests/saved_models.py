"""Saved Keras models and arrays for them, as a stranger would have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

NUM_EXAMPLES = 400
NUM_FEATURES = 8
NUM_CLASSES = 3


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Return points around three centres, and which one."""
    random = np.random.default_rng(0)
    labels = random.integers(0, NUM_CLASSES, NUM_EXAMPLES)
    centres = random.normal(0, 2, (NUM_CLASSES, NUM_FEATURES))
    points = centres[labels] + random.normal(0, 0.5, (NUM_EXAMPLES, NUM_FEATURES))
    return points.astype(np.float32), labels


def dense(
    *activations: str | None, units: int = NUM_CLASSES, last: str | None = None, **options: Any
) -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(16, activation, **options) for activation in activations]
    return keras.Sequential(
        [keras.Input((NUM_FEATURES,)), *hidden, keras.layers.Dense(units, last, name="head")]
    )


def save_arrays(folder: Path, **arrays: np.ndarray) -> Path:
    if not arrays:
        arrays = dict(zip("xy", blobs(), strict=True))
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def save(folder: Path, model: keras.Model, name: str = "model.keras", **compilation: Any) -> Path:
    if compilation:
        model.compile(**compilation)
    model.save(folder / name)
    return folder / name
