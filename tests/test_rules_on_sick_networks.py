"""The rules whose illness needs a training of its own, each through the real recorder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from test_diagnosis import blobs, diagnosed, finding, sgd, stack, trained
from tiny import run_trainer, write_tiny_config

from trainer.callbacks import GradientRecorder
from trainer.config import load_config
from trainer.config.schema import DataConfig
from trainer.data import sources
from trainer.data.sources import Split
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.judge import Diagnosis, diagnose
from trainer.gradient_log import GradientLog, LogHeader
from trainer.log_frames import LogWindow
from trainer.run_dir import RunDir, read_history


def watched(
    model: keras.Model, folder: Path, labels: np.ndarray, *, epochs: int, window_steps: int = 10
) -> Diagnosis:
    """Train a compiled model on blobs with labels of its own, and diagnose it."""
    recorder = GradientRecorder(folder, window_steps=window_steps, warn=lambda text: None)
    model.fit(blobs()[0], labels, batch_size=20, epochs=epochs, verbose=0, callbacks=[recorder])
    return diagnose(Evidence.of_log(folder))


def test_gradients_that_grow_towards_the_first_layer_explode(tmp_path: Path) -> None:
    # Inputs shrink with depth as fast as gradients grow: kernels have alike gradients.
    initializer = keras.initializers.RandomNormal(stddev=0.7, seed=0)
    diagnosis = diagnosed(stack("relu", initializer), keras.optimizers.Adam(1e-6), tmp_path)
    found = finding(diagnosis, "exploding")
    assert found.severity == "error"
    norms = Evidence.of_log(tmp_path).gradients.stat("raw_norm/median")[1:]
    kernels, biases = norms[:, ::2], norms[:, 1::2]
    assert np.median(np.median(kernels[:, :3], axis=1) / kernels[:, -1]) < 70
    expected = np.median(np.median(biases[:, :3], axis=1) / biases[:, -1])
    assert found.numbers["ratio"] == pytest.approx(expected, rel=1e-5)


def test_gradients_that_burst_are_found(tmp_path: Path) -> None:
    model = stack("relu", "he_normal", layers=2)
    model.compile(sgd(1e-9), "mse")
    targets = np.ones((400, 4), np.float32)
    # In a batch of twenty, one in thirteen batches has a target far off.
    targets[::260] = 1e4
    diagnosis = watched(model, tmp_path, targets, epochs=10)
    assert "burst" in finding(diagnosis, "exploding").message


def test_a_loss_scale_that_keeps_overflowing_is_found(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = stack("relu", "he_normal", layers=2)
    finally:
        keras.config.set_dtype_policy("float32")
    scaled = keras.optimizers.LossScaleOptimizer(
        sgd(1e-3), initial_scale=2.0**20, dynamic_growth_steps=2
    )
    diagnosis = diagnosed(model, scaled, tmp_path)
    steps = Evidence.of_log(tmp_path).gradients.steps
    expected = np.mean(steps["skipped"][len(steps) // 10 :])
    assert finding(diagnosis, "overflow").numbers["skipped_share"] == pytest.approx(expected)


def test_a_loss_that_rises_and_stays_up_diverges(tmp_path: Path) -> None:
    model = stack("relu", "he_normal", layers=3)
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([30], [0.02, 10.0])
    found = finding(diagnosed(model, keras.optimizers.SGD(rate), tmp_path), "diverging")
    assert found.severity == "error"
    # It is from its best window on that it goes wrong.
    assert found.steps[0] <= 40


def test_a_loss_that_stands_still_half_way_is_a_plateau(tmp_path: Path) -> None:
    small = keras.initializers.RandomNormal(stddev=0.05, seed=0)
    model = stack("linear", small, layers=1)
    model.compile(sgd(0.03), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    random = np.random.default_rng(0)
    # Half of the labels mean nothing: there is a floor far above zero.
    labels = np.where(random.random(400) < 0.6, random.integers(0, 4, 400), blobs()[1])
    diagnosis = watched(model, tmp_path, labels, epochs=24, window_steps=20)
    found = finding(diagnosis, "plateau")
    assert (found.severity, "stands still" in found.message) == ("warning", True)


def test_a_loss_that_swings_oscillates(tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8), keras.layers.Dense(4)])
    model.compile(sgd(2e-3, momentum=0.997), "mse")
    targets = np.eye(4, dtype=np.float32)[blobs()[1]]
    diagnosis = watched(model, tmp_path, targets, epochs=20, window_steps=10)
    assert finding(diagnosis, "oscillation").numbers["swinging_share"] >= 0.2


def test_frozen_kernels_are_named(tmp_path: Path) -> None:
    model = stack("relu", "he_normal", layers=3)
    model.get_layer("dense1").trainable = False
    found = finding(diagnosed(model, sgd(), tmp_path), "frozen")
    assert found.severity == "warning"
    assert [path.split("/")[-2] for path in found.layers] == ["dense1"]
    assert found.numbers["frozen_share"] == pytest.approx(256 / (3 * 256 + 64))


def test_validation_that_gets_worse_is_overfitting(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        [
            "data={source: shapes, train_size: 100, test_size: 20, validation_split: 0.4}",
            "optimizer={kind: adam, learning_rate: 0.02}",
            "schedule={kind: constant}",
            "model.stages=[{filters: 16, blocks: 1}]",
            "fit={epochs: 30, batch_size: 20}",
            "gradients.window_steps=50",
        ],
    )
    found = finding(diagnose(Evidence.of_run(run)), "overfitting")
    assert found.severity == "warning"
    assert found.numbers["gap"] > 0.1


def colours(data: DataConfig, part: str, seed: int) -> Split:
    """Images of ten colours, one a class, with noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(400) % 10
    palette = np.random.default_rng(0).integers(40, 215, (10, 1, 1, 3))
    images = palette[labels] + random.normal(0, 20, (400, 16, 16, 3))
    names = tuple(f"colour{index}" for index in range(10))
    return Split(
        images.clip(0, 255).astype(np.uint8), labels.astype(np.int32), names, "drawn", True
    )


