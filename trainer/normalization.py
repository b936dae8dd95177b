"""Normalization layers by spec, and BatchNormalization through TensorFlow's fused kernel."""

from __future__ import annotations

from math import prod
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# The fused kernel refuses a smaller epsilon, which is cuDNN's rule.
_SMALLEST_FUSED_EPSILON = 1.001e-5
# TensorFlow 2.21 makes one kernel of a convolution, the fused normalization and these, and
# then says "Fusion is not implemented: [FusedBatchNorm,Tanh]".
_WITHOUT_FUSED_INFERENCE = ("tanh", "mish")


@keras.saving.register_keras_serializable(package="trainer")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` computed by one kernel instead of a dozen.

    Same arguments, weights, moving statistics and mixed-precision rule as the
    stock layer; the outputs agree to float rounding. Inputs of shape (batch,
    height, width, channels) with `axis=-1` and float32 weights take the fused kernel;
    any other input, a mask, renorm and `synchronized=True` take Keras' own path.

    Args:
        fused_inference: False takes Keras' own path outside of training too.
        **options: Of the stock layer.
    """

    def __init__(self, fused_inference: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.fused_inference = fused_inference

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "fused_inference": self.fused_inference}

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        is_fusable = (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.center
            and self.epsilon >= _SMALLEST_FUSED_EPSILON
            and self.variable_dtype == "float32"
            and mask is None
            and not self.renorm
            and not self.synchronized
        )
        updates_statistics = bool(training and self.trainable)
        is_fusable &= updates_statistics or self.fused_inference
        if not is_fusable or isinstance(inputs, keras.KerasTensor):
            return super().call(inputs, training=training, mask=mask)

        statistics: dict[str, Any] = {}
        if not updates_statistics:
            statistics = {
                "mean": tf.convert_to_tensor(self.moving_mean.value),
                "variance": tf.convert_to_tensor(self.moving_variance.value),
            }
        beta = tf.convert_to_tensor(self.beta.value)
        gamma = tf.convert_to_tensor(self.gamma.value) if self.scale else tf.ones_like(beta)
        # Statistics and the affine part are float32 inside the kernel whatever the inputs are.
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            scale=gamma,
            offset=beta,
            epsilon=self.epsilon,
            is_training=updates_statistics,
            **statistics,
        )
        if updates_statistics:
            # The kernel returns the unbiased variance; Keras keeps the biased one.
            biased_variance = variance * _biased_share(inputs)
            keep = self.momentum
            # Tensors, not Keras' variables: their operators are half of the time that it
            # takes to trace this layer.
            moving_mean = tf.convert_to_tensor(self.moving_mean.value)
            moving_variance = tf.convert_to_tensor(self.moving_variance.value)
            self.moving_mean.assign(moving_mean * keep + mean * (1.0 - keep))
            self.moving_variance.assign(moving_variance * keep + biased_variance * (1.0 - keep))
        return outputs


def _biased_share(inputs: tf.Tensor) -> Any:
    """(n - 1) / n for n values of each channel, in float32."""
    if inputs.shape.is_fully_defined():
        count = np.float32(prod(inputs.shape[:-1]))
        return (count - np.float32(1)) / count
    number = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
    return (number - 1.0) / number


def build_normalization(
    spec: dict[str, Any],
    name: str,
    scale_initializer: str = "ones",
    dtype: Any = None,
    activation: str = "relu",
) -> keras.layers.Layer | None:
    """Return the normalization layer of a spec, or None for `kind: none`.

    Args:
        spec: `kind` (batch, layer, group or none) and its options, as
            `config.model_schema` names them.
        name: Name of the layer.
        scale_initializer: Initializer of the scale (gamma).
        dtype: Keras dtype policy; None is the global one.
        activation: What may follow it.

    Raises:
        ValueError: If `kind` is unknown.
    """
    options = {key: value for key, value in spec.items() if key != "kind"}
    options |= {"gamma_initializer": scale_initializer, "name": name, "dtype": dtype}
    match spec["kind"]:
        case "batch":
            fused_inference = activation not in _WITHOUT_FUSED_INFERENCE
            return FusedBatchNormalization(fused_inference, **options)
        case "layer":
            # One group is the normalization over all of an image (Wu and He 2018);
            # Keras' LayerNormalization would normalize each position by itself.
            return keras.layers.GroupNormalization(groups=1, **options)
        case "group":
            return keras.layers.GroupNormalization(**options)
        case "none":
            return None
        case kind:
            raise ValueError(
                "`spec['kind']` must be batch, layer, group or none. "
                f"Received: spec['kind']={kind!r}"
            )
