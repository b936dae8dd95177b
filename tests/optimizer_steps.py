"""A step or two of an optimizer by its config, and a network for one."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from trainer.config.model_schema import ModelSpec
from trainer.config.schema import Optimizer
from trainer.models import build_model
from trainer.optimizers import build_optimizer
from trainer.pixels import PixelScaling

RATE = 0.01


def values_of(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def stepped(
    config: Optimizer, start: np.ndarray, gradients: list[np.ndarray], name: str = "kernel"
) -> np.ndarray:
    """Return what a variable becomes, step after step, by the optimizer of a config."""
    variable = keras.Variable(start, name=name)
    optimizer = build_optimizer(config, config.learning_rate)
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [variable])
    return variable.numpy()


def small_network() -> keras.Model:
    spec = ModelSpec.model_validate(
        {
            "stem": {"filters": 4},
            "stages": [{"filters": 4, "blocks": 1, "strides": 2}],
            "block": {"activation": "prelu"},
        }
    )
    return build_model(spec, (6, 6, 3), 2, PixelScaling.identity(3))
