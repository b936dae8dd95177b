"""Whether TensorFlow loses digits in the gradient of a bias on this machine."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def error_of_sum(dtype: str = "bfloat16", jit: bool = False) -> float:
    """Of 8,192 ones, by the gradient of `bias_add` on this machine, as a share."""

    @tf.function(jit_compile=jit)
    def gradient(bias: Any, ones: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(bias)
            sums = tf.nn.bias_add(tf.zeros((8192, 2), dtype), bias)
        return tape.gradient(sums, bias, ones)

    # As an argument: of a constant it would be worked out before the compilation.
    return abs(1 - float(gradient(tf.zeros(2, dtype), tf.ones((8192, 2), dtype))[0]) / 8192)


LOSES_DIGITS = error_of_sum() > 0.01