def test_moving_statistics_that_lag_are_a_mismatch_of_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sources._SOURCES, "colours", colours)
    run = trained(
        tmp_path,
        [
            # Wrong labels keep the training accuracy from perfection.
            "data={source: colours, label_noise: 0.3, validation_split: 0.1, augment: []}",
            "model.block.normalization={batch: {momentum: 0.9999}}",
            "model.stages=[{filters: 8, blocks: 1}, {filters: 16, blocks: 1, strides: 2}]",
            "optimizer={kind: adam, learning_rate: 3.0e-3}",
            "schedule={kind: constant}",
            "fit.epochs=6",
        ],
    )
    found = finding(diagnose(Evidence.of_run(run)), "evaluation_mode")
    assert found.numbers["accuracy_share"] < 0.5


def test_statistics_that_lag_are_found_before_much_is_learned(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        [
            "model.stages=[{filters: 8, blocks: 3}, {filters: 16, blocks: 3, strides: 2}]",
            "model.block.normalization={batch: {momentum: 0.9999}}",
            "optimizer={kind: sgd, learning_rate: 1.0e-3}",
            "schedule={kind: constant}",
            "fit.epochs=12",
        ],
    )
    rows = read_history(run.history)[-3:]
    shares = [row["val_accuracy"] / row["accuracy"] for row in rows]
    assert np.median(shares) > 0.5, "there is nothing to see in the accuracies"

    found = finding(diagnose(Evidence.of_run(run)), "evaluation_mode")

    assert found.numbers["loss_ratio"] > 4


@pytest.mark.parametrize(("momentum", "is_found"), [(0.9, False), (0.99, True)])
def test_momentum_that_carries_gradients_on_is_found_by_its_series(
    tmp_path: Path, momentum: float, is_found: bool
) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    # A gradient that never changes: what has been added up after k steps is a series.
    model.compile(
        keras.optimizers.SGD(1e-4, momentum=momentum), lambda _, y: keras.ops.mean(y, axis=-1)
    )
    x = np.ones((400, 4), np.float32)
    recorder = GradientRecorder(tmp_path, window_steps=10, warn=lambda text: None)
    model.fit(x, x[:, :1], batch_size=4, epochs=1, verbose=0, callbacks=[recorder])
    config = load_config(write_tiny_config(tmp_path), ["optimizer={kind: sgd}"])

    diagnosis = diagnose(Evidence(GradientLog.read(tmp_path), config))

    rules = [each.rule for each in diagnosis.findings]
    assert ("momentum" in rules) == is_found
    if is_found:
        steps = np.arange(1, 101)
        lengths = (1 - momentum**steps) / (1 - momentum)
        # The windows past the warm-up in which a step is more than ten gradients long.
        windows = np.median(lengths.reshape(-1, 10), axis=1)[1:]
        expected = np.median(windows[windows > 10])
        numbers = finding(diagnosis, "momentum").numbers
        assert numbers["update_over_gradient"] == pytest.approx(expected, rel=1e-3)


