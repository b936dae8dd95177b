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
    3. record: raw, clipped, update and weight of every variable into a window buffer.

Nothing here synchronizes with the host; `StepRecorder.read` does, once a window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.gradient_log import MOMENTS, NORMS, STEP_DTYPE, RecordedSteps, VariableInfo
from trainer.gradient_stats import clipped_norms, l2_norms, map_values, moments, norm_of_norms

_STEP_FIELDS = tuple(name for name in STEP_DTYPE.names or () if name != "step")


class StepRecorder:
    """A window buffer in the graph, one row a recorded step.

    Args:
        window_steps: Rows of the buffer: the most recorded steps between two reads.
        every_steps: Record every n-th step.
        moments_every_steps: Record every n-th recorded step in full. Steps with a
            gradient that is not finite are always recorded in full.
        first_step: Number of the first step, for a resumed training.
        can_branch: False where XLA compiles the step. A conditional makes it fuse, and
            so round, the training itself otherwise, and wait for the host on a GPU:
            everything is then computed at every step, needed or not.
    """

    def __init__(
        self,
        window_steps: int,
        every_steps: int = 1,
        moments_every_steps: int = 1,
        first_step: int = 0,
        can_branch: bool = True,
    ) -> None:
        self.window_steps = window_steps
        self.every_steps = every_steps
        self.moments_every_steps = moments_every_steps
        self.can_branch = can_branch
        self.variables: tuple[VariableInfo, ...] = ()
        self.weights: tuple[keras.Variable, ...] = ()
        self.has_loss = True
        self._first_step = first_step
        self._num_read = 0
        self._buffers: dict[str, tf.Variable] = {}

    @property
    def is_built(self) -> bool:
        """Whether the buffers exist: from the first trace of the training step on."""
        return bool(self._buffers)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the buffers; call it in the strategy's scope."""
        self.weights = tuple(variables)
        self.variables = tuple(VariableInfo(v.path, tuple(v.shape)) for v in variables)
        rows, width = self.window_steps, len(variables)
        shapes = {
            "norms": (rows, width, len(NORMS)),
            "moments": (rows, width, len(MOMENTS)),
            "steps": (rows, len(_STEP_FIELDS)),
        }
        for name, shape in shapes.items():
            self._buffers[name] = _replica_local(tf.zeros(shape), name)
        self._buffers["count"] = _replica_local(tf.zeros((), tf.int64), "count")

    def note_trace(self, is_connected: Sequence[bool], has_loss: bool) -> None:
        """Note on which variables the loss depends, and whether the step's loss is known."""
        self.has_loss = has_loss
        self.variables = tuple(
            VariableInfo(v.path, v.shape, connected)
            for v, connected in zip(self.variables, is_connected, strict=True)
        )

    def record(self, measure: Callable[[tf.Tensor], dict[str, tf.Tensor]]) -> None:
        """Record one step, in the graph.

        Args:
            measure: Called with whether the step's turn is to be recorded in full
                (a boolean scalar); returns the rows `norms`, `moments` and `steps`.
        """
        count = tf.convert_to_tensor(self._buffers["count"])
        is_turn = tf.equal(count % self.every_steps, 0)
        index = count // self.every_steps

        def write() -> tf.Tensor:
            rows = measure(tf.equal(index % self.moments_every_steps, 0))
            row = index % self.window_steps
            for name, values in rows.items():
                if self.every_steps > 1 and not self.can_branch:
                    values = tf.where(is_turn, values, self._buffers[name][row])
                _write_row(self._buffers[name], row, values)
            return tf.constant(True)

        if self.every_steps > 1 and self.can_branch:
            tf.cond(is_turn, write, lambda: tf.constant(False))
        else:
            write()
        self._buffers["count"].assign(count + 1)

    def read(self) -> RecordedSteps:
        """Return the steps recorded since the last read; waits for the device.

        Call it before more than `window_steps` further steps are recorded.
        """
        if not self.is_built:
            empty = np.empty(0, STEP_DTYPE)
            return RecordedSteps(empty, np.empty((0, 0, len(NORMS))), np.empty((0, 0, 5)))
        count = int(tf.convert_to_tensor(self._buffers["count"]).numpy())
        end = -(-count // self.every_steps)
        indices = np.arange(self._num_read, end)
        if len(indices) > self.window_steps:
            raise ValueError(
                "a train step must apply gradients once to be recorded. Received: "
                f"{len(indices)} records in a window of {self.window_steps} steps"
            )
        self._num_read = end
        rows = indices % self.window_steps
        values = tf.convert_to_tensor(self._buffers["steps"]).numpy()[rows]
        steps = np.empty(len(indices), STEP_DTYPE)
        steps["step"] = self._first_step + indices * self.every_steps
        for position, name in enumerate(_STEP_FIELDS):
            steps[name] = values[:, position]
        return RecordedSteps(
            steps,
            tf.convert_to_tensor(self._buffers["norms"]).numpy()[rows],
            tf.convert_to_tensor(self._buffers["moments"]).numpy()[rows],
        )


def _replica_local(initial: tf.Tensor, name: str) -> tf.Variable:
    # Every replica holds the same numbers, and each writes its own copy: no traffic.
    return tf.Variable(
        initial,
        trainable=False,
        name=f"gradient_recorder/{name}",
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def _write_row(buffer: tf.Variable, row: tf.Tensor, values: tf.Tensor) -> None:
    if tf.distribute.has_strategy():
        # A replica-local variable knows no scatter; a window is small enough to copy.
        buffer.assign(tf.tensor_scatter_nd_update(buffer, [[row]], [values]))
    else:
        buffer.scatter_nd_update([[row]], [values])


class StepHook:
    """Reduce gradients before the optimizer clips them, and record what it does.

    Install it before the training step is traced, remove it afterwards:

        hook = StepHook(model.optimizer, recorder)
        hook.install()
        model.make_train_function(force=True)

    Args:
        optimizer: Of a compiled model; a `LossScaleOptimizer` too.
        recorder: None reduces without recording.
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, recorder: StepRecorder | None
    ) -> None:
        self._optimizer = optimizer
        self._recorder = recorder
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

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for name in ("scale_loss", "apply"):
            self._optimizer.__dict__.pop(name, None)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Note the step's own loss on its way to the tape."""
        self._of_replica.loss = tf.cast(loss, tf.float32)
        return self._scale_loss(loss)

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Reduce, let the optimizer unscale, clip and update, and record."""
        grads = list(grads)
        variables = list(trainable_variables or self._optimizer._trainable_variables)
        loss = self._of_replica.__dict__.pop("loss", None)
        replicas = tf.distribute.get_replica_context()
        with ExitStack() as stack:
            if replicas is not None and replicas.num_replicas_in_sync > 1:
                grads, loss = _reduce(replicas, grads, loss)
                stack.enter_context(_without_reduction(_inner(self._optimizer)))
            if self._recorder is None:
                self._apply(grads, variables)
            else:
                self._apply_and_record(self._recorder, grads, variables, loss)

    def _apply_and_record(
        self,
        recorder: StepRecorder,
        grads: list[Any],
        variables: list[keras.Variable],
        loss: tf.Tensor | None,
    ) -> None:
        optimizer, inner = self._optimizer, _inner(self._optimizer)
        with tf.init_scope():
            if not recorder.is_built:
                recorder.build(variables)
            if not optimizer.built:
                # The loss scale is a variable from here on.
                optimizer.build(variables)
        # A train step may train some of the variables, in its own order.
        grad_of = dict(zip(map(id, variables), grads, strict=True))
        grads_of_weights = [grad_of.get(id(weight)) for weight in recorder.weights]
        recorder.note_trace([g is not None for g in grads_of_weights], loss is not None)
        # Taken now: all three change in `apply`.
        scale = _loss_scale(optimizer)
        learning_rate = tf.cast(tf.convert_to_tensor(inner.learning_rate), tf.float32)
        # The public `iterations` counts full accumulations of gradients only.
        iterations = tf.convert_to_tensor(inner._iterations.value)
        # `ops.convert_to_tensor` would be read after the update: it is a lazy reference.
        before = [tf.convert_to_tensor(variable.value) for variable in recorder.weights]
        self._apply(grads, variables)
        after = [tf.convert_to_tensor(variable.value) for variable in recorder.weights]
        is_skipped = tf.equal(iterations, tf.convert_to_tensor(inner._iterations.value))
        clipping = clipping_of(optimizer)

        def measure(in_full: tf.Tensor) -> dict[str, tf.Tensor]:
            weights = [tf.cast(value, tf.float32) for value in before]
            updates = [tf.cast(a, tf.float32) - b for a, b in zip(after, weights, strict=True)]
            unscaled = [
                tf.zeros_like(weight)
                if grad is None
                else map_values(lambda values: tf.cast(values, tf.float32) / scale, grad)
                for grad, weight in zip(grads_of_weights, weights, strict=True)
            ]
            raw = [tf.convert_to_tensor(grad) for grad in unscaled]
            can_branch = recorder.can_branch
            raw_norm = l2_norms(raw, can_branch)
            norms = tf.stack(
                [
                    raw_norm,
                    clipped_norms(unscaled, raw_norm, clipping, can_branch),
                    l2_norms(updates, can_branch),
                    l2_norms(weights, can_branch),
                ],
                axis=1,
            )
            totals = norm_of_norms(norms)
            in_full |= ~tf.math.is_finite(totals[0])
            step = {
                "loss": np.float32(np.nan) if loss is None else loss,
                **{name: totals[i] for i, name in enumerate(NORMS)},
                "learning_rate": learning_rate,
                "loss_scale": scale,
                "skipped": tf.cast(is_skipped, tf.float32),
            }
            absent = tf.fill((len(raw), len(MOMENTS)), np.float32(np.nan))
            return {
                "norms": norms,
                "moments": (
                    tf.cond(in_full, lambda: moments(raw), lambda: absent)
                    if can_branch
                    else tf.where(in_full, moments(raw), absent)
                ),
                "steps": tf.stack([step[name] for name in _STEP_FIELDS]),
            }

        # Where a data set of unknown length ends, the graph runs what needs no data.
        with tf.control_dependencies([grad for grad in grads if grad is not None]):
            recorder.record(measure)


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


def _loss_scale(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    dynamic = getattr(optimizer, "dynamic_scale", None)
    if dynamic is not None:
        return tf.convert_to_tensor(dynamic.value)
    return tf.constant(optimizer.loss_scale_factor or 1.0, tf.float32)


def _reduce(
    replicas: tf.distribute.ReplicaContext, grads: list[Any], loss: tf.Tensor | None
) -> tuple[list[Any], tf.Tensor | None]:
    """Sum over replicas; each loss is already divided by their number."""
    values = [*grads, loss]
    present = [value for value in values if value is not None]
    reduced = iter(replicas.all_reduce(tf.distribute.ReduceOp.SUM, present))
    *grads, loss = [None if value is None else next(reduced) for value in values]
    return grads, loss


def _without_reduction(inner: keras.optimizers.Optimizer) -> ExitStack:
    """Switch off Keras' own sum over replicas while the gradients are already summed."""
    # The one private name that is needed; a test with two devices guards it
    # (backend/tensorflow/optimizer.py, _backend_update_step).
    inner._all_reduce_sum_gradients = lambda grads_and_vars: grads_and_vars
    stack = ExitStack()
    stack.callback(lambda: inner.__dict__.pop("_all_reduce_sum_gradients", None))
    return stack
