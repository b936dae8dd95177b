"""Conv2D that takes the quicker of two ways to the same numbers of 16 bits."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import tensorflow as tf

from trainer.machine import cpu_bfloat16_flag


@keras.saving.register_keras_serializable(package="trainer")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose 16-bit floats are not slower than float32 on a CPU.

    Same arguments, weights and numbers, but for a last bit where sums of another order round
    otherwise: a convolution of 16-bit floats adds up in float32 and rounds its sums. Where
    nothing makes bfloat16 fast (`machine.cpu_bfloat16_flag`), oneDNN takes up to 1.9 times as
    long for it, both ways, as for one in float32 (3x3 kernels of 16 to 256 channels, Xeon with
    AVX-512 and without AMX), and without a kernel for float16 TensorFlow 2.21 takes 200 times as
    long. There this layer casts, convolves in float32 and rounds.

    It has the name of Keras' class, too: a `.keras` file calls the weights of a block's layers
    after their classes.
    """

    def call(self, inputs: Any) -> Any:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if self.data_format != "channels_last" or not _is_quicker_in_float32(dtype):
            return super().call(inputs)
        sums = self.convolution_op(tf.cast(inputs, "float32"), tf.cast(self.kernel, "float32"))
        if self.use_bias:
            # oneDNN adds it before it rounds, too.
            sums = tf.nn.bias_add(sums, tf.cast(self.bias, "float32"))
        outputs = tf.cast(sums, dtype)
        return outputs if self.activation is None else self.activation(outputs)


@cache
def _is_quicker_in_float32(dtype: str) -> bool:
    if tf.config.get_visible_devices("GPU"):
        return False
    return dtype == "float16" or (dtype == "bfloat16" and cpu_bfloat16_flag() is None)
