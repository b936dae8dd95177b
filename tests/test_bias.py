"""A bias, and its gradient in 16 bits against sums in float64."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.bias import Bias, add_bias


@pytest.mark.parametrize("count", [100, 100_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_gradient_of_a_bias_is_rounded_once(dtype: str, count: int) -> None:
    values = tf.zeros((count, 24), dtype)
    bias = tf.Variable(tf.zeros(24))
    upstream = tf.cast(np.random.default_rng(0).normal(0.1, 1, (count, 24)), dtype)
    with tf.GradientTape() as tape:
        sums = add_bias(values, bias)
    found = tape.gradient(sums, bias, upstream)
    exact = tf.reduce_sum(tf.cast(upstream, tf.float64), axis=0).numpy()
    assert (sums.dtype, found.dtype) == (dtype, "float32")
    tolerance = {"float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-10}[dtype]
    np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance * np.abs(exact).max())


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_saved_bias_is_loaded(policy: str, tmp_path: Path) -> None:
    images = keras.Input((4, 4, 3))
    model = keras.Model(images, Bias(name="shift", dtype=policy)(images))
    model.get_layer("shift").bias.assign([1.0, -2.0, 0.5])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    outputs = loaded(np.zeros((2, 4, 4, 3), "float32"))
    assert outputs.dtype == model.output.dtype == model.get_layer("shift").compute_dtype
    np.testing.assert_array_equal(tf.cast(outputs, tf.float32)[1, 2, 3], [1.0, -2.0, 0.5])
