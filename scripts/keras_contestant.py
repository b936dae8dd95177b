"""A contestant that trains with Keras: this project's way, or the stock way.

Started by the benchmarks, not by hand; it reads its spec as `turns.Turns` describes:

    config        of a run, as JSON; its data are replaced by random pixels
    num_images    of the training set
    kind          ours: fused normalization, `training_batches`, the recorder
                  keras: stock BatchNormalization, a stock tf.data pipeline, no recorder
    recorder      null: off; else what differs from the config's `gradients`
    epoch_steps   null: one epoch without end; a number: note the time of each step, too
    profiled_steps  absent, or the first step and the one after the last to profile
"""

from __future__ import annotations

import inspect
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from operator_profile import TensorFlowProfile
from turns import Turns, TurnsOver

from trainer.config import Config
from trainer.quiet import import_tensorflow

import_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from trainer import activations, layers, models, normalization  # noqa: E402
from trainer.callbacks import GradientRecorder  # noqa: E402
from trainer.data.augment import augment_batch  # noqa: E402
from trainer.data.pipeline import steps_per_epoch, training_batches  # noqa: E402
from trainer.data.sources import Split  # noqa: E402
from trainer.runtime import set_up  # noqa: E402
from trainer.train import build_compiled  # noqa: E402

_ENDLESS = 10**9


class TakesTurns(keras.callbacks.Callback):
    """Blocks before a step until it is this contestant's turn."""

    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    # Not `on_train_batch_end`: with it Keras waits for the device at every step.
    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._turns.before_step(lambda: wait_for_device(self.model))


class TimesSteps(keras.callbacks.Callback):
    """Notes the seconds of each step.

    The first step of an epoch begins where the last one of the epoch before ended:
    whatever lies between two epochs counts. Comes first among the callbacks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if batch:
            self._note()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._note()

    def _note(self) -> None:
        wait_for_device(self.model)
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


class ProfilesSteps(keras.callbacks.Callback):
    """Profiles the operators of some steps; comes after `TakesTurns`."""

    def __init__(self, first: int, end: int) -> None:
        super().__init__()
        self._first, self._end = first, end
        self._profile = TensorFlowProfile()
        self.seconds: dict[str, float] = {}

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if batch == self._first:
            wait_for_device(self.model)
            self._profile.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if batch == self._end - 1:
            wait_for_device(self.model)
            self.seconds = self._profile.stop()


def wait_for_device(model: keras.Model) -> None:
    """Read a weight: it is there when the step that changed it is done."""
    keras.ops.convert_to_numpy(model.trainable_variables[0])


def random_split(num_images: int, seed: int) -> Split:
    """Return images of random pixels with random labels."""
    random = np.random.default_rng(seed)
    return Split(
        images=random.integers(0, 256, (num_images, 32, 32, 3), np.uint8),
        labels=random.integers(0, 10, num_images, np.int32),
        class_names=tuple("0123456789"),
        origin="random pixels",
        synthetic=True,
    )


def stock_batches(split: Split, config: Config) -> tf.data.Dataset:
    """Return batches as tf.data's guide would make them, augmented as ours are."""

    def make_batch(step: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]) -> Any:
        images, labels = batch
        return augment_batch(
            images,
            tf.one_hot(labels, split.num_classes),
            indices=tf.range(config.fit.batch_size, dtype=tf.int64),
            epoch=tf.zeros((), tf.int64),
            step=step,
            seed=config.seed,
            augmentations=config.data.augment,
        )

    return (
        tf.data.Dataset.from_tensor_slices((split.images, split.labels))
        .shuffle(10_000)
        .repeat()
        .batch(config.fit.batch_size, drop_remainder=True)
        .enumerate()
        .map(make_batch, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def make_recorder(
    config: Config, directory: Path, images: np.ndarray, changes: dict[str, Any]
) -> GradientRecorder:
    """Return the recorder that a run of this config has, but for the changes."""
    keywords = inspect.signature(GradientRecorder).parameters
    settings = config.gradients.model_dump()
    shipped = {key: value for key, value in settings.items() if key in keywords}
    probe = images[: config.gradients.probe_images] if config.gradients.probe_images else None
    return GradientRecorder(directory, **({**shipped, "probe": probe} | changes))


def use_stock_layers() -> None:
    """Let models be built of Keras' own layers where this project has a faster one."""
    normalization.FusedBatchNormalization = keras.layers.BatchNormalization
    activations.FusedActivation = keras.layers.Activation
    layers.Conv2D = models.Conv2D = keras.layers.Conv2D
    models.L1L2 = keras.regularizers.L1L2


def own_layers(model: keras.Model) -> set[str]:
    """Return the kinds of this project's layers in a model, but for the blocks."""
    kinds = {type(layer) for layer in model._flatten_layers()}
    names = {kind.__name__ for kind in kinds if kind.__module__.startswith("trainer")}
    return names - {"PlainBlock", "ResidualBlock"}


def main() -> None:
    """Build, train in turns, report."""
    turns = Turns()
    spec = turns.spec
    config = Config.model_validate(spec["config"])
    epoch_steps = spec["epoch_steps"]
    runtime = set_up(config.runtime, config.seed)
    split = random_split(spec["num_images"], config.seed)
    if spec["kind"] == "keras":
        use_stock_layers()
        # The default of `compile`.
        runtime = replace(runtime, jit_compile="auto")
    batch_size = config.fit.batch_size
    model = build_compiled(
        config, split, runtime, epoch_steps or steps_per_epoch(split.num_images, batch_size)
    )
    if spec["kind"] == "keras":
        if found := own_layers(model):
            turns.decline(f"a stock network cannot have {', '.join(sorted(found))}")
        batches = stock_batches(split, config)
    else:
        batches = training_batches(
            split.images,
            split.labels,
            split.num_classes,
            batch_size=batch_size,
            seed=config.seed,
            augment=config.data.augment,
            early_crops=config.data.early_crops,
        )

    with tempfile.TemporaryDirectory() as folder:
        recorder, timer = None, TimesSteps() if epoch_steps else None
        if spec["recorder"] is not None:
            recorder = make_recorder(config, Path(folder), split.images, spec["recorder"])
        profiler = ProfilesSteps(*spec["profiled_steps"]) if "profiled_steps" in spec else None
        candidates = (timer, recorder, TakesTurns(turns), profiler)
        callbacks = [each for each in candidates if each is not None]
        turns.ready(
            **{
                "TensorFlow and Keras": f"{tf.__version__} and {keras.__version__}, "
                f"{runtime.devices[0]}, {tf.config.threading.get_intra_op_parallelism_threads()} "
                "threads in the pool that oneDNN uses (0: one a core)",
            }
        )
        with suppress(TurnsOver):
            model.fit(
                batches,
                steps_per_epoch=epoch_steps or _ENDLESS,
                epochs=_ENDLESS,
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )
        results: dict[str, Any] = {}
        if timer is not None:
            results["step_seconds"] = timer.seconds
        if recorder is not None:
            recorder.close()
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            results["log_bytes_per_step"] = size / len(recorder.log().steps)
        if profiler is not None:
            results["operator_seconds"] = profiler.seconds
        turns.leave(**results)


if __name__ == "__main__":
    main()
