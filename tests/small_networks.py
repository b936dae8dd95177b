"""Networks that are built in no time, for tests of what they are made of."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from trainer.config.model_schema import ModelSpec
from trainer.models import build_model
from trainer.pixels import PixelScaling

SMALL = {
    "stem": {"filters": 4},
    "stages": [{"filters": 4, "blocks": 2}, {"filters": 8, "blocks": 1, "strides": 2}],
}


def spec_of(*, stem: Any = None, head: Any = None, **block: Any) -> ModelSpec:
    small = {**SMALL, "stem": stem or SMALL["stem"], "head": head or {}}
    return ModelSpec.model_validate({**small, "block": block})


def built(
    spec: ModelSpec, image_shape: tuple[int | None, int | None, int] = (8, 8, 3)
) -> keras.Model:
    return build_model(spec, image_shape, 10, PixelScaling.identity(image_shape[-1]))


def num_trainable(model: keras.Model) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def random_images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
