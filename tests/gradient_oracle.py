"""What one training step does to a model, computed slowly and plainly: the oracle.

Gradients come from a bare `tf.GradientTape`, weights from stock Keras, outputs of layers from
a functional model that ends at them, and all arithmetic on them is NumPy in float64. Nothing
of the recorder is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.config.model_schema import ModelSpec
from trainer.models import build_model
from trainer.pixels import PixelScaling

IMAGE_SHAPE = (8, 8, 3)
NUM_CLASSES = 3
BATCH_SIZE = 8
NUM_STEPS = 8

# What activations are recorded of the tiny network: the stem's activation and each block.
LAYERS = ("stem_act", "stage0_block0", "stage1_block0")

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Case:
    """One way to train the tiny network."""

    block: str
    mode: str
    steps_per_execution: int
    precision: str
    clipping: str
    optimizer: str

    def __str__(self) -> str:
        settings = dict(vars(self), steps_per_execution=f"spe{self.steps_per_execution}")
        return "-".join(settings.values())


CLIPPING: dict[str, dict[str, float]] = {
    # Small enough to shorten some gradients of the tiny network, large enough to leave others.
    "none": {},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 1.5},
    "clipvalue": {"clipvalue": 0.1},
}


def make_data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images of unlike brightness and labels for `NUM_STEPS` batches."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(NUM_STEPS * BATCH_SIZE, *IMAGE_SHAPE)).astype(np.float32)
    images *= generator.uniform(0.2, 2, (len(images), 1, 1, 1)).astype(np.float32)
    return images, generator.integers(0, NUM_CLASSES, len(images)).astype(np.int32)


def make_optimizer(kind: str, clipping: dict[str, float]) -> keras.optimizers.Optimizer:
    if kind == "sgd":
        schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 1, 0.9)
        return keras.optimizers.SGD(schedule, momentum=0.9, **clipping)
    if kind == "adam":
        return keras.optimizers.Adam(0.01, **clipping)
    return keras.optimizers.AdamW(0.01, weight_decay=0.1, **clipping)


def make_network(
    block: str = "residual", normalization: str | dict[str, Any] = "batch", dropout: float = 0.2
) -> keras.Model:
    """Return a network of two blocks, one with strides; equal weights at every call."""
    keras.utils.set_random_seed(1)
    spec = ModelSpec.model_validate(
        {
            "stem": {"filters": 4},
            "stages": [{"filters": 4, "blocks": 1}, {"filters": 8, "blocks": 1, "strides": 2}],
            "block": {
                "kind": block,
                "normalization": normalization,
                "kernel_regularizer": {"l2": 0.01},
                "dropout": dropout,
            },
        }
    )
    return build_model(spec, IMAGE_SHAPE, NUM_CLASSES, PixelScaling.identity(3))


def make_model(case: Case) -> keras.Model:
    """Return the compiled network of a case."""
    keras.config.set_dtype_policy(case.precision)
    try:
        model = make_network(case.block)
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = make_optimizer(case.optimizer, CLIPPING[case.clipping])
    if case.precision == "mixed_float16":
        # So large that the first steps overflow, and grown again soon: more overflows.
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=2.0**20, dynamic_growth_steps=2
        )
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=case.mode == "eager",
        jit_compile=case.mode == "xla",
        steps_per_execution=case.steps_per_execution,
    )
    return model


def values_of(variables: Sequence[keras.Variable]) -> Arrays:
    return [variable.numpy() for variable in variables]


def assign(variables: Sequence[keras.Variable], values: Arrays) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def l2(arrays: Sequence[np.ndarray]) -> float:
    """Return the norm of all arrays as one vector."""
    return float(np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in arrays)))


def clip(grads: Arrays, clipping: dict[str, float]) -> Arrays:
    """Clip as Keras documents it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        match clipping:
            case {"clipnorm": bound}:
                return [g * min(1.0, bound / max(l2([g]), 1e-300)) for g in grads]
            case {"global_clipnorm": bound}:
                return [g * min(1.0, bound / max(l2(grads), 1e-300)) for g in grads]
            case {"clipvalue": bound}:
                return [np.clip(g, -bound, bound) for g in grads]
    return grads


def activation_statistics(
    values: np.ndarray, is_saturated: np.ndarray | None = None
) -> tuple[float, ...]:
    """Mean, deviation, largest magnitude, zeros, saturated and non-finite count of values."""
    values = values.astype(np.float64)
    saturated = np.nan if is_saturated is None else is_saturated.mean()
    with np.errstate(invalid="ignore"):
        return (
            values.mean(),
            values.std(),
            abs(values).max(),
            np.mean(values == 0),
            saturated,
            np.sum(~np.isfinite(values)),
        )


