"""Activation layers by name, and the many-kernel ones compiled into one pass."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

# Each is about ten kernels of TensorFlow, forward and backward; the others are one or two.
_WORTH_FUSING = ("gelu", "silu", "mish")


@keras.saving.register_keras_serializable(package="trainer")
class FusedActivation(keras.layers.Activation):
    """`keras.layers.Activation` that trains with one pass over memory each way.

    XLA compiles the function and its gradient, which is computed from the inputs
    again, so that nothing else is kept for it. 16-bit floats are rounded once, at the
    end: XLA widens and rounds around each operation otherwise, which takes longer and
    is less exact. Outside of training, and where XLA cannot compile for the device, it
    is the stock layer: exported graphs hold its ops.
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training or isinstance(inputs, keras.KerasTensor) or not _xla_compiles_here():
            return self.activation(inputs)
        return self._fused(inputs)

    def _fused(self, inputs: tf.Tensor) -> tf.Tensor:
        @tf.function(jit_compile=True, autograph=False)
        def forward(values: tf.Tensor) -> tf.Tensor:
            return tf.cast(self.activation(_widened(values)), values.dtype)

        @tf.function(jit_compile=True, autograph=False)
        def backward(values: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
            wide = _widened(values)
            with tf.GradientTape() as tape:
                tape.watch(wide)
                outputs = self.activation(wide)
            return tf.cast(tape.gradient(outputs, wide, _widened(upstream)), values.dtype)

        @tf.custom_gradient
        def fused(values: tf.Tensor) -> Any:
            return forward(values), lambda upstream: backward(values, upstream)

        return fused(inputs)


def _widened(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, tf.float32) if values.dtype.size == 2 else values


def _xla_compiles_here() -> bool:
    # On several logical CPU devices XLA fails (TensorFlow 2.21).
    return len(tf.config.list_logical_devices("CPU")) == 1


def build_activation(name: str, layer_name: str, dtype: Any = None) -> keras.layers.Layer:
    """Return an activation layer; PReLU learns one slope per channel."""
    if name == "prelu":
        return keras.layers.PReLU(shared_axes=[1, 2], name=layer_name, dtype=dtype)
    layer = FusedActivation if name in _WORTH_FUSING else keras.layers.Activation
    return layer(name, name=layer_name, dtype=dtype)