def test_a_network_that_momentum_has_thrown_off_is_told_so_first(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        [
            "model.block={kind: plain, normalization: none, kernel_initializer: he_normal}",
            "optimizer={kind: sgd, learning_rate: 0.05, momentum: 0.999}",
            "schedule={kind: constant}",
            "fit.epochs=12",
        ],
    )

    first, *_ = diagnose(Evidence.of_run(run)).findings

    assert (first.rule, first.severity) == ("momentum", "error")
    assert first.remedies[0].patch == {"optimizer.momentum": 0.9}


def test_a_healthy_network_is_silent_from_the_first_window_on(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16,))
    x = keras.layers.Dense(16, "relu", kernel_initializer="he_normal")(inputs)
    for _ in range(4):
        branch = keras.layers.LayerNormalization()(x)
        branch = keras.layers.Dense(16, "relu", kernel_initializer="he_normal")(branch)
        x = keras.layers.Add()([x, branch])
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    model.compile(sgd(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    windows: list[tuple[LogHeader, LogWindow]] = []
    recorder = GradientRecorder(
        tmp_path, window_steps=5, on_window=lambda header, window: windows.append((header, window))
    )
    model.fit(*blobs(), batch_size=20, epochs=3, verbose=0, callbacks=[recorder])
    for end in range(1, len(windows) + 1):
        log = GradientLog.of(windows[0][0], [window for _, window in windows[:end]])
        findings: Any = diagnose(Evidence(log)).findings
        assert findings == (), (end, findings)
    assert len(windows) == 12


def test_constant_kernels_are_symmetric_and_stay_so(tmp_path: Path) -> None:
    initializer = keras.initializers.Constant(0.1)
    model = stack("tanh", initializer, layers=3)
    found = finding(diagnosed(model, sgd(), tmp_path), "symmetry")
    assert found.severity == "error"
    names = [path.split("/")[-2] for path in found.layers]
    assert names == ["dense0", "dense1", "dense2"]
    kernel = model.get_layer("dense1").kernel.numpy()
    np.testing.assert_array_equal(kernel, kernel[:, :1] + np.zeros_like(kernel))


def test_a_last_layer_of_zeros_is_in_order(tmp_path: Path) -> None:
    model = stack("relu", "he_normal", layers=2)
    model.get_layer("head").kernel.assign(np.zeros((16, 4)))
    findings = diagnosed(model, sgd(), tmp_path).findings
    assert "symmetry" not in {each.rule for each in findings}


def test_a_batch_that_is_much_larger_than_its_noise_is_a_note(tmp_path: Path) -> None:
    # Logits that are far off: all images pull the same way.
    overrides = [
        "model.head.kernel_initializer={random_normal: {stddev: 3.0}}",
        "model.block.dropout=0",
        "optimizer={kind: sgd, learning_rate: 1.0e-6}",
        "fit={epochs: 12, batch_size: 180}",
        "runtime.logical_cpus=2",
    ]
    options = [f"--set={each}" for each in overrides]
    config = write_tiny_config(tmp_path)
    answer = run_trainer("train", config, "--runs-dir", tmp_path / "runs", *options)
    assert answer.returncode == 0, answer.stderr
    [path] = (tmp_path / "runs").iterdir()
    evidence = Evidence.of_run(RunDir.open(path))
    found = finding(diagnose(evidence), "noise_scale")
    assert found.severity == "note"
    steps = evidence.gradients.steps
    own, whole = (np.sum(np.square(steps[n], dtype=float)) for n in ("replica_norm", "raw_norm"))
    # McCandlish et al. 2018, appendix A.1, with batches of 90 and 180 images.
    noise = (own - whole) / (1 / 90 - 1 / 180)
    signal = (180 * whole - 90 * own) / (180 - 90)
    assert found.numbers["noise_scale"] == pytest.approx(noise / signal / 180, rel=1e-3)


def test_a_layer_most_of_whose_units_are_dead_is_a_warning(tmp_path: Path) -> None:
    model = stack("relu", "he_normal", layers=3)
    bias = np.where(np.arange(16) < 10, -100.0, 0.0)
    model.get_layer("dense1").bias.assign(bias)
    model.compile(sgd(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = blobs()
    recorder = GradientRecorder(tmp_path, window_steps=10, probe=images[:64])
    model.fit(images, labels, batch_size=20, epochs=6, verbose=0, callbacks=[recorder])
    found = finding(diagnose(Evidence.of_log(tmp_path)), "dead")
    assert found.severity == "warning"
    assert [path.split("/")[-1] for path in found.layers] == ["dense1"]
    assert found.numbers["dead_units"] == pytest.approx(10 / 16, abs=2 / 16)
    # Of its outputs fewer are zero than of a layer that is called dead by them.
    assert found.numbers["zero_fraction"] < 0.95