@dataclass(frozen=True)
class Step:
    """What happened in one step; arrays are float64, one per variable; outputs one per layer."""

    loss: float
    learning_rate: float
    loss_scale: float
    skipped: bool
    raw: Arrays
    clipped: Arrays
    before: Arrays
    after: Arrays
    outputs: Arrays

    @property
    def is_finite(self) -> bool:
        return all(np.isfinite(g).all() for g in self.raw)

    def norms(self) -> np.ndarray:
        """Norms of raw, clipped, update and weight, shape (variables, 4)."""
        updates = [a - b for a, b in zip(self.after, self.before, strict=True)]
        columns = (self.raw, self.clipped, updates, self.before)
        return np.array([[l2([array]) for array in column] for column in columns]).T

    def total_norms(self) -> np.ndarray:
        updates = [a - b for a, b in zip(self.after, self.before, strict=True)]
        return np.array([l2(c) for c in (self.raw, self.clipped, updates, self.before)])

    def moments(self) -> np.ndarray:
        """Mean, deviation, largest magnitude, zeros and non-finite count, (variables, 5)."""
        with np.errstate(invalid="ignore"):
            return np.array(
                [
                    (g.mean(), g.std(), abs(g).max(), np.mean(g == 0), np.sum(~np.isfinite(g)))
                    for g in self.raw
                ]
            )

    def activations(self, num_images: int | None) -> np.ndarray:
        """Statistics of `LAYERS` over the first images, shape (layers, 6)."""
        return np.array([activation_statistics(output[:num_images]) for output in self.outputs])


class Observer(keras.callbacks.Callback):
    """Looks at every step of a stock `fit` from outside.

    Needs `steps_per_execution=1` and batches that come in their order.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        super().__init__()
        self._images, self._labels = images, labels
        self._found: dict[str, Any] = {}
        self.steps: list[Step] = []

    def on_train_begin(self, logs: Any = None) -> None:
        model = self.model
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        names = {layer.name for layer in model.layers}
        looked_at = [model.get_layer(name).output for name in LAYERS if name in names]
        watched = keras.Model(model.inputs, [*looked_at, model.outputs[0]])

        def differentiate(x: Any, y: Any, scale: Any) -> tuple[Any, Any, Any]:
            with tf.GradientTape() as tape:
                *outputs, logits = keras.tree.flatten(watched(x, training=True))
                loss = cross_entropy(y, logits)
                if model.losses:
                    loss += tf.add_n(model.losses)
                scaled = loss * scale
            return loss, tape.gradient(scaled, model.trainable_variables), outputs

        if not model.run_eagerly:
            # Compiled as the step is, so that both round alike.
            differentiate = tf.function(differentiate, jit_compile=model.jit_compile)
        self._differentiate = differentiate
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        model = self.model
        rows = slice(batch * BATCH_SIZE, (batch + 1) * BATCH_SIZE)
        scale = float(getattr(model.optimizer, "dynamic_scale", 1.0))
        before = values_of(model.trainable_variables)
        state = values_of(model.non_trainable_variables)
        loss, grads, outputs = self._differentiate(
            tf.constant(self._images[rows]), tf.constant(self._labels[rows]), tf.constant(scale)
        )
        # The tape's own pass has moved batch statistics and dropout's seed.
        assign(model.non_trainable_variables, state)
        raw = [tf.convert_to_tensor(g).numpy().astype(np.float64) / scale for g in grads]
        clipping = {
            name: value
            for name in ("clipnorm", "global_clipnorm", "clipvalue")
            if (value := getattr(self._inner, name)) is not None
        }
        self._found = {
            "loss": float(loss),
            "learning_rate": float(self._inner.learning_rate),
            "loss_scale": scale,
            "skipped": not all(np.isfinite(g).all() for g in raw),
            "raw": raw,
            "clipped": clip(raw, clipping),
            "before": [value.astype(np.float64) for value in before],
            "outputs": [tf.cast(output, tf.float64).numpy() for output in outputs],
        }

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        after = [v.astype(np.float64) for v in values_of(self.model.trainable_variables)]
        self.steps.append(Step(**self._found, after=after))


def train(
    model: keras.Model,
    data: tuple[np.ndarray, np.ndarray],
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Arrays:
    """Train one pass; return all weights, statistics and seeds, and the optimizer's state."""
    model.fit(*data, batch_size=BATCH_SIZE, shuffle=False, verbose=0, callbacks=list(callbacks))
    return values_of([*model.variables, *model.optimizer.variables])
