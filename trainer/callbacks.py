"""The host side of the recorder: a Keras callback for any compiled model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import keras
import numpy as np

from trainer.activation_hook import ActivationHook, activation_layers
from trainer.dead_units import DeadUnitProbe
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.judge import Diagnosis, diagnose
from trainer.errors import NonFiniteError
from trainer.gradient_hook import StepHook, clipping_of
from trainer.gradient_log import GradientLog, GradientLogWriter, LogHeader, first_to_last_ratio
from trainer.log_frames import LogWindow
from trainer.non_finite import describe_non_finite
from trainer.recorded_steps import RecordedSteps
from trainer.window_buffer import WindowBuffer, batch_norms_of, describe


class GradientRecorder(keras.callbacks.Callback):
    """Record gradients and activations inside the training step of any compiled Keras model.

    Example:

        recorder = GradientRecorder("gradients")
        model.fit(x, y, epochs=3, callbacks=[recorder])
        print(recorder.log().stat("raw_norm/median"))
        print(recorder.log().activation("zero_fraction/median"))
        print(recorder.diagnose())

    `diagnose` says what is wrong with the training and what may help, for Sequential,
    functional and subclassed models alike, a train step of one's own included. Printed
    it is text for people; `findings`, `exit_code` and `as_json()` are for programs. It
    knows nothing of the data: a model that was trained before, and cannot get better,
    may be said not to learn.

    The weights that `fit` arrives at are bit-identical with and without it, but for
    one deliberate difference: under a strategy with several replicas gradients are
    summed before they are clipped. The model, its optimizer and its saved files hold
    nothing of the recorder.

    A step is one call of the optimizer's `apply`. Where the optimizer accumulates
    gradients that is one micro-batch: raw is its gradient, clipped is what clipping
    would make of it alone, and update is 0 until the accumulated gradients are applied.

    Activations are what chosen layers return in the step's own forward pass. Under a
    strategy their statistics are those of all replicas' images together.

    Args:
        directory: Where the log goes; an existing log there is replaced.
        window_steps: Recorded steps between two visits of the host, and one window of
            the log. At least `steps_per_execution` of the model.
        every_steps: Record every n-th step.
        moments_every_steps: Record mean, deviation, largest magnitude and zeros of every
            n-th recorded step; a step with a non-finite gradient always.
        activations_every_steps: Record activations of every n-th recorded step, and of
            every one with a loss or a gradient that is not finite; 0 is never.
        activation_layers: Names or paths of the layers to record. By default those that
            change values nonlinearly: `activation_hook.activation_layers` has the rule.
        activation_images: Look at the first so many images of each replica's share of
            the batch; None is all, as it is where XLA compiles the step. In a step that
            is not finite, non-finite values are counted over all images.
        probe: Inputs of the model, some dozen images along the first axis: at the end of
            each window the units that are zero for all of them are counted, in a pass of
            their own without training. None is no such pass.
        on_error: `"warn"` says once that a loss or a gradient is not finite;
            `"stop"` raises `NonFiniteError` at the end of that window.
        first_step: Number of the first step, when a training is resumed: the log in
            `directory` is then continued.
        warn: Called with a message for people; prints to standard error by default.
        on_window: Called with the log's header and each window that was written to it;
            may raise to end the training.
        on_recorded: Called before that and before anything is judged, with the steps of the
            window too. With it, the values of gradients are counted at steps that are
            recorded in full: see `RecordedSteps.histograms`.

    Attributes:
        health: First over last kernel's gradient norm, of the last epoch.
        has_warned: Whether it has said that a loss or a gradient is not finite.

    Raises:
        NonFiniteError: From `fit`, if `on_error` is `"stop"`.
    """

    def __init__(
        self,
        directory: str | Path,
        window_steps: int = 50,
        every_steps: int = 1,
        moments_every_steps: int = 10,
        activations_every_steps: int = 10,
        activation_layers: Sequence[str] | None = None,
        activation_images: int | None = 16,
        probe: Any = None,
        on_error: Literal["warn", "stop"] = "warn",
        first_step: int = 0,
        warn: Callable[[str], None] | None = None,
        on_window: Callable[[LogHeader, LogWindow], None] | None = None,
        on_recorded: Callable[[LogHeader, LogWindow, RecordedSteps], None] | None = None,
    ) -> None:
        super().__init__()
        self.directory = Path(directory)
        self.window_steps = window_steps
        self.every_steps = every_steps
        self.moments_every_steps = moments_every_steps
        self.activations_every_steps = activations_every_steps
        self.activation_layers = activation_layers
        self.activation_images = activation_images
        self.probe = probe
        self.on_error = on_error
        self.first_step = first_step
        self.health = float("nan")
        self._warn = warn
        self.on_window = on_window
        self._on_recorded = on_recorded
        self.has_warned = False
        self._pending_steps = 0
        self._hook: StepHook | None = None
        self._buffer: WindowBuffer | None = None
        self._activations: ActivationHook | None = None
        self._probe: DeadUnitProbe | None = None
        self._writer: GradientLogWriter | None = None
        self._epoch_norms: list[np.ndarray] = []

    def log(self) -> GradientLog:
        """Read back what was recorded so far."""
        return GradientLog.read(self.directory)

    def diagnose(self) -> Diagnosis:
        """Judge what was recorded so far, in the middle of a `fit` or after it.

        Returns:
            Its `exit_code` is 0 for a healthy training, 1 with a finding of severity
            error, and 2 if too little was recorded to tell, which `unheard` explains.
        """
        return diagnose(self.evidence())

    def evidence(self, loss_of_knowing_nothing: float | None = None) -> Evidence:
        """Gather what was recorded so far.

        Args:
            loss_of_knowing_nothing: What the best constant answer would lose, if it is known.
        """
        self.flush()
        if self.model is not None and self._writer is None:
            reason = (
                "no step was recorded: a train step must call `apply` or `apply_gradients` of "
                "the optimizer that the model is compiled with"
            )
            return Evidence(None, missing={"log": reason})
        return Evidence.of_log(self.directory, loss_of_knowing_nothing)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        model = self.model
        if model.optimizer is None:
            raise ValueError(
                "the recorder sits between the train step and `model.optimizer`, and this model "
                "has none. Compile it with the optimizer whose gradients are to be recorded"
            )
        execution_steps = model.steps_per_execution
        if self.window_steps * self.every_steps < execution_steps:
            raise ValueError(
                "`window_steps` recorded steps must hold one execution. Received: "
                f"window_steps={self.window_steps}, every_steps={self.every_steps}, "
                f"steps_per_execution={execution_steps}"
            )
        # Left by a `fit` that raised.
        self._uninstall()
        self._pending_steps = 0
        self._activations = self._make_activation_hook()
        self._buffer = WindowBuffer(
            self.window_steps,
            self.every_steps,
            self.moments_every_steps,
            self.activations_every_steps,
            num_layers=0 if self._activations is None else len(self._activations.layers),
            first_step=self.first_step,
            can_branch=not model.jit_compile,
            has_histograms=self._on_recorded is not None,
        )
        self._writer = None
        with model.distribute_strategy.scope():
            # A step that makes variables is traced twice, and under a strategy it can make
            # none. Only a model that comes to be in its first step leaves no choice.
            if model.built and model.trainable_variables:
                self._buffer.build(model.trainable_variables)
                # Loss scaling would make its variables anew.
                if not model.optimizer.built:
                    model.optimizer.build(model.trainable_variables)
        self._hook = StepHook(
            model.optimizer, self._buffer, self._activations, self._images_looked_at()
        )
        self._hook.install()
        self._probe = None
        if self.probe is not None and self._activations is not None:
            self._probe = DeadUnitProbe(model, self._activations, self.probe)
        model.make_train_function(force=True)

    def _make_activation_hook(self) -> ActivationHook | None:
        if not self.activations_every_steps:
            return None
        # Without any such layer too: it notes the order of the weights.
        return ActivationHook(self.model, activation_layers(self.model, self.activation_layers))

    def _images_looked_at(self) -> int | None:
        return None if self.model.jit_compile else self.activation_images

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        # At the begin, not the end: a callback with `on_train_batch_end` makes Keras wait
        # for the device at every step (callback_list.py, _configure_async_dispatch).
        execution_steps = self.model.steps_per_execution
        if self._pending_steps + execution_steps > self.window_steps * self.every_steps:
            self.flush()
        self._pending_steps += execution_steps

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch_norms = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.flush()
        if self._writer is not None and self._epoch_norms:
            norms = np.concatenate(self._epoch_norms)
            self.health = first_to_last_ratio(norms, self._header.kernels)
            if logs is not None:
                logs["first_to_last_grad"] = self.health

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.close()

    def flush(self) -> None:
        """Take what the graph holds to the log; waits for the device."""
        if self._buffer is None:
            return
        self._pending_steps = 0
        recorded = self._buffer.read()
        if not len(recorded):
            return
        if self._probe is not None:
            recorded = replace(recorded, dead_fraction=self._dead_fraction(self._probe))
        if self._writer is None:
            hook = self._activations
            self._header = LogHeader(
                variables=self._buffer.variables,
                clipping=clipping_of(self.model.optimizer),
                every_steps=self.every_steps,
                moments_every_steps=self.moments_every_steps,
                window_steps=self.window_steps,
                num_replicas=self.model.distribute_strategy.num_replicas_in_sync,
                has_loss=self._buffer.has_loss,
                activations=() if hook is None else hook.paths,
                activations_every_steps=self.activations_every_steps,
                activation_images=self._images_looked_at(),
                outputs=() if hook is None else hook.output_paths,
                order=() if hook is None else hook.order_of(self._buffer.weights),
                batch_norms=batch_norms_of(self.model, self._buffer.weights),
                probe_images=0 if self._probe is None else self._probe.num_images,
                frozen=tuple(
                    describe(variable)
                    for variable in self.model.non_trainable_variables
                    if len(variable.shape) > 1
                ),
            )
            self._writer = GradientLogWriter(self.directory, self._header, self.first_step)
        window = LogWindow.of(recorded)
        self._writer.append(window)
        self._epoch_norms.append(recorded.norms[:, :, 0])
        if self._on_recorded is not None:
            self._on_recorded(self._header, window, recorded)
        self._check_finite(recorded)
        if self.on_window is not None:
            self.on_window(self._header, window)

    def _dead_fraction(self, probe: DeadUnitProbe) -> np.ndarray | None:
        """Pass the probe set; if that fails, say so once, and let the training go on."""
        try:
            return probe.dead_fraction()
        # The model may raise anything, or the device be out of memory.
        except Exception as error:
            self._probe = None
            self._say(
                "warning: dead units are no longer counted, for the probe set cannot pass "
                f"through the model ({type(error).__name__}: {shorten(str(error), 200)})"
            )
            return None

    def _say(self, message: str) -> None:
        warn = self._warn or (lambda text: print(text, file=sys.stderr))
        warn(message)

    def close(self) -> None:
        """Flush, and leave the model as it was; harmless when called again.

        `fit` calls it. Call it yourself after a `fit` that raised.
        """
        try:
            self.flush()
        finally:
            self._uninstall()

    def _uninstall(self) -> None:
        self._buffer = None
        self._activations = None
        self._probe = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            # The traced function still holds the hook: the next fit must trace its own.
            self.model.train_function = None

    def _check_finite(self, window: RecordedSteps) -> None:
        message = describe_non_finite(window, self._header)
        if message is None:
            return
        if self.on_error == "stop":
            self._uninstall()
            raise NonFiniteError(message)
        if not self.has_warned:
            self.has_warned = True
            self._say(f"warning: {message}")
