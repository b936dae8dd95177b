"""Fused activations against Keras' own, which TensorFlow computes in many kernels."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.activations import FusedActivation, build_activation

VALUES = np.concatenate([np.linspace(-9, 9, 4001), [0.0, -0.0, 1e-30, -60.0, 60.0]]).astype("f4")


@pytest.mark.parametrize("name", ["gelu", "silu", "mish"])
def test_training_computes_the_activation_and_its_gradient(name: str) -> None:
    values, upstream = tf.constant(VALUES), tf.constant(VALUES[::-1] / 3)
    results = []
    for function in (
        lambda x: FusedActivation(name)(x, training=True),
        keras.activations.get(name),
    ):
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = function(values)
        results.append((outputs.numpy(), tape.gradient(outputs, values, upstream).numpy()))
    (outputs, gradient), (stock_outputs, stock_gradient) = results
    np.testing.assert_allclose(outputs, stock_outputs, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(gradient, stock_gradient, rtol=1e-5, atol=6e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gelu", "silu", "mish"])
def test_16_bit_floats_are_rounded_once(name: str, dtype: str) -> None:
    values = tf.cast(VALUES[np.abs(VALUES) < 4], dtype)
    upstream = values[::-1] / 3
    layer = FusedActivation(name, dtype=dtype)
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs = layer(values, training=True)
    gradient = tape.gradient(outputs, values, upstream)
    assert outputs.dtype == gradient.dtype == dtype
    exact = tf.cast(values, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(exact)
        exact_outputs = keras.activations.get(name)(exact)
    exact_gradient = tape.gradient(exact_outputs, exact, tf.cast(upstream, tf.float64))
    # Half of the last of 8 and of 11 bits.
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    for rounded, number in ((outputs, exact_outputs), (gradient, exact_gradient)):
        np.testing.assert_allclose(
            tf.cast(rounded, tf.float64), number, rtol=1.01 * rounding, atol=2e-6
        )


def test_one_kernel_each_way_is_left_of_gelu_in_a_training_step() -> None:
    layer = FusedActivation("gelu")

    @tf.function
    def step(values: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = layer(values, training=True)
        return tape.gradient(outputs, values)

    operations = step.get_concrete_function(tf.TensorSpec((8, 4))).graph.get_operations()
    types = {operation.type for operation in operations}
    assert "PartitionedCall" in types or "StatefulPartitionedCall" in types
    assert not types & {"Erf", "Erfc", "Exp"}


def test_evaluation_takes_the_stock_operations_which_every_exporter_knows() -> None:
    layer = FusedActivation("gelu")
    traced = tf.function(lambda x: layer(x, training=False))
    graph = traced.get_concrete_function(tf.TensorSpec((8, 4))).graph
    types = {operation.type for operation in graph.get_operations()}
    assert types & {"Erf", "Erfc"} and not any("Call" in kind for kind in types)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_dtype_is_that_of_the_policy(policy: str) -> None:
    layer = FusedActivation("gelu", dtype=policy)
    outputs = layer(tf.constant(VALUES), training=True)
    assert outputs.dtype == layer.compute_dtype


def test_a_saved_layer_is_loaded(tmp_path: Path) -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, FusedActivation("silu")(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(VALUES[:3][None]), model(VALUES[:3][None]))


@pytest.mark.parametrize(("name", "is_fused"), [("gelu", True), ("relu", False), ("tanh", False)])
def test_only_what_takes_many_kernels_is_fused(name: str, is_fused: bool) -> None:
    assert isinstance(build_activation(name, "act"), FusedActivation) == is_fused
