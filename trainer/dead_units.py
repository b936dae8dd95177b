"""Dead units: what stays zero for every image of a fixed probe set.

The activations of a training step are those of its own batch; whether a unit is dead is a
question about many images, and comparable between windows only if they stay the same.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.activation_hook import ActivationHook


class DeadUnitProbe:
    """Pass the probe images through a model and count units that are zero for all of them.

    It runs op by op: a graph of its own would cost a deep network more time to trace, and
    memory to hold, than a pass of some dozen images once a window takes.

    Args:
        model: The model that trains. It is called with `training=False`, so that neither
            its state nor its random layers change.
        hook: Notes the outputs of the layers that are looked at; installed.
        inputs: What the model takes, images along the first axis.
    """

    def __init__(self, model: keras.Model, hook: ActivationHook, inputs: Any) -> None:
        self._model = model
        self._hook = hook
        self._inputs = keras.tree.map_structure(tf.convert_to_tensor, inputs)

    @property
    def num_images(self) -> int:
        """Images in the probe set."""
        return int(keras.tree.flatten(self._inputs)[0].shape[0])

    def dead_fraction(self) -> np.ndarray:
        """Return the share of dead units of each layer, shape (layers,), float32.

        A unit is an index of the output's last axis, such as a channel. It is dead if its
        output is exactly 0 for every image and position. NaN for a layer that is not called.
        """
        with self._hook.noting():
            self._model(self._inputs, training=False)
            outputs = self._hook.take()
        return np.array([_dead_fraction(calls) for calls in outputs], np.float32)


def _dead_fraction(calls: list[tf.Tensor]) -> float:
    """Return the share of units without a value other than 0 in any of a layer's calls."""
    calls = [call for call in calls if call.shape.rank]
    if not calls:
        return float("nan")
    alive = [
        tf.reduce_any(tf.not_equal(call, 0), axis=list(range(call.shape.rank - 1)))
        for call in calls
    ]
    if len({int(each.shape[0]) for each in alive}) > 1:
        # A layer that is called on outputs of several widths has no units of its own.
        return float("nan")
    return 1.0 - float(np.mean(np.any([each.numpy() for each in alive], axis=0)))
