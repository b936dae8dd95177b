"""Conv2D that takes the quickest of three ways to the same numbers of 16 bits."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import tensorflow as tf

from trainer.bias import add_bias
from trainer.kernel_gradient import SHORT_ROW, convolve
from trainer.machine import BFLOAT16_FLAG_OF_AMD, cpu_bfloat16_flag

# Channels times filters from which on `kernel_gradient` is quicker, see there.
_WIDE_KERNEL = 64 * 128


@keras.saving.register_keras_serializable(package="trainer")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose 16-bit floats are not slower than float32 on a CPU.

    Same arguments, weights and numbers, but for a last bit where sums of another order round
    otherwise: a convolution of 16-bit floats adds up in float32 and rounds its sums. Where
    nothing makes bfloat16 fast (`machine.cpu_bfloat16_flag`), oneDNN takes up to 1.9 times as
    long for it, both ways, as for one in float32 (3x3 kernels of 16 to 256 channels, Xeon with
    AVX-512 and without AMX), and without a kernel for float16 TensorFlow 2.21 takes 200 times as
    long. There this layer casts, convolves in float32 and rounds. Where it is AVX-512 that makes
    bfloat16 fast, training takes the gradient of a wide kernel by short rows from
    `kernel_gradient`.

    On a CPU the gradient of a bias in bfloat16 is right where the layer is called with
    `training=True`, as `fit` does; Keras' is not, see `bias`.

    It has the name of Keras' class, too: a `.keras` file calls the weights of a block's layers
    after their classes.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if self.data_format != "channels_last":
            return super().call(inputs)
        if _is_quicker_in_float32(dtype):
            outputs = self.convolution_op(
                tf.cast(inputs, "float32"), tf.cast(self.kernel, "float32")
            )
            if self.use_bias:
                # oneDNN adds it before it rounds, too.
                outputs = add_bias(outputs, self.bias)
            outputs = tf.cast(outputs, dtype)
        elif training and dtype == "bfloat16" and _is_on_cpu():
            kernel = tf.cast(self.kernel, dtype)
            has_quicker_gradient = self._has_a_quicker_kernel_gradient(inputs.shape[2])
            outputs = (convolve if has_quicker_gradient else self.convolution_op)(inputs, kernel)
            if self.use_bias:
                outputs = add_bias(outputs, self.bias)
        else:
            return super().call(inputs)
        return outputs if self.activation is None else self.activation(outputs)

    def _has_a_quicker_kernel_gradient(self, width: int | None) -> bool:
        rows, columns, channels, filters = self.kernel.shape
        return (
            cpu_bfloat16_flag() == BFLOAT16_FLAG_OF_AMD
            and (width is None or width <= SHORT_ROW)
            and channels * filters >= _WIDE_KERNEL
            and rows * columns > 1
            and rows % 2 == columns % 2 == 1
            and self.padding == "same"
            and self.strides == self.dilation_rate == (1, 1)
            and self.groups == 1
        )


@cache
def _is_quicker_in_float32(dtype: str) -> bool:
    slow = dtype == "float16" or (dtype == "bfloat16" and cpu_bfloat16_flag() is None)
    return slow and _is_on_cpu()


def _is_on_cpu() -> bool:
    return not tf.config.get_visible_devices("GPU")
