"""Choose the layers whose activations are recorded, and get at their outputs.

`ActivationHook` wraps, on the instances alone, the model's `train_step` and the `call`
of the chosen layers while the model trains. The wrapped methods return what they
always do; on the way a layer's output is noted for whoever asks in the same step. What
is called outside of `train_step` and of `noting` (validation, prediction, a file being
saved) is not noted.

On the same way it is noted in which order the forward pass uses the weights, and which
of the chosen layers return what the model returns.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from trainer.bounded_values import Bounded, gates, num_operations, softmaxes

_ACTIVATION_LAYERS = (
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Softmax,
    keras.layers.Attention,
)
# What changes the shape or the type of a tensor and no value of it.
_PASSING_ON = ("Reshape", "Squeeze", "ExpandDims", "Identity", "Cast")


def activation_layers(
    model: keras.Model, names: Sequence[str] | None = None
) -> tuple[keras.layers.Layer, ...]:
    """Return the layers whose outputs tell how the signal passes through a model.

    By default those are, of the model's own layers and of those of models inside it,
    in the model's order: every layer with layers of its own and weights (a block, an
    LSTM, attention), every activation layer, dot-product attention, and every other layer
    whose `activation` is not linear.

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
    if _consists_of_layers(layer):
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
        # By id, for variables compare by value.
        self._used: dict[int, keras.Variable] = {}
        self._outputs: set[int] = set()

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each layer; its name as long as it is not built."""
        return tuple(layer.path or layer.name for layer in self.layers)

    @property
    def output_paths(self) -> tuple[str, ...]:
        """Paths of the layers whose own activation makes what the model returns.

        Known from the first step on; a layer that consists of others is not among them.
        """
        return tuple(path for i, path in enumerate(self.paths) if i in self._outputs)

    def order_of(self, variables: Sequence[keras.Variable]) -> tuple[int, ...]:
        """Return indices of variables in the order in which the forward pass uses them.

        Known from the first step on; what was not seen in use stays behind, as it was.
        """
        rank = {key: place for place, key in enumerate(self._used)}
        order = [rank.get(id(variable), len(rank)) for variable in variables]
        return tuple(sorted(range(len(variables)), key=order.__getitem__))

    def install(self) -> None:
        """Wrap `train_step` and `call` of the model, and `call` of its layers."""
        # Left by a `fit` that raised.
        left_over = getattr(self._model.train_step, "__self__", None)
        if isinstance(left_over, ActivationHook):
            left_over.remove()
        self._train_step = self._model.train_step
        self._replace(self._model, "train_step", self.train_step)
        self._replace(self._model, "call", self._noting_outputs(self._model.call))
        index_of = {id(layer): index for index, layer in enumerate(self.layers)}
        for layer in self._model._flatten_layers(include_self=False):
            index = index_of.get(id(layer))
            if index is not None or layer.weights or not layer.built:
                self._replace(layer, "call", self._noting(index, layer))

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
        self._of_replica.inner = [[] for _ in self.layers]
        self._of_replica.inside = []
        try:
            yield
        finally:
            self._of_replica.__dict__.clear()

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

    def take_inner(self) -> list[list[Bounded]]:
        """Return per layer the bounded values inside it in this step so far, and forget them."""
        noted: list[list[Bounded]] = getattr(self._of_replica, "inner", [])
        inner = [[each for each in values if _is_reachable(each[0])] for values in noted]
        for values in noted:
            values.clear()
        return inner or [[] for _ in self.layers]

    def _replace(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        # Past Keras' `__setattr__`, which would track it.
        self._replaced.append((owner, name, owner.__dict__.get(name)))
        owner.__dict__[name] = method

    def _noting(self, index: int | None, layer: keras.layers.Layer) -> Callable[..., Any]:
        call = layer.call

        @functools.wraps(call)
        def noting_call(*args: Any, **kwargs: Any) -> Any:
            noted = getattr(self._of_replica, "outputs", None)
            if noted is None:
                return call(*args, **kwargs)
            # Its own weights come before those of the layers it consists of.
            self._note_use(layer._trainable_variables)
            inside = self._of_replica.inside
            if index is not None:
                inside.append(index)
            start = num_operations()
            try:
                outputs = call(*args, **kwargs)
            finally:
                if index is not None:
                    inside.pop()
            # What it uses without calling the layer that has it.
            self._note_use(layer.trainable_variables)
            flat = keras.tree.flatten(outputs)
            inner = self._of_replica.inner
            if index is not None or inside:
                owner = inside[-1] if inside else index
                inner[owner] += gates(layer, args[0] if args else None, flat)
            if index is not None:
                # Of several, such as a sequence and its last state, the first.
                if isinstance(flat[0], tf.Tensor) and flat[0].dtype.is_floating:
                    noted[index].append(flat[0])
                inner[index] += softmaxes(start, flat[0])
            return outputs

        return noting_call

    def _note_use(self, variables: Sequence[keras.Variable]) -> None:
        for variable in variables:
            self._used.setdefault(id(variable), variable)

    def _noting_outputs(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def noting_call(*args: Any, **kwargs: Any) -> Any:
            noted = getattr(self._of_replica, "outputs", None)
            if noted is None:
                return call(*args, **kwargs)
            self._note_use(self._model._trainable_variables)
            outputs = call(*args, **kwargs)
            sources = {_source(each) for each in keras.tree.flatten(outputs)}
            self._outputs |= {
                index
                for index, calls in enumerate(noted)
                if sources & {_source(each) for each in calls}
                and not _consists_of_layers(self.layers[index])
            }
            return outputs

        return noting_call


def _source(value: Any) -> str | int:
    """What tells the tensor that has a value's numbers first, but for shape and type."""
    if not tf.is_symbolic_tensor(value):
        return id(value)
    while value.op.type in _PASSING_ON:
        value = value.op.inputs[0]
    return str(value.name)


def _consists_of_layers(layer: keras.layers.Layer) -> bool:
    # What a layer consists of has no public name; a test with each kind guards it.
    return bool(list(layer._flatten_layers(include_self=False, recursive=False)))


def _is_reachable(tensor: tf.Tensor) -> bool:
    if not tf.is_symbolic_tensor(tensor):
        return True
    return not tf.executing_eagerly() and tensor.graph is tf.compat.v1.get_default_graph()
