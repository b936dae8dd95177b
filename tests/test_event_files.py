"""TensorBoard's event files say what the history and the gradient log say."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import (
    HISTOGRAMS,
    SCALARS,
    EventAccumulator,
)
from tiny import write_tiny_config

from trainer import event_files
from trainer.callbacks import GradientRecorder
from trainer.config import load_config
from trainer.errors import MissingDependencyError
from trainer.event_files import EventFiles
from trainer.gradient_log import GradientLog, LogHeader
from trainer.gradient_stats import Rows, histograms
from trainer.recorded_steps import HISTOGRAM_BOUNDS
from trainer.run_dir import RunDir, read_history
from trainer.train import train


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), {SCALARS: 0, HISTOGRAMS: 0})
    events.Reload()
    return events


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {each.step: each.value for each in events.Scalars(tag)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("events")
    config = load_config(write_tiny_config(folder), ["fit.tensorboard=true"])
    return train(config, runs_dir=folder / "runs", command=["trainer", "train"])


def test_epochs_are_those_of_the_history(run: RunDir) -> None:
    rows = read_history(run.history)
    for folder, prefix in (("train", ""), ("validation", "val_")):
        events = read(run.tensorboard / folder)
        for key in ("loss", "accuracy"):
            expected = {int(row["step"]): row[prefix + key] for row in rows}
            assert scalars(events, f"epoch/{key}") == pytest.approx(expected, rel=1e-6)


def test_steps_and_windows_are_those_of_the_gradient_log(run: RunDir) -> None:
    log, events = GradientLog.read(run.gradients), read(run.tensorboard / "train")

    for key in ("loss", "learning_rate", "raw_norm", "clipped_norm"):
        expected = {int(each["step"]): float(each[key]) for each in log.steps}
        assert scalars(events, f"step/{key}") == pytest.approx(expected, rel=1e-6)
    medians = log.stat("raw_norm/median")
    for index, path in enumerate(log.header.paths):
        found = scalars(events, f"gradient_norm/{path}")
        assert list(found) == [int(last) for last in log.window_steps[:, 1]]
        assert list(found.values()) == pytest.approx(medians[:, index].tolist(), rel=1e-6)


def test_histograms_count_every_value_of_every_gradient(run: RunDir) -> None:
    log, events = GradientLog.read(run.gradients), read(run.tensorboard / "train")

    for variable in log.header.variables:
        found = events.Histograms(f"gradient/{variable.path}")
        # Every tenth step is recorded in full.
        assert [each.step for each in found] == [0, 10, 20]
        for each in found:
            assert each.histogram_value.num == np.prod(variable.shape)


@pytest.mark.parametrize("jit", [False, True])
def test_a_histogram_is_that_of_the_gradient_of_its_step(tmp_path: Path, jit: bool) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    y = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit)
    model.build(x.shape)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    grads = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    told: list[tuple[int, np.ndarray]] = []

    def keep(header: LogHeader, step: int, counts: np.ndarray) -> None:
        told.append((step, counts))

    recorder = GradientRecorder(tmp_path / "log", on_histograms=keep)
    model.fit(x, y, batch_size=16, epochs=1, verbose=0, callbacks=[recorder])

    [(step, counts)] = told
    assert step == 0
    expected = [np.histogram(grad.numpy(), HISTOGRAM_BOUNDS)[0] for grad in grads]
    np.testing.assert_array_equal(counts, expected)


def test_bins_hold_every_finite_value_of_any_size() -> None:
    generator = np.random.default_rng(0)
    magnitudes = 10.0 ** generator.uniform(-30, 30, (3, 4, 5000))
    values = (magnitudes * generator.choice([-1, 1], magnitudes.shape)).astype(np.float32)
    values[0, 0, :7] = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40]

    counts = histograms(Rows([tf.constant(each) for each in values])).numpy()

    inside = np.clip(values.astype(np.float64), 0.999 * HISTOGRAM_BOUNDS[0], 2.0**20.9)
    for row, each in zip(counts, np.where(np.isfinite(values), inside, np.nan), strict=True):
        finite = each[~np.isnan(each)]
        np.testing.assert_array_equal(row, np.histogram(finite, HISTOGRAM_BOUNDS)[0])


def test_a_training_that_is_gone_on_with_replaces_what_it_trains_again(tmp_path: Path) -> None:
    for first_step, loss in ((0, 2.0), (4, 1.0)):
        events = EventFiles(tmp_path, first_step)
        for step in range(first_step, 6, 2):
            events.add_epoch({"step": step, "loss": loss})
        events.close()

    assert scalars(read(tmp_path / "train"), "epoch/loss") == {0: 2.0, 2: 2.0, 4: 1.0}


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    events = EventFiles(tmp_path)
    events.add_epoch({"step": 1, "loss": float("nan"), "accuracy": 0.5})
    events.close()

    assert read(tmp_path / "train").Tags()["scalars"] == ["epoch/accuracy"]


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        event_files, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name)
    )
    config = load_config(write_tiny_config(tmp_path), ["fit.tensorboard=true"])

    with pytest.raises(MissingDependencyError, match=r"scripts/setup_env\.sh tensorboard"):
        train(config, runs_dir=tmp_path / "runs", command=["trainer", "train"])

    assert not (tmp_path / "runs").exists()
