"""Run `fit` so that a training can stop at any step and go on from it.

Keras' `fit` begins at an epoch. Here a first, shorter call finishes an epoch that was
interrupted, a second one trains the rest, and a signal ends either between two steps,
after a checkpoint.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import keras

from trainer.callbacks import GradientRecorder
from trainer.checkpoint import restore_latest, save_checkpoint
from trainer.config import Config
from trainer.data.pipeline import evaluation_batches, training_batches
from trainer.data.splits import TrainingData
from trainer.diagnosis import Finding
from trainer.errors import InterruptedRun, NonFiniteError, StoppedEarly, UnhealthyError
from trainer.event_files import EventFiles
from trainer.gradient_hook import StepHook
from trainer.live import LiveDiagnosis
from trainer.progress import EpochLines
from trainer.recovery import Recovery
from trainer.run_dir import RunDir, read_history, write_history
from trainer.terminal import say

# Two signals within so short a time are one request.
_SAME_SECONDS = 1.5


@dataclass(frozen=True)
class Supervision:
    """Whoever runs many trainings looks after each; one that is not finite stops in any case.

    Attributes:
        end_epoch: Up to which one it trains; the schedule is that of all `fit.epochs`.
        on_epoch_end: Gets the rows of the history after each epoch; what it raises ends the
            training, and `StoppedEarly` does so with a checkpoint.
        on_finding: Gets what the live diagnosis finds; what it raises ends the training as it is,
            for no one goes on from there.
    """

    end_epoch: int
    on_epoch_end: Callable[[Sequence[dict[str, float]]], None]
    on_finding: Callable[[Finding], None]


@dataclass(frozen=True)
class Fitting:
    """One compiled model and what it is trained on.

    Attributes:
        config: Of the run.
        run: Where history, gradient log and checkpoints go.
        data: Training and validation images.
        model: Compiled, and its optimizer built.
        epoch_steps: Steps of an epoch.
        supervision: None for a training that nobody looks after.
    """

    config: Config
    run: RunDir
    data: TrainingData
    model: keras.Model
    epoch_steps: int
    supervision: Supervision | None = None

    @property
    def end_epoch(self) -> int:
        """Up to which epoch this one trains."""
        return self.config.fit.epochs if self.supervision is None else self.supervision.end_epoch

    def fit_from(self, first_step: int) -> None:
        """Train from a step, inside an epoch too, to the end of the last epoch.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite, and the config says so.
            UnhealthyError: If the live diagnosis finds an error, and the config says so.
            InterruptedRun: After a signal; a checkpoint was saved.
        """
        recovery = Recovery(self.config, self.run, self.model, self.epoch_steps, first_step)
        gradients = self.config.gradients
        live = None
        if gradients.record and gradients.live:
            on_finding = None if self.supervision is None else self.supervision.on_finding
            live = LiveDiagnosis(self.run, self.config, say, on_finding)
            if first_step:
                live.recall(first_step)
        with _signals() as interruption:
            while True:
                watch = Watch([], live, recovery, interruption)
                try:
                    self._fit_from(first_step, watch)
                    break
                except (NonFiniteError, UnhealthyError) as error:
                    first_step = recovery.go_back(error)
        if interruption.signal is not None and self.supervision is not None:
            # It came too late for this training, but whoever runs many shall stop.
            number = interruption.signal
            raise InterruptedRun(number, f"interrupted by {signal.Signals(number).name}")

    def _fit_from(self, first_step: int, watch: Watch) -> None:
        epoch, offset = divmod(first_step, self.epoch_steps)
        watch.rows.extend(read_history(self.run.history)[:epoch])
        if watch.live is not None:
            watch.live.go_back(first_step, watch.rows)
        if offset:
            # The rest of the interrupted epoch. `fit` ends by putting the average of the
            # weights in their place where one is kept: go back to what trains.
            self._fit(first_step, epoch, epoch + 1, self.epoch_steps - offset, watch)
            epoch += 1
            if epoch < self.end_epoch:
                restore_latest(self.run.checkpoints, self.model)
        if epoch < self.end_epoch:
            first_step = epoch * self.epoch_steps
            self._fit(first_step, epoch, self.end_epoch, self.epoch_steps, watch)

    def _fit(self, first_step: int, epoch: int, end_epoch: int, steps: int, watch: Watch) -> None:
        config, split = self.config, self.data.train
        batches = training_batches(
            split.images,
            split.labels,
            split.num_classes,
            batch_size=config.fit.batch_size,
            seed=config.seed,
            augment=config.data.augment,
            early_crops=config.data.early_crops,
            first_step=first_step,
        )
        events = EventFiles(self.run.tensorboard, first_step) if config.fit.tensorboard else None
        recorder = self._recorder(first_step, watch.live, events)
        bookkeeping = Bookkeeping(self, first_step, end_epoch, watch, recorder, events)
        lines = EpochLines(
            config.fit.epochs,
            config.fit.batch_size,
            self.epoch_steps,
            self.end_epoch,
            health=lambda: _health(watch.live, recorder),
        )
        hook = StepHook(self.model.optimizer, None)
        if recorder is None and self.model.distribute_strategy.num_replicas_in_sync > 1:
            hook.install()
        try:
            self.model.fit(
                batches,
                steps_per_epoch=steps,
                initial_epoch=epoch,
                epochs=end_epoch,
                validation_data=self._validation_batches(),
                callbacks=[c for c in (recorder, lines, bookkeeping) if c is not None],
                shuffle=False,
                verbose=0,
            )
        finally:
            lines.close()
            hook.remove()
            if recorder is not None:
                recorder.on_error = "warn"
                recorder.on_window = None
                recorder.close()
            if events is not None:
                events.close()

    def _recorder(
        self, first_step: int, live: LiveDiagnosis | None, events: EventFiles | None
    ) -> GradientRecorder | None:
        gradients = self.config.gradients
        if not gradients.record:
            return None
        return GradientRecorder(
            self.run.gradients,
            window_steps=gradients.window_steps,
            every_steps=gradients.every_steps,
            moments_every_steps=gradients.moments_every_steps,
            activations_every_steps=gradients.activations_every_steps,
            probe=self.data.train.images[: gradients.probe_images]
            if gradients.probe_images
            else None,
            on_error="warn" if gradients.on_error == "warn" and not self.supervision else "stop",
            first_step=first_step,
            warn=say,
            on_window=None if live is None else live.look,
            on_recorded=None if events is None else events.add_window,
        )

    def _validation_batches(self) -> Any:
        split = self.data.validation
        if split is None:
            return None
        return evaluation_batches(
            split.images,
            split.labels,
            split.num_classes,
            batch_size=self.config.fit.batch_size,
            num_replicas=self.model.distribute_strategy.num_replicas_in_sync,
        )


def _health(live: LiveDiagnosis | None, recorder: GradientRecorder | None) -> str:
    """What is known of the gradients, in a word or two; empty for nothing."""
    known = "" if live is None else live.summary
    # It looks at some windows together; that a step was not finite is known at once.
    return known or ("nonfinite" if recorder is not None and recorder.has_warned else "")


@dataclass
class Interruption:
    """A signal that asks to stop.

    Attributes:
        signal: Its number, None as long as there is none.
    """

    signal: int | None = None


@dataclass(frozen=True)
class Watch:
    """What the callbacks of one or two calls of `fit` share.

    Attributes:
        rows: Of the history, one an epoch; they go on appending.
        live: The diagnosis that goes along, or None.
        recovery: Is told which checkpoints are healthy.
        interruption: Outlives a recovery: a training that goes back stops all the same.
    """

    rows: list[dict[str, float]]
    live: LiveDiagnosis | None
    recovery: Recovery
    interruption: Interruption


class Bookkeeping(keras.callbacks.Callback):
    """History, checkpoints and the answer to a signal."""

    def __init__(
        self,
        fitting: Fitting,
        first_step: int,
        end_epoch: int,
        watch: Watch,
        recorder: GradientRecorder | None,
        events: EventFiles | None,
    ) -> None:
        super().__init__()
        self._fitting = fitting
        self._step = first_step
        self._end_epoch = end_epoch
        self._watch = watch
        self._recorder = recorder
        self._events = events

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._watch.interruption.signal is not None:
            self._stop(self._watch.interruption.signal)
        self._step += self.model.steps_per_execution

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        fit, run = self._fitting.config.fit, self._fitting.run
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {"epoch": epoch, "step": self._step, "learning_rate": rate, **(logs or {})}
        self._watch.rows.append(row)
        write_history(run.history, self._watch.rows)
        if self._events is not None:
            self._events.add_epoch(row)
        # At the end of `fit` too: it is from there that the next call of it goes on.
        is_due = (epoch + 1) % fit.checkpoint_every_epochs == 0
        if is_due or epoch + 1 == self._end_epoch:
            self._save()
        number = self._watch.interruption.signal
        if number is not None and epoch + 1 < self._fitting.end_epoch:
            self._stop(number)
        if self._fitting.supervision is not None:
            try:
                self._fitting.supervision.on_epoch_end(self._watch.rows)
            except StoppedEarly:
                if not is_due:
                    self._save()
                raise

    def _save(self) -> None:
        recovery, live = self._watch.recovery, self._watch.live
        save_checkpoint(
            self._fitting.run.checkpoints, self.model, self._step, recovery.healthy_step
        )
        if recovery.healthy_step is not None and (live is None or live.is_healthy):
            recovery.healthy_step = self._step

    def _stop(self, number: int) -> None:
        run = self._fitting.run
        if self._recorder is not None:
            # May raise: what is not finite must not become what a resumed run begins with.
            self._recorder.flush()
        self._save()
        raise InterruptedRun(
            number,
            f"interrupted by {signal.Signals(number).name} after step {self._step}; "
            f"go on with: trainer train --resume {run.path}",
        )


@contextmanager
def _signals() -> Iterator[Interruption]:
    """Note a SIGINT or SIGTERM; a second one acts as it always does.

    Unless it comes at once: a supervisor that ends a group of processes sends one to each,
    and the first of them sends one to the others too.
    """
    interruption = Interruption()
    noted = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if interruption.signal is not None:
            if time.monotonic() - noted > _SAME_SECONDS:
                for each in numbers:
                    signal.signal(each, previous[each])
                signal.raise_signal(number)
            return
        interruption.signal = number
        noted = time.monotonic()
        say(f"{signal.Signals(number).name}: saving a checkpoint (once more to stop at once)")

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield interruption
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
