"""Train on two logical CPUs and on one; run as a script by `test_replicas.py`.

Two devices must be asked for before TensorFlow starts, hence a process of its own.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from gradient_oracle import (
    BATCH_SIZE,
    CLIPPING,
    NUM_CLASSES,
    NUM_STEPS,
    Observer,
    make_data,
    make_network,
    make_optimizer,
    train,
    values_of,
)
from recorded_models import OwnStep

from trainer import GradientRecorder
from trainer.gradient_hook import StepHook
from trainer.recorded_steps import ACTIVATIONS

# Every way to clip with one optimizer; with the others the two that look at whole norms.
CASES = [
    *(("adam", clipping, how) for clipping in CLIPPING for how in ("recorded", "hook")),
    *(
        (optimizer, clipping, "recorded")
        for optimizer in ("sgd", "adamw")
        for clipping in ("none", "clipnorm", "global_clipnorm")
    ),
]
EVERYTHING: dict[str, Any] = {
    "window_steps": 1,
    "moments_every_steps": 1,
    "activations_every_steps": 1,
    "activation_images": None,
}

Data = tuple[np.ndarray, np.ndarray]
Compiled = Callable[[], keras.Model]


def unlike_halves() -> Data:
    """Return batches whose first half, replica 0's, has much the larger gradients."""
    images, labels = make_data()
    halves = images.reshape(NUM_STEPS, 2, BATCH_SIZE // 2, *images.shape[1:])
    halves[:, 0] *= 3
    return images, labels


def make_dense() -> keras.Model:
    keras.utils.set_random_seed(1)
    regularizer = keras.regularizers.L2(0.01)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(6, "tanh", kernel_regularizer=regularizer, name="first"),
            keras.layers.Dense(NUM_CLASSES, dtype="float32", name="last"),
        ]
    )


def make_embedding() -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(9, 5),
            keras.layers.Flatten(),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )


def make_convolution() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, padding="same", name="first"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(NUM_CLASSES, dtype="float32", name="last"),
        ]
    )


class UnusedWeight(OwnStep, keras.Model):
    """Built in its first step, passes no loss to `scale_loss`, leaves one variable out."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.dense = keras.layers.Dense(NUM_CLASSES)
        self.unused = self.add_weight(shape=(2, 2), initializer="ones", name="unused")

    def call(self, inputs: Any) -> Any:
        return self.dense(self.flatten(inputs))


def make_own_step() -> keras.Model:
    keras.utils.set_random_seed(1)
    return UnusedWeight()


def compiler(
    make: Callable[[], keras.Model],
    optimizer: str,
    clipping: dict[str, float],
    *,
    initial_scale: float | None = None,
    **options: Any,
) -> Compiled:
    """Return a function that makes the compiled model, in the strategy that is in scope."""

    def build() -> keras.Model:
        model = make()
        chosen = make_optimizer(optimizer, clipping)
        if initial_scale is not None:
            chosen = keras.optimizers.LossScaleOptimizer(chosen, initial_scale=initial_scale)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(chosen, loss, jit_compile=False, **options)
        return model

    return build


def on_one_device(build: Compiled, data: Data, observe: bool = True) -> dict[str, Any]:
    """Stock Keras on one device, with the oracle's view of every step."""
    model = build()
    observer = Observer(*data)
    model.steps_per_execution = 1
    train(model, data, [observer] if observe else [])
    return {
        "weights": values_of(model.trainable_variables),
        "norms": np.array([step.norms() for step in observer.steps]),
        "loss": np.array([step.loss for step in observer.steps]),
        "skipped": np.array([step.skipped for step in observer.steps]),
        "activations": np.array([step.activations(None) for step in observer.steps]),
    }


