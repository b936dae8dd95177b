"""TensorBoard's event files say what the history and the gradient log say."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import write_tiny_config

from trainer import event_files
from trainer.callbacks import GradientRecorder
from trainer.config import load_config
from trainer.errors import (
    InterruptedRun,
    MissingDependencyError,
    NonFiniteError,
    RunDirectoryError,
)
from trainer.event_files import EventFiles
from trainer.gradient_log import GradientLog, LogHeader
from trainer.gradient_stats import Rows, histograms
from trainer.log_frames import LogWindow
from trainer.recorded_steps import HISTOGRAM_BOUNDS, RecordedSteps
from trainer.run_dir import RunDir, read_history
from trainer.train import resume, train

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def read(folder: Path) -> Any:
    """As TensorBoard does, everything that it has not forgotten."""
    kept = {accumulators.SCALARS: 0, accumulators.HISTOGRAMS: 0}
    events = accumulators.EventAccumulator(str(folder), kept)
    events.Reload()
    return events


def scalars(events: Any, tag: str) -> dict[int, float]:
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
            # At the last step of the epoch.
            expected = {int(row["step"]) - 1: row[prefix + key] for row in rows}
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
    told: list[RecordedSteps] = []

    def keep(header: LogHeader, window: LogWindow, recorded: RecordedSteps) -> None:
        told.append(recorded)

    recorder = GradientRecorder(tmp_path / "log", on_recorded=keep)
    model.fit(x, y, batch_size=16, epochs=1, verbose=0, callbacks=[recorder])

    [recorded] = told
    assert recorded.histograms is not None
    [counts] = recorded.histograms
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


def test_powers_of_two_are_in_the_bin_that_is_farther_from_zero() -> None:
    powers = 2.0 ** np.arange(-42, 21)

    counts = histograms(Rows([tf.constant([*powers, *-powers], tf.float32)])).numpy()[0]

    middle = len(counts) // 2
    assert counts[middle] == 0
    assert set(counts[middle + 1 :]) == set(counts[:middle]) == {1.0}


def test_a_bin_counts_on_where_float32_would_not() -> None:
    many = 2**24 + 8

    counts = histograms(Rows([tf.zeros([many])])).numpy()[0]

    assert counts.max() == many


def test_a_training_that_is_gone_on_with_leaves_one_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        write_tiny_config(tmp_path), ["fit.tensorboard=true", "gradients.window_steps=3"]
    )
    seen = 0
    write = EventFiles.add_window

    def interrupt(self: EventFiles, *window: Any) -> None:
        nonlocal seen
        seen += 1
        write(self, *window)
        if seen == 4:  # within the second epoch
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EventFiles, "add_window", interrupt)
    with pytest.raises(InterruptedRun):
        train(config, runs_dir=tmp_path / "runs", command=["trainer", "train"])
    run = RunDir.open(next((tmp_path / "runs").iterdir()))
    resume(run, command=["trainer", "train"])

    events = read(run.tensorboard / "train")
    rows = read_history(run.history)
    assert [each.step for each in events.Scalars("epoch/loss")] == [8, 17, 26]
    assert [each.value for each in events.Scalars("epoch/loss")] == pytest.approx(
        [row["loss"] for row in rows], rel=1e-6
    )
    assert [each.step for each in events.Scalars("step/loss")] == list(range(27))


def test_going_back_to_the_first_step_forgets_everything(tmp_path: Path) -> None:
    for loss in (3.0, 1.0):
        events = EventFiles(tmp_path)
        events.add_epoch({"step": 9, "loss": loss})
        events.close()

    assert [each.value for each in read(tmp_path / "train").Scalars("epoch/loss")] == [1.0]


def test_the_window_in_which_a_training_dies_is_there(tmp_path: Path) -> None:
    config = load_config(
        write_tiny_config(tmp_path),
        [
            "fit.tensorboard=true",
            "gradients.on_error=stop",
            "model.block={normalization: none, dropout: 0}",
            "optimizer={kind: sgd, learning_rate: 1.0e+30}",
            "schedule={kind: constant}",
        ],
    )

    with pytest.raises(NonFiniteError):
        train(config, runs_dir=tmp_path / "runs", command=["trainer", "train"])

    [path] = (tmp_path / "runs").iterdir()
    assert 0 in scalars(read(path / "tensorboard" / "train"), "step/loss")


def test_without_validation_there_is_no_run_of_it(tmp_path: Path) -> None:
    events = EventFiles(tmp_path)
    events.add_epoch({"step": 9, "loss": 1.0})
    events.close()

    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    events = EventFiles(tmp_path / "taken")

    with pytest.raises(RunDirectoryError, match=r"taken: event files cannot be written .*Make ro"):
        events.add_epoch({"step": 9, "loss": 1.0})


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
