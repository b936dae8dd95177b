"""One training run, from a config to a run directory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import keras

from trainer.checkpoint import list_checkpoints, restore_latest
from trainer.config import Config, dump_config, load_config
from trainer.config.checks import uses_up
from trainer.config.model_schema import WhiteningStem
from trainer.data.pipeline import steps_per_epoch
from trainer.data.sources import Split
from trainer.data.splits import TrainingData, load_training_data
from trainer.errors import (
    ConfigError,
    InterruptedRun,
    RunDirectoryError,
    StoppedEarly,
    TrainerError,
)
from trainer.event_files import require_tensorboard
from trainer.fitting import Fitting, Supervision
from trainer.locks import HeldError, NoLocksError, locked
from trainer.models import build_model
from trainer.optimizers import build_optimizer
from trainer.pixels import PixelScaling, whitening_kernel
from trainer.run_data import keep_data_facts
from trainer.run_dir import (
    RunDir,
    State,
    read_json,
    write_atomically,
    write_json,
    write_text,
)
from trainer.runtime import Runtime, describe_environment, set_up
from trainer.schedules import build_schedule
from trainer.terminal import say

# Whoever reads the state of a run has its lock for an instant.
_PATIENCE_SECONDS = 1.0


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
    runtime = _set_up(config)
    data = load_training_data(config)
    _say_what_it_is(config, data)
    run = RunDir.create(runs_dir, config.name)
    say(f"run: {run.path}")
    with _alone(run), _status(run):
        write_text(run.config, dump_config(config))
        _run(config, run, data, runtime, command, is_resumed=False)
    return run


def train_under(
    supervision: Supervision,
    run: RunDir,
    config: Config,
    data: TrainingData,
    *,
    command: Sequence[str],
) -> None:
    """Train in a directory that is there, from its newest checkpoint if it has one.

    Args:
        supervision: Says how far, and may end the training by what it raises.
        run: Whose directory exists.
        config: The resolved config, which is written into it.
        data: What `load_training_data` returns for this config.
        command: The command line, for `environment.json`.

    Raises:
        TrainerError: As `train` does.
    """
    runtime = _set_up(config)
    _say_what_it_is(config, data)
    write_text(run.config, dump_config(config))
    is_resumed = bool(list_checkpoints(run.checkpoints))
    with _status(run):
        _run(config, run, data, runtime, command, is_resumed, supervision)


def resume(run: RunDir, *, command: Sequence[str]) -> RunDir:
    """Go on with an interrupted or killed run from its newest checkpoint.

    Raises:
        RunDirectoryError: If the run is done, still runs, or has no checkpoint.
        TrainerError: As `train` does.
    """
    status = run.read_status()
    if status["state"] == "running":
        where = f"pid {status['pid']} on {status.get('host', 'this machine')}"
        raise RunDirectoryError(
            f"{run.path}: only a stopped run can be resumed, and this one still runs ({where})"
        )
    with _alone(run):
        # Whoever had it until now may have ended it.
        if read_json(run.status)["state"] == "done":
            raise RunDirectoryError(
                f"{run.path}: only a stopped run can be resumed, and this one is done"
            )
        config = load_config(run.config)
        runtime = _set_up(config)
        data = load_training_data(config)
        _say_what_it_is(config, data)
        say(f"run: {run.path} (resumed)")
        with _status(run):
            _run(config, run, data, runtime, command, is_resumed=True)
    return run


def _set_up(config: Config) -> Runtime:
    """Find before anything is written what a training would fail of."""
    if config.fit.tensorboard:
        require_tensorboard()
    runtime = set_up(config.runtime, config.seed)
    say(runtime.line)
    return runtime


def _say_what_it_is(config: Config, data: TrainingData) -> None:
    train, wrong = data.train, data.num_wrong_labels
    held_out = 0 if data.validation is None else data.validation.num_images
    noise = f" ({wrong:,} of them labelled wrongly on purpose)" if wrong else ""
    say(
        f"data: {config.data.source}{' (SYNTHETIC, drawn)' if train.synthetic else ''}, "
        f"{train.num_images:,} training{noise} and {held_out:,} validation images, "
        f"{train.num_classes} classes, from {train.origin}"
    )


def _run(
    config: Config,
    run: RunDir,
    data: TrainingData,
    runtime: Runtime,
    command: Sequence[str],
    is_resumed: bool,
    supervision: Supervision | None = None,
) -> None:
    epoch_steps = steps_per_epoch(data.train.num_images, config.fit.batch_size)
    keep_data_facts(run, config, data, epoch_steps, is_resumed)
    _check(config, data, runtime, epoch_steps)
    write_json(run.environment, describe_environment(runtime, command, config.seed))
    with runtime.scope():
        model = build_compiled(config, data.train, runtime, epoch_steps)
    num_parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    say(f"model: {num_parameters:,} trainable parameters, {epoch_steps} steps an epoch")

    first_step = 0
    if is_resumed:
        checkpoint, damaged = restore_latest(run.checkpoints, model)
        for problem in damaged:
            say(f"warning: {problem}")
        first_step = checkpoint.step
        say(f"resumed from step {first_step}")
    fitting = Fitting(config, run, data, model, epoch_steps, supervision)
    fitting.fit_from(first_step)
    # As `fit` does at its end, and again where there was no step left to take: what a
    # checkpoint restores are the weights that train, and not their average.
    model.optimizer.finalize_variable_values(model.trainable_variables)
    write_atomically(run.model, model.save)


def _check(config: Config, data: TrainingData, runtime: Runtime, epoch_steps: int) -> None:
    """Find what only the data and the devices tell, before a step is taken."""
    batch_size, replicas = config.fit.batch_size, runtime.num_replicas
    if epoch_steps % config.runtime.steps_per_execution:
        raise ConfigError(
            "runtime.steps_per_execution must divide the steps of an epoch, or the last "
            f"execution would run into the next one. Received: steps_per_execution="
            f"{config.runtime.steps_per_execution}, {epoch_steps} steps an epoch"
        )
    if batch_size % replicas:
        raise ConfigError(
            "fit.batch_size must be a multiple of the number of devices, or images of one count "
            f"more than those of another. Received: {batch_size} over {replicas} devices"
        )
    side = min(data.train.image_shape[:2])
    if uses_up(config.model, side):
        raise ConfigError(
            "model.stages: stem and stages together must not down-sample by more than the image "
            f"has pixels. Received: {config.model.total_strides} of {side} pixels"
        )


def build_compiled(config: Config, split: Split, runtime: Runtime, epoch_steps: int) -> keras.Model:
    """Build and compile the model of a config; call it in the strategy's scope.

    Args:
        config: Of the run.
        split: The training images, whose statistics go into the model.
        runtime: What `runtime.set_up` decided.
        epoch_steps: Steps of an epoch, which the schedule counts in.
    """
    scaling = PixelScaling.of(split.images, config.data.normalize)
    stem, stem_kernel = config.model.stem, None
    if isinstance(stem, WhiteningStem):
        stem_kernel = whitening_kernel(split.images, scaling, stem.kernel_size, stem.epsilon)
    image_shape: tuple[int | None, int | None, int] = split.image_shape
    if config.data.early_crops is not None:
        image_shape = (None, None, split.image_shape[-1])
    model = build_model(
        config.model, image_shape, split.num_classes, scaling, stem_kernel=stem_kernel
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


@contextmanager
def _alone(run: RunDir) -> Iterator[None]:
    """Keep others from training in a run's directory, where the file system has locks."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(run.path, _PATIENCE_SECONDS))
        except HeldError as held:
            raise RunDirectoryError(
                f"{run.path}: this run is being trained by another process (pid {held.holder}). "
                "Wait for it, or stop it"
            ) from None
        except NoLocksError as error:
            say(f"warning: {error}; see to it that no other process trains in this run")
        yield


@contextmanager
def _status(run: RunDir) -> Iterator[None]:
    """Keep `status.json` true whatever ends the run."""
    run.write_status("running")
    started = time.perf_counter()

    def seconds() -> float:
        return round(time.perf_counter() - started, 2)

    def end(state: State, reason: str) -> None:
        # On a full disk it is the error itself that has to be told.
        with suppress(RunDirectoryError):
            run.write_status(state, reason=reason, seconds=seconds())

    try:
        yield
    except (InterruptedRun, StoppedEarly, KeyboardInterrupt) as error:
        saved = [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints)]
        where = f"the newest checkpoint is of step {saved[-1]}" if saved else "no checkpoint yet"
        end("interrupted", str(error) or f"interrupted; {where}")
        raise
    except TrainerError as error:
        end("failed", str(error))
        raise
    except BaseException as error:
        end("failed", f"{type(error).__name__}: {error}")
        raise
    run.write_status("done", seconds=seconds())