def on_two_devices(build: Compiled, data: Data, how: str, **options: Any) -> dict[str, Any]:
    """Two replicas: `recorded`, with the `hook` alone, or `stock` Keras."""
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        model = build()
    assert strategy.num_replicas_in_sync == 2
    result: dict[str, Any] = {}
    if how == "recorded":
        with tempfile.TemporaryDirectory() as folder:
            recorder = GradientRecorder(folder, **(EVERYTHING | options))
            train(model, data, [recorder])
            log = recorder.log()
        result = {"steps": log.steps, "header": log.header}
        for name in ("raw_norm", "clipped_norm", "update_norm", "weight_norm"):
            result[name] = log.stat(f"{name}/median")
        result["activations"] = np.stack(
            [log.activation(f"{name}/median") for name in ACTIVATIONS], axis=-1
        )
    else:
        hook = StepHook(model.optimizer, None)
        if how == "hook":
            hook.install()
        train(model, data)
        hook.remove()
    copies: Sequence[Any] = [
        [copy.numpy() for copy in strategy.experimental_local_results(variable.value)]
        for variable in model.trainable_variables
    ]
    result["weights"] = [first for first, _ in copies]
    result["copies_agree"] = all(np.array_equal(*pair) for pair in copies)
    return result


def norms_of_halves(build: Compiled, data: Data) -> list[float]:
    """Gradient norm of each half of the first batch by itself, at the first weights."""
    model = build()
    norms = []
    for part in np.split(np.arange(BATCH_SIZE), 2):
        with tf.GradientTape() as tape:
            logits = model(data[0][part], training=True)
            loss = model.loss(data[1][part], logits) + tf.add_n(model.losses)
        grads = tape.gradient(loss, [v.value for v in model.trainable_variables])
        norms.append(float(tf.linalg.global_norm(grads)))
    return norms


def run() -> dict[Any, dict[str, Any]]:
    results: dict[Any, dict[str, Any]] = {}
    data = unlike_halves()

    counterexamples = [("adam", clipping, "stock") for clipping in CLIPPING if clipping != "none"]
    for optimizer, clipping, how in [*CASES, *counterexamples]:
        build = compiler(make_dense, optimizer, CLIPPING[clipping])
        if (optimizer, clipping, "one") not in results:
            results[optimizer, clipping, "one"] = on_one_device(build, data)
        results[optimizer, clipping, how] = on_two_devices(build, data, how)

    results["halves"] = {"norms": norms_of_halves(compiler(make_dense, "sgd", {}), data)}

    def network() -> keras.Model:
        return make_network("residual", {"kind": "batch", "synchronized": True}, dropout=0)

    build = compiler(network, "sgd", {"clipnorm": 0.5}, steps_per_execution=4)
    results["network", "one"] = on_one_device(build, data)
    results["network", "recorded"] = on_two_devices(build, data, "recorded", window_steps=4)

    tokens = np.random.default_rng(0).integers(0, 9, (len(data[0]), 4)).astype(np.int32)
    for clipping, bounds in CLIPPING.items():
        # Its gradients are smaller than those of the others.
        bounds = {name: bound / 20 for name, bound in bounds.items()}
        build = compiler(make_embedding, "adam", bounds)
        token_data = (tokens, data[1])
        results["embedding", clipping, "one"] = on_one_device(build, token_data)
        results["embedding", clipping, "recorded"] = on_two_devices(build, token_data, "recorded")

    build = compiler(make_own_step, "adam", {"global_clipnorm": 0.5})
    results["own step", "one"] = on_one_device(build, data, observe=False)
    results["own step", "recorded"] = on_two_devices(build, data, "recorded", every_steps=3)

    # One image of replica 1 alone overflows float16, in step 2.
    keras.config.set_dtype_policy("mixed_float16")
    images, labels = unlike_halves()
    images[2 * BATCH_SIZE + BATCH_SIZE - 1] = 1e5
    build = compiler(make_dense, "adam", {"clipnorm": 0.5}, initial_scale=2.0**10)
    results["overflow", "one"] = on_one_device(build, (images, labels))
    for how in ("recorded", "hook", "stock"):
        results["overflow", how] = on_two_devices(build, (images, labels), how)

    keras.config.set_dtype_policy("mixed_bfloat16")
    build = compiler(make_convolution, "sgd", {})
    results["bfloat16", "recorded"] = on_two_devices(build, data, "recorded")
    return results


if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.set_visible_devices([], "GPU")
    Path(sys.argv[1]).write_bytes(pickle.dumps(run()))
