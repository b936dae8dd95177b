"""Choose the layers whose activations are recorded, and get at their outputs.

`ActivationHook` wraps, on the instances alone, the model's `train_step` and the `call`
of the chosen layers while the model trains. The wrapped methods return what they
always do; on the way a layer's output is noted for whoever asks in the same step. What
is called outside of `train_step` and of `noting` (validation, prediction, a file being
saved) is not noted.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

_ACTIVATION_LAYERS = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Softmax,
)


def activation_layers(
    model: keras.Model, names: Sequence[str] | None = None
) -> tuple[keras.layers.Layer, ...]:
    """Return the layers whose outputs tell how the signal passes through a model.

    By default those are, of the model's own layers and of those of models inside it,
    in the model's order: every layer with layers of its own and weights (a block, an
    LSTM, attention), every activation layer, and every other layer whose `activation`
    is not linear.

    Args:
        model: Any Keras model; its layers must exist, their weights need not.
        names: Names or paths of layers at any depth instead, such as
            `stage1_block0/act1`. A name that several layers have stands for them all.

    Raises:
        ValueError: If a name is that of no layer.
    """
    if names is None:
        found = [layer for layer in _opened(model) if _is_chosen(layer)]
    else:
        layers = list(model._flatten_layers(include_self=False))
        found = [layer for layer in layers if {layer.name, layer.path} & set(names)]
        known = {name for layer in layers for name in (layer.name, layer.path)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                "`activation_layers` must be names or paths of layers of the model. "
                f"Received: {', '.join(map(repr, unknown))}. There are: "
                f"{', '.join(dict.fromkeys(layer.path or layer.name for layer in layers))}"
            )
    return tuple({id(layer): layer for layer in found}.values())


def _opened(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _opened(layer)
        else:
            yield layer


def _is_chosen(layer: keras.layers.Layer) -> bool:
    # What a layer consists of has no public name; a test with each kind guards it.
    if list(layer._flatten_layers(include_self=False, recursive=False)):
        # One without weights, once they could be there, augments images or the like.
        return bool(layer.weights) or not layer.built
    activation = getattr(layer, "activation", None)
    return isinstance(layer, _ACTIVATION_LAYERS) or (
        callable(activation) and activation is not keras.activations.linear
    )


class ActivationHook:
    """Note what chosen layers return inside the training step.

    Install it before the training step is traced, remove it afterwards.

    Args:
        model: The model that trains.
        layers: Layers of it, at any depth.
    """

    def __init__(self, model: keras.Model, layers: Sequence[keras.layers.Layer]) -> None:
        self.layers = tuple(layers)
        self._model = model
        # Replicas are threads.
        self._of_replica = threading.local()
        self._replaced: list[tuple[Any, str, Any]] = []

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each layer; its name as long as it is not built."""
        return tuple(layer.path or layer.name for layer in self.layers)

    def install(self) -> None:
        """Wrap `train_step` of the model and `call` of the layers."""
        # Left by a `fit` that raised.
        left_over = getattr(self._model.train_step, "__self__", None)
        if isinstance(left_over, ActivationHook):
            left_over.remove()
        self._train_step = self._model.train_step
        self._replace(self._model, "train_step", self.train_step)
        for index, layer in enumerate(self.layers):
            self._replace(layer, "call", self._noting(index, layer.call))

    def remove(self) -> None:
        """Leave the model as it was; harmless when called again."""
        while self._replaced:
            owner, name, previous = self._replaced.pop()
            if previous is None:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = previous

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's own train step, and note outputs while it runs."""
        with self.noting():
            return self._train_step(*args, **kwargs)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note outputs in this thread until the block ends."""
        self._of_replica.outputs = [[] for _ in self.layers]
        try:
            yield
        finally:
            del self._of_replica.outputs

    def take(self) -> list[list[tf.Tensor]]:
        """Return per layer what it returned in this step so far, and forget it.

        Outputs that belong to another graph than the caller's (a loop's body, a
        branch, a pass that only looks for shapes) are left out.
        """
        noted: list[list[tf.Tensor]] = getattr(self._of_replica, "outputs", [])
        outputs = [[each for each in calls if _is_reachable(each)] for calls in noted]
        for calls in noted:
            calls.clear()
        return outputs or [[] for _ in self.layers]

    def _replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        # Past Keras' `__setattr__`, which would track it.
        self._replaced.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = method

    def _noting(self, index: int, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def noting_call(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            noted = getattr(self._of_replica, "outputs", None)
            if noted is not None:
                # Of several, such as a sequence and its last state, the first.
                first = keras.tree.flatten(outputs)[0]
                if isinstance(first, tf.Tensor) and first.dtype.is_floating:
                    noted[index].append(first)
            return outputs

        return noting_call


def _is_reachable(tensor: tf.Tensor) -> bool:
    if not tf.is_symbolic_tensor(tensor):
        return True
    return not tf.executing_eagerly() and tensor.graph is tf.compat.v1.get_default_graph()
