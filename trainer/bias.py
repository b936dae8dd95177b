"""A bias of its own, and the addition of one whose gradient is right in 16 bits."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="trainer")
class Bias(keras.layers.Layer):
    """Adds a trained number to each channel, zero at first.

    For a layer that is frozen but for its bias. Inputs and outputs are (batch, ...,
    channels); the bias is (channels,).
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.bias = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        return add_bias(inputs, self.bias)


def add_bias(values: Any, bias: Any) -> Any:
    """Return values + bias, whose gradient by the bias adds up in float32.

    On a CPU TensorFlow 2.21 adds up in the 16 bits themselves in its kernel for the
    gradient of `bias_add` in bfloat16 (a fifth is left of the sum of 100,000 numbers; its
    `bias_op.cc` has accumulators in float32 for float16 alone), and in that of a plain
    addition in float16. Keras' layers take the former.

    Args:
        values: (batch, ..., channels).
        bias: (channels,), of any float dtype.

    Returns:
        Of the shape and the dtype of the values.
    """
    bias = tf.cast(bias, values.dtype)
    return values + bias if values.dtype == tf.bfloat16 else tf.nn.bias_add(values, bias)
