"""Bounded values inside a layer, which its output does not show: gates and attention.

The output of an LSTM or of an attention layer can look well while its gates are all
open or shut, or each of its softmaxes points at one place alone: then nothing is learned
about where to look, or what to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Saturation:
    """A bounded function's values are saturated where `abs(value - center) > radius`.

    Attributes:
        center: Middle of the function's range.
        radius: Where its slope falls below 0.01.
        of_largest: Look at the largest value along the last axis alone, for a softmax.
    """

    center: float
    radius: float
    of_largest: bool = False


# Slopes: sigmoid y * (1 - y), tanh 1 - y^2, softsign (1 - |y|)^2. The hard ones have none
# at their bounds, which a float16 may miss by a digit.
SATURATIONS = {
    keras.activations.sigmoid: Saturation(0.5, 0.24**0.5),
    keras.activations.tanh: Saturation(0.0, 0.99**0.5),
    keras.activations.softsign: Saturation(0.0, 0.9),
    keras.activations.hard_sigmoid: Saturation(0.5, 0.499),
    keras.activations.hard_tanh: Saturation(0.0, 0.999),
}
# Attention may learn to look at one place, and is then seldom as sure as this.
_SOFTMAX = Saturation(0.0, 0.9999, of_largest=True)

Bounded = tuple[tf.Tensor, Saturation]
"""Values, examples along the first axis, and where they are saturated."""


def num_operations() -> int:
    """Return how many operations the graph that is traced has; 0 where none is."""
    return 0 if tf.executing_eagerly() else len(_operations())


def softmaxes(since: int, output: Any) -> list[Bounded]:
    """Return the softmaxes that the graph has got since it had so many operations.

    None is found in eager execution, nor in the body of a loop.

    Args:
        since: What `num_operations` returned.
        output: Of the layer that is looked into: it may be a softmax itself, for
            whom to be sure is the aim.
    """
    if tf.executing_eagerly():
        return []
    found = [op.outputs[0] for op in _operations()[since:] if op.type == "Softmax"]
    return [
        (values, _SOFTMAX)
        for values in found
        # Over one place there is nothing to choose.
        if values is not output and (values.shape.rank or 0) >= 2 and values.shape[-1] != 1
    ]


def gates(layer: keras.layers.Layer, inputs: Any, outputs: Sequence[Any]) -> list[Bounded]:
    """Return the gates of an LSTM or a GRU at the last time step.

    They are computed anew, for those of the layer itself are in the body of a loop. The
    layer's output stands for its state one step earlier.

    Args:
        layer: Any layer; one without such gates has none.
        inputs: Its input, shape (batch, time, features).
        outputs: All that its `call` returned, flat.
    """
    cell = getattr(layer, "cell", None)
    if not isinstance(cell, keras.layers.LSTMCell | keras.layers.GRUCell):
        return []
    saturation = SATURATIONS.get(cell.recurrent_activation)
    if saturation is None or not isinstance(inputs, tf.Tensor) or inputs.shape.rank != 3:
        return []
    last = inputs[:, 0 if layer.go_backwards else -1]
    state = outputs[0][:, -1] if layer.return_sequences else outputs[0]
    logits = tf.matmul(last, _of(cell.kernel, last)) + tf.matmul(
        tf.cast(state, last.dtype), _of(cell.recurrent_kernel, last)
    )
    if cell.use_bias:
        # A GRU has one bias for its inputs and one for its state.
        logits += tf.reduce_sum(tf.reshape(_of(cell.bias, last), [-1, logits.shape[-1]]), axis=0)
    parts = tf.split(logits, 4 if isinstance(cell, keras.layers.LSTMCell) else 3, axis=-1)
    # Of an LSTM the third is what is to be kept, and of a GRU the same: no gate.
    del parts[2]
    return [(cell.recurrent_activation(tf.concat(parts, axis=-1)), saturation)]


def _of(variable: keras.Variable, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(variable), like.dtype)


def _operations() -> list[tf.Operation]:
    return tf.compat.v1.get_default_graph().get_operations()
