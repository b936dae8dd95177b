"""Small Keras models of every kind, and how the recorder's tests train them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

NUM_IMAGES = 32
BATCH_SIZE = 4  # 8 steps an epoch


def make_data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(NUM_IMAGES, 5)).astype(np.float32),
        generator.normal(size=(NUM_IMAGES, 1)).astype(np.float32),
    )


def make_tokens() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    # Few tokens: every batch repeats some.
    return (
        generator.integers(0, 6, (NUM_IMAGES, 7)).astype(np.int32),
        generator.normal(size=(NUM_IMAGES, 1)).astype(np.float32),
    )


def build_dense() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, activation="tanh", name="first"),
            keras.layers.Dense(1, name="last"),
        ]
    )


def compiled(model: keras.Model, **options: Any) -> keras.Model:
    options = {"optimizer": keras.optimizers.SGD(0.1), "jit_compile": False, **options}
    model.compile(loss="mse", **options)
    return model


def fit(
    model: keras.Model, *callbacks: keras.callbacks.Callback, data: Any = None, **options: Any
) -> keras.callbacks.History:
    x, y = make_data() if data is None else data
    options = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, callbacks=list(callbacks), **options)


def numbers(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


class UnbuiltModel(keras.Model):
    """Subclassed; its variables come to be in the first step of `fit`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = keras.layers.Dense(4, activation="tanh")
        self.last = keras.layers.Dense(1, dtype="float32")

    def call(self, inputs: Any) -> Any:
        return self.last(self.first(inputs))


class LateLayerModel(UnbuiltModel):
    """Says that it is built when only its first layer is."""

    def build(self, input_shape: Any) -> None:
        self.first.build(input_shape)
        self.built = True


class OwnStep:
    """The train step of Keras' guide, which knows nothing of loss scaling, to mix into a model.

    Not a model itself: Keras changes the bases of a model's class, and their bases, for good
    when it is built of inputs and outputs.
    """

    def train_step(self: Any, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        weights = self.trainable_variables
        grads = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(grads, weights, strict=True))
        return {"loss": loss}


class OwnStepModel(OwnStep, UnbuiltModel):
    """Built in its first step, which it takes itself."""


def build_functional() -> keras.Model:
    inputs = keras.Input((5,))
    x = keras.layers.Dense(5, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x + inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.3)(x)))


def build_tokens(kind: str) -> keras.Model:
    inputs = keras.Input((7,), dtype="int32")
    x = keras.layers.Embedding(10, 4)(inputs)
    if kind == "attention":
        x = keras.layers.MultiHeadAttention(2, 2)(x, x)
    elif kind == "lstm":
        x = keras.layers.LSTM(3, return_sequences=True)(x)
    elif kind == "gru":
        x = keras.layers.GRU(3, return_sequences=True)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


class Breaker(keras.callbacks.Callback):
    """Breaks the first fit in its sixth step."""

    def __init__(self) -> None:
        super().__init__()
        self.is_done = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 5 and not self.is_done:
            self.is_done = True
            raise RuntimeError("pulled the plug")
