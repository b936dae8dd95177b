"""One training run, from a config to a run directory."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import keras

from trainer.callbacks import GradientRecorder
from trainer.checkpoint import restore_latest, save_checkpoint
from trainer.config import Config, dump_config, load_config
from trainer.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from trainer.data.sources import Split, load_split
from trainer.data.splits import split_off_validation
from trainer.errors import ConfigError, InterruptedRun, RunDirectoryError, TrainerError
from trainer.gradient_stats import StepHook
from trainer.models import PixelScaling, build_model
from trainer.optimizers import build_optimizer
from trainer.progress import EpochLines, say
from trainer.run_dir import (
    RunDir,
    read_history,
    write_atomically,
    write_history,
    write_json,
    write_text,
)
from trainer.runtime import Runtime, describe_environment, set_up
from trainer.schedules import build_schedule


def train(config: Config, *, runs_dir: Path, command: Sequence[str]) -> RunDir:
    """Train from a config into a new run directory.

    Args:
        config: The resolved config.
        runs_dir: Where run directories are made.
        command: The command line, for `environment.json`.

    Returns:
        The finished run.

    Raises:
        TrainerError: With the exit code that fits; `status.json` holds the reason.
    """
    runtime = set_up(config.runtime, config.seed)
    say(runtime.line)
    data = _load_data(config)
    run = RunDir.create(runs_dir, config.name)
    say(f"run: {run.path}")
    write_text(run.config, dump_config(config))
    with _status(run):
        _run(config, run, data, runtime, command, is_resumed=False)
    return run


def resume(run: RunDir, *, command: Sequence[str]) -> RunDir:
    """Go on with an interrupted or killed run from its newest checkpoint.

    Raises:
        RunDirectoryError: If the run is done, still runs, or has no checkpoint.
        TrainerError: As `train` does.
    """
    status = run.read_status()
    if status["state"] in ("done", "running"):
        why = "is done" if status["state"] == "done" else f"still runs (pid {status['pid']})"
        raise RunDirectoryError(
            f"{run.path}: only a stopped run can be resumed, and this one {why}"
        )
    config = load_config(run.config)
    runtime = set_up(config.runtime, config.seed)
    say(runtime.line)
    data = _load_data(config)
    say(f"run: {run.path} (resumed)")
    with _status(run):
        _run(config, run, data, runtime, command, is_resumed=True)
    return run


@dataclass(frozen=True)
class _Data:
    train: Split
    validation: Split | None


def _load_data(config: Config) -> _Data:
    split = load_split(config.data, "train", config.seed)
    train_split, validation = split_off_validation(split, config.data.validation_split, config.seed)
    held_out = 0 if validation is None else validation.num_images
    say(
        f"data: {config.data.source}{' (SYNTHETIC, drawn)' if split.synthetic else ''}, "
        f"{train_split.num_images:,} training and {held_out:,} validation images, "
        f"{split.num_classes} classes, from {split.origin}"
    )
    return _Data(train_split, validation)


def _run(
    config: Config,
    run: RunDir,
    data: _Data,
    runtime: Runtime,
    command: Sequence[str],
    is_resumed: bool,
) -> None:
    write_json(run.environment, describe_environment(runtime, command, config.seed))
    _write_data_facts(run, config, data)
    epoch_steps = steps_per_epoch(data.train.num_images, config.fit.batch_size)
    if epoch_steps % config.runtime.steps_per_execution:
        raise ConfigError(
            "runtime.steps_per_execution must divide the steps of an epoch, or the last "
            f"execution would run into the next one. Received: steps_per_execution="
            f"{config.runtime.steps_per_execution}, {epoch_steps} steps an epoch"
        )
    with runtime.scope():
        model = _build_compiled(config, data.train, runtime, epoch_steps)
    num_parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    say(f"model: {num_parameters:,} trainable parameters, {epoch_steps} steps an epoch")

    first_step = 0
    if is_resumed:
        checkpoint, damaged = restore_latest(run.checkpoints, model)
        for problem in damaged:
            say(f"warning: {problem}")
        first_step = checkpoint.step
        say(f"resumed from step {first_step}")
    fitting = _Fitting(config, run, data, model, epoch_steps)
    fitting.fit_from(first_step)
    write_atomically(run.model, model.save)


def _write_data_facts(run: RunDir, config: Config, data: _Data) -> None:
    write_json(
        run.data,
        {
            "source": config.data.source,
            "origin": data.train.origin,
            "synthetic": data.train.synthetic,
            "class_names": list(data.train.class_names),
            "image_shape": list(data.train.image_shape),
            "num_train": data.train.num_images,
            "num_validation": 0 if data.validation is None else data.validation.num_images,
        },
    )


def _build_compiled(
    config: Config, split: Split, runtime: Runtime, epoch_steps: int
) -> keras.Model:
    scaling = PixelScaling.of(split.images, config.data.normalize)
    model = build_model(
        config.model, split.image_shape, split.num_classes, scaling, name="classifier"
    )
    schedule = build_schedule(
        config.schedule,
        config.optimizer.learning_rate,
        steps_per_epoch=epoch_steps,
        total_steps=epoch_steps * config.fit.epochs,
    )
    model.compile(
        optimizer=build_optimizer(config.optimizer, schedule),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=config.fit.label_smoothing
        ),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=runtime.jit_compile,
        steps_per_execution=config.runtime.steps_per_execution,
    )
    # Now, in the strategy's scope: made while the step is traced, its variables would
    # be missing from a checkpoint of the first step.
    model.optimizer.build(model.trainable_variables)
    return model


@dataclass(frozen=True)
class _Fitting:
    """Calls `fit` so that a run can begin at any step and end at any other."""

    config: Config
    run: RunDir
    data: _Data
    model: keras.Model
    epoch_steps: int

    def fit_from(self, first_step: int) -> None:
        """Train from a step, inside an epoch too, to the end of the last epoch."""
        epoch, offset = divmod(first_step, self.epoch_steps)
        rows = read_history(self.run.history)[:epoch]
        if offset:
            # The rest of the interrupted epoch. `fit` ends by putting the average of the
            # weights in their place where one is kept: go back to what trains.
            self._fit(first_step, epoch, epoch + 1, self.epoch_steps - offset, rows)
            epoch += 1
            if epoch < self.config.fit.epochs:
                restore_latest(self.run.checkpoints, self.model)
        if epoch < self.config.fit.epochs:
            first_step = epoch * self.epoch_steps
            self._fit(first_step, epoch, self.config.fit.epochs, self.epoch_steps, rows)

    def _fit(
        self, first_step: int, epoch: int, end_epoch: int, steps: int, rows: list[dict[str, float]]
    ) -> None:
        config, split = self.config, self.data.train
        batches = training_batches(
            split.images,
            split.labels,
            split.num_classes,
            batch_size=config.fit.batch_size,
            seed=config.seed,
            augment=config.data.augment,
            first_step=first_step,
        )
        recorder = self._recorder(first_step)
        bookkeeping = _Bookkeeping(self, first_step, rows)
        lines = EpochLines(config.fit.epochs, config.fit.batch_size)
        hook = StepHook(self.model.optimizer, None)
        if recorder is None and self.model.distribute_strategy.num_replicas_in_sync > 1:
            hook.install()
        try:
            with _signals(bookkeeping.note_signal):
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
                recorder.close()

    def _recorder(self, first_step: int) -> GradientRecorder | None:
        gradients = self.config.gradients
        if not gradients.record:
            return None
        return GradientRecorder(
            self.run.gradients,
            window_steps=gradients.window_steps,
            every_steps=gradients.every_steps,
            moments_every_steps=gradients.moments_every_steps,
            on_error=gradients.on_error,
            first_step=first_step,
            warn=say,
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


class _Bookkeeping(keras.callbacks.Callback):
    """History, checkpoints and the answer to a signal."""

    def __init__(self, fitting: _Fitting, first_step: int, rows: list[dict[str, float]]) -> None:
        super().__init__()
        self._fitting = fitting
        self._step = first_step
        self._rows = rows
        self._signal: int | None = None

    def note_signal(self, number: int) -> None:
        """Remember a signal; the training stops before its next step."""
        self._signal = number

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._signal is not None:
            self._stop()
        self._step += self.model.steps_per_execution

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        fit, run = self._fitting.config.fit, self._fitting.run
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row = {"epoch": epoch, "step": self._step, "learning_rate": rate, **(logs or {})}
        self._rows.append(row)
        write_history(run.history, self._rows)
        is_last = epoch + 1 == fit.epochs
        if is_last or (epoch + 1) % fit.checkpoint_every_epochs == 0:
            save_checkpoint(run.checkpoints, self.model, self._step)
        if self._signal is not None and not is_last:
            self._stop()

    def _stop(self) -> None:
        run = self._fitting.run
        save_checkpoint(run.checkpoints, self.model, self._step)
        assert self._signal is not None
        raise InterruptedRun(
            self._signal,
            f"interrupted by {signal.Signals(self._signal).name} after step {self._step}; "
            f"go on with: trainer train --resume {run.path}",
        )


@contextmanager
def _status(run: RunDir) -> Iterator[None]:
    """Keep `status.json` true whatever ends the run."""
    run.write_status("running")
    started = time.perf_counter()

    def seconds() -> float:
        return round(time.perf_counter() - started, 2)

    try:
        yield
    except InterruptedRun as error:
        run.write_status("interrupted", reason=str(error), seconds=seconds())
        raise
    except TrainerError as error:
        run.write_status("failed", reason=str(error), seconds=seconds())
        raise
    except BaseException as error:
        run.write_status("failed", reason=f"{type(error).__name__}: {error}", seconds=seconds())
        raise
    run.write_status("done", seconds=seconds())


@contextmanager
def _signals(note: Callable[[int], None]) -> Iterator[None]:
    """Pass SIGINT and SIGTERM to `note` once; a second one acts as it always does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, previous[each])
        say(f"{signal.Signals(number).name}: saving a checkpoint (once more to stop at once)")
        note(number)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, previous[number])
