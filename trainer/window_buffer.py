"""The window buffer: what a training step measures stays on the device, one row a step.

Nothing here synchronizes with the host but `WindowBuffer.read`, once a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.activation_stats import PARTS, combine_replicas
from trainer.bias_sums import summands_in_bfloat16
from trainer.gradient_log import VariableInfo
from trainer.recorded_steps import (
    ACTIVATIONS,
    HISTOGRAM_BOUNDS,
    MOMENTS,
    NORMS,
    STEP_DTYPE,
    RecordedSteps,
)

STEP_FIELDS = tuple(name for name in STEP_DTYPE.names or () if name != "step")
"""Columns of the row `steps`: all of `STEP_DTYPE` but the number of the step."""

Measure = Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]


class WindowBuffer:
    """A buffer in the graph, one row a recorded step.

    Args:
        window_steps: Rows of the buffer: the most recorded steps between two reads.
        every_steps: Record every n-th step.
        moments_every_steps: Record every n-th recorded step in full. Steps with a
            gradient that is not finite are always recorded in full.
        activations_every_steps: Record the activations of every n-th recorded step.
            Steps with a loss or gradient that is not finite always have theirs.
        num_layers: Layers whose activations are recorded.
        first_step: Number of the first step, for a resumed training.
        can_branch: False where XLA compiles the step. A conditional makes it fuse, and
            so round, the training itself otherwise, and wait for the host on a GPU:
            everything is then computed at every step, needed or not.
        has_histograms: Whether the values of gradients are counted, too, at steps that are
            recorded in full.
    """

    def __init__(
        self,
        window_steps: int,
        every_steps: int = 1,
        moments_every_steps: int = 1,
        activations_every_steps: int = 1,
        num_layers: int = 0,
        first_step: int = 0,
        can_branch: bool = True,
        has_histograms: bool = False,
    ) -> None:
        self.window_steps = window_steps
        self.every_steps = every_steps
        self.moments_every_steps = moments_every_steps
        self.activations_every_steps = activations_every_steps
        self.num_layers = num_layers
        self.can_branch = can_branch
        self.has_histograms = has_histograms
        self.variables: tuple[VariableInfo, ...] = ()
        self.weights: tuple[keras.Variable, ...] = ()
        self.has_loss = True
        self._first_step = first_step
        self._num_read = 0
        self._buffers: dict[str, tf.Variable] = {}
        self._strategy: tf.distribute.Strategy | None = None

    @property
    def is_built(self) -> bool:
        """Whether the buffers exist: from the first trace of the training step on."""
        return bool(self._buffers)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the buffers; call it in the strategy's scope."""
        self.weights = tuple(variables)
        self.variables = tuple(describe(variable) for variable in variables)
        self._strategy = tf.distribute.get_strategy()
        rows, width = self.window_steps, len(variables)
        shapes = {
            "norms": (rows, width, len(NORMS)),
            "moments": (rows, width, len(MOMENTS)),
            "steps": (rows, len(STEP_FIELDS)),
        }
        if self.num_layers:
            shapes["activations"] = (rows, self.num_layers, len(PARTS))
        if self.has_histograms:
            shapes["histograms"] = (rows, width, len(HISTOGRAM_BOUNDS) - 1)
        for name, shape in shapes.items():
            self._buffers[name] = _replica_local(tf.zeros(shape), name)
        self._buffers["count"] = _replica_local(tf.zeros((), tf.int64), "count")

    def note_trace(self, gradients: Sequence[Any], has_loss: bool) -> None:
        """Note what the trace of a step tells.

        Args:
            gradients: Raw, one for each variable, symbolic; None where the loss does not
                depend on it.
            has_loss: Whether the step's own loss is known.
        """
        self.has_loss = has_loss
        self.variables = tuple(
            replace(
                variable,
                connected=gradient is not None,
                # XLA adds up in float32.
                summands_in_bfloat16=summands_in_bfloat16(gradient) if self.can_branch else 0,
            )
            for variable, gradient in zip(self.variables, gradients, strict=True)
        )

    def record(self, measure: Measure) -> None:
        """Record one step, in the graph.

        Args:
            measure: Called with whether it is the step's turn to be recorded in full,
                and to have its activations recorded (boolean scalars); returns the rows
                `norms`, `moments`, `steps` and, where they are wanted, `activations` and
                `histograms`.
        """
        count = tf.convert_to_tensor(self._buffers["count"])
        is_turn = tf.equal(count % self.every_steps, 0)
        index = count // self.every_steps

        def write() -> tf.Tensor:
            rows = measure(
                tf.equal(index % self.moments_every_steps, 0),
                tf.equal(index % max(self.activations_every_steps, 1), 0),
            )
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
        count = int(self._copies("count")[0])
        end = -(-count // self.every_steps)
        indices = np.arange(self._num_read, end)
        if len(indices) > self.window_steps:
            raise ValueError(
                "a train step must apply gradients once to be recorded. Received: "
                f"{len(indices)} records in a window of {self.window_steps} steps"
            )
        self._num_read = end
        rows = indices % self.window_steps
        values = self._copies("steps")[0][rows]
        steps = np.empty(len(indices), STEP_DTYPE)
        steps["step"] = self._first_step + indices * self.every_steps
        for position, name in enumerate(STEP_FIELDS):
            steps[name] = values[:, position]
        activations = (
            combine_replicas(np.stack([copy[rows] for copy in self._copies("activations")]))
            if self.num_layers
            else np.empty((len(indices), 0, len(ACTIVATIONS)), np.float32)
        )
        return RecordedSteps(
            steps,
            self._copies("norms")[0][rows],
            self._copies("moments")[0][rows],
            activations,
            histograms=self._copies("histograms")[0][rows] if self.has_histograms else None,
        )

    def _copies(self, name: str) -> list[np.ndarray]:
        """A buffer's values on each replica; but for activations they are the same."""
        assert self._strategy is not None
        copies = self._strategy.experimental_local_results(self._buffers[name])
        return [tf.convert_to_tensor(copy).numpy() for copy in copies]


def describe(variable: keras.Variable) -> VariableInfo:
    """Return what the log says of a variable; of regularizers it knows L1 and L2."""
    regularizer = variable.regularizer
    l1, l2 = (float(getattr(regularizer, name, 0.0)) for name in ("l1", "l2"))
    shape = tuple(variable.shape)
    # In a replica's first trace there are no values to look at.
    has_values = tf.executing_eagerly() and not (
        tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    )
    alike = has_values and len(shape) > 1 and shape[-1] > 1 and _are_alike(variable.numpy())
    return VariableInfo(variable.path, shape, l1=l1, l2=l2, alike=alike)


def batch_norms_of(model: keras.Model, variables: Sequence[keras.Variable]) -> tuple[int, ...]:
    """Return the indices of those variables that belong to batch normalizations of a model."""
    theirs = {
        id(weight)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        for weight in layer.weights
    }
    return tuple(index for index, each in enumerate(variables) if id(each) in theirs)


def _are_alike(values: np.ndarray) -> bool:
    """Whether all slices along the last axis are equal, and not zero."""
    first = values[..., :1]
    # The second one settles nearly every case.
    if not np.array_equal(first, values[..., 1:2]):
        return False
    return bool((values == first).all() and first.any())


def _replica_local(initial: tf.Tensor, name: str) -> tf.Variable:
    # Each replica writes its own copy: no traffic.
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
