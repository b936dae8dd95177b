"""Measure gradients inside the training step, and reduce them before they are clipped.

`StepHook` sits between a train step and its optimizer by wrapping two public
methods, `scale_loss` and `apply`, while a model trains. Whatever train step runs,
Keras' own or a subclass's, every gradient passes through `apply`: also those that loss
scaling is about to skip. The step itself is untouched, so the weights are
bit-identical with the hook and without it.

In one call of `apply`, in this order:
    1. reduce: sum gradients over replicas. Keras clips each replica's share and sums
       afterwards, which makes `clipnorm` depend on the number of devices.
    2. apply: Keras unscales, clips and updates; its own reduction is switched off.
    3. record: raw, clipped, update and weight of every variable, and the activations
       that an `ActivationHook` has noted in the forward pass, into a window buffer.

Nothing here synchronizes with the host; `WindowBuffer.read` does, once a window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.activation_hook import ActivationHook
from trainer.activation_stats import PARTS, activation_parts, saturation_of
from trainer.bounded_values import Bounded
from trainer.gradient_stats import (
    Rows,
    clipped_norms,
    histograms,
    l2_norms,
    map_values,
    moments,
    norm_of_norms,
)
from trainer.recorded_steps import HISTOGRAM_BOUNDS, MOMENTS, NORMS
from trainer.window_buffer import STEP_FIELDS, WindowBuffer


class StepHook:
    """Reduce gradients before the optimizer clips them, and record what it does.

    Install it before the training step is traced, remove it afterwards:

        hook = StepHook(model.optimizer, buffer)
        hook.install()
        model.make_train_function(force=True)

    Args:
        optimizer: Of a compiled model; a `LossScaleOptimizer` too.
        buffer: Where the step is recorded; None reduces without recording.
        activations: Whose layers' outputs are recorded too. It is installed and
            removed together with this hook.
        activation_images: Look at the first so many images of each replica's share of
            the batch, and at all of them in a step whose loss or gradient is not
            finite; None is always all, as it must be where XLA compiles the step.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        buffer: WindowBuffer | None,
        activations: ActivationHook | None = None,
        activation_images: int | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._buffer = buffer
        self._activations = activations
        self._activation_images = activation_images
        # Replicas are threads, and each has its own loss.
        self._of_replica = threading.local()

    def install(self) -> None:
        """Put the hook between the train step and the optimizer."""
        # Left by a `fit` that raised; on top of it gradients would be reduced twice.
        left_over = getattr(self._optimizer.apply, "__self__", None)
        if isinstance(left_over, StepHook):
            left_over.remove()
        self._scale_loss = self._optimizer.scale_loss
        self._apply = self._optimizer.apply
        self._optimizer.scale_loss = self.scale_loss
        self._optimizer.apply = self.apply
        if self._activations is not None:
            self._activations.install()

    def remove(self) -> None:
        """Leave the optimizer and the layers as they were."""
        for name in ("scale_loss", "apply"):
            self._optimizer.__dict__.pop(name, None)
        if self._activations is not None:
            self._activations.remove()

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Note the step's own loss on its way to the tape."""
        self._of_replica.loss = tf.cast(loss, tf.float32)
        return self._scale_loss(loss)

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Reduce, let the optimizer unscale, clip and update, and record."""
        grads = own = list(grads)
        variables = list(trainable_variables or self._optimizer._trainable_variables)
        loss = self._of_replica.__dict__.pop("loss", None)
        replicas = tf.distribute.get_replica_context()
        with ExitStack() as stack:
            replica_norm = None
            if replicas is not None and replicas.num_replicas_in_sync > 1:
                if self._buffer is not None:
                    replica_norm = _replica_norm(replicas, grads)
                grads, loss = _reduce(replicas, grads, loss)
                stack.enter_context(_without_reduction(_inner(self._optimizer)))
            if self._buffer is None:
                self._apply(grads, variables)
            else:
                self._apply_and_record(self._buffer, grads, own, variables, loss, replica_norm)

    def _apply_and_record(
        self,
        buffer: WindowBuffer,
        grads: list[Any],
        own: list[Any],
        variables: list[keras.Variable],
        loss: tf.Tensor | None,
        replica_norm: tf.Tensor | None,
    ) -> None:
        optimizer, inner = self._optimizer, _inner(self._optimizer)
        with tf.init_scope():
            if not buffer.is_built:
                buffer.build(variables)
            if not optimizer.built:
                # The loss scale is a variable from here on.
                optimizer.build(variables)
        # A train step may train some of the variables, in its own order.
        grad_of = dict(zip(map(id, variables), grads, strict=True))
        grads_of_weights = [grad_of.get(id(weight)) for weight in buffer.weights]
        # As the replica has them: where they are summed, what they were made by is out of sight.
        own_of = dict(zip(map(id, variables), own, strict=True))
        buffer.note_trace([own_of.get(id(weight)) for weight in buffer.weights], loss is not None)
        # Taken now: all three change in `apply`.
        scale = _loss_scale(optimizer)
        learning_rate = tf.cast(tf.convert_to_tensor(inner.learning_rate), tf.float32)
        # The public `iterations` counts full accumulations of gradients only.
        iterations = tf.convert_to_tensor(inner._iterations.value)
        # `ops.convert_to_tensor` would be read after the update: it is a lazy reference.
        before = [tf.convert_to_tensor(variable.value) for variable in buffer.weights]
        self._apply(grads, variables)
        after = [tf.convert_to_tensor(variable.value) for variable in buffer.weights]
        is_skipped = tf.equal(iterations, tf.convert_to_tensor(inner._iterations.value))
        clipping = clipping_of(optimizer)
        outputs = [] if self._activations is None else self._activations.take()
        inner = [] if self._activations is None else self._activations.take_inner()

        def measure(in_full: tf.Tensor, with_activations: tf.Tensor) -> dict[str, tf.Tensor]:
            weights = [tf.cast(value, tf.float32) for value in before]
            updated = [tf.cast(value, tf.float32) for value in after]
            unscaled = [
                tf.zeros_like(weight)
                if grad is None
                else map_values(lambda values: _unscale(values, scale), grad)
                for grad, weight in zip(grads_of_weights, weights, strict=True)
            ]
            raw_rows = Rows([tf.convert_to_tensor(grad) for grad in unscaled])
            weight_rows = Rows(weights)
            raw_norm = l2_norms(raw_rows)
            norms = tf.stack(
                [
                    raw_norm,
                    clipped_norms(unscaled, raw_norm, clipping),
                    l2_norms(Rows(updated).minus(weight_rows)),
                    l2_norms(weight_rows),
                ],
                axis=1,
            )
            totals = norm_of_norms(norms)
            is_bad = ~tf.math.is_finite(totals[0])
            in_full |= is_bad
            if loss is not None:
                is_bad |= ~tf.math.is_finite(loss)
            step = {
                "loss": np.float32(np.nan) if loss is None else loss,
                **{name: totals[i] for i, name in enumerate(NORMS)},
                "learning_rate": learning_rate,
                "loss_scale": 1.0 if scale is None else scale,
                "skipped": tf.cast(is_skipped, tf.float32),
                "replica_norm": (
                    np.float32(np.nan) if replica_norm is None else _unscale(replica_norm, scale)
                ),
            }

            def where_in_full(function: Callable[[Rows], tf.Tensor], width: int) -> tf.Tensor:
                absent = tf.fill((len(weights), width), np.float32(np.nan))
                if buffer.can_branch:
                    return tf.cond(in_full, lambda: function(raw_rows), lambda: absent)
                return tf.where(in_full, function(raw_rows), absent)

            rows = {
                "norms": norms,
                "moments": where_in_full(moments, len(MOMENTS)),
                "steps": tf.stack([step[name] for name in STEP_FIELDS]),
            }
            if buffer.has_histograms:
                rows["histograms"] = where_in_full(histograms, len(HISTOGRAM_BOUNDS) - 1)
            if outputs:
                rows["activations"] = self._measure_activations(
                    outputs, inner, with_activations, is_bad, buffer.can_branch
                )
            return rows

        # Where a data set of unknown length ends, the graph runs what needs no data.
        with tf.control_dependencies([grad for grad in grads if grad is not None]):
            buffer.record(measure)

    def _measure_activations(
        self,
        outputs: list[list[tf.Tensor]],
        inner: list[list[Bounded]],
        is_turn: tf.Tensor,
        is_bad: tf.Tensor,
        can_branch: bool,
    ) -> tf.Tensor:
        """`PARTS` of each layer, shape (layers, len(PARTS)); NaN where they are not wanted."""
        assert self._activations is not None
        saturations = [saturation_of(layer) for layer in self._activations.layers]
        absent = tf.fill((len(outputs), len(PARTS)), np.float32(np.nan))
        images = self._activation_images
        if not can_branch:
            parts = activation_parts(outputs, saturations, images, None, inner)
            return tf.where(is_turn | is_bad, parts, absent)
        return tf.cond(
            is_turn | is_bad,
            lambda: activation_parts(outputs, saturations, images, is_bad, inner),
            lambda: absent,
        )


def clipping_of(optimizer: keras.optimizers.Optimizer) -> dict[str, float]:
    """Return the one clipping that a Keras optimizer applies, such as `{"clipnorm": 1.0}`."""
    inner = _inner(optimizer)
    # Keras' own order of precedence (base_optimizer.py, _clip_gradients).
    for name in ("clipnorm", "global_clipnorm", "clipvalue"):
        bound = getattr(inner, name, None)
        if bound:
            return {name: float(bound)}
    return {}


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that clips and updates: itself, or the one inside loss scaling."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _loss_scale(optimizer: keras.optimizers.Optimizer) -> tf.Tensor | None:
    """What the gradients of this step are too large by, None for nothing."""
    dynamic = getattr(optimizer, "dynamic_scale", None)
    if dynamic is not None:
        return tf.convert_to_tensor(dynamic.value)
    fixed = optimizer.loss_scale_factor
    return tf.constant(fixed, tf.float32) if fixed else None


def _unscale(values: tf.Tensor, scale: tf.Tensor | None) -> tf.Tensor:
    values = tf.cast(values, tf.float32)
    return values if scale is None else values / scale


def _reduce(
    replicas: tf.distribute.ReplicaContext, grads: list[Any], loss: tf.Tensor | None
) -> tuple[list[Any], tf.Tensor | None]:
    """Sum over replicas; each loss is already divided by their number."""
    values = [*grads, loss]
    present = [value for value in values if value is not None]
    reduced = iter(replicas.all_reduce(tf.distribute.ReduceOp.SUM, present))
    *grads, loss = [None if value is None else next(reduced) for value in values]
    return grads, loss


def _replica_norm(replicas: tf.distribute.ReplicaContext, grads: list[Any]) -> tf.Tensor:
    """Root mean square over replicas of the norm of each one's own gradient, still scaled."""
    present = [tf.convert_to_tensor(grad) for grad in grads if grad is not None]
    rows = Rows([tf.cast(grad, tf.float32) for grad in present])
    count = replicas.num_replicas_in_sync
    # Each loss is divided by their number: undo that.
    square = tf.square(count * norm_of_norms(l2_norms(rows)))
    return tf.sqrt(replicas.all_reduce(tf.distribute.ReduceOp.SUM, square) / count)


def _without_reduction(inner: keras.optimizers.Optimizer) -> ExitStack:
    """Switch off Keras' own sum over replicas while the gradients are already summed."""
    # The one private name that is needed; a test with two devices guards it
    # (backend/tensorflow/optimizer.py, _backend_update_step).
    inner._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    stack = ExitStack()
    stack.callback(lambda: inner.__dict__.pop("_all_reduce_sum_gradients", None))
    return stack
