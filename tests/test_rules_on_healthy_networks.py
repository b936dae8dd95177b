"""Sound trainings that look like an illness: none of them is called one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from test_diagnosis import blobs, diagnosed, finding, sgd, stack, trained

from trainer.callbacks import GradientRecorder
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import CannotJudge, Finding
from trainer.diagnosis.judge import Diagnosis, diagnose
from trainer.diagnosis.loss_rules import diverging, overfitting, plateau
from trainer.diagnosis.step_rules import small_updates
from trainer.gradient_log import GradientLog, read_windows


def errors(diagnosis: Diagnosis) -> list[str]:
    return [f"{f.rule}: {f.message}" for f in diagnosis.findings if f.severity == "error"]


def regularized(l2: float) -> keras.Sequential:
    keras.utils.set_random_seed(0)
    hidden = [
        keras.layers.Dense(32, "relu", kernel_regularizer=keras.regularizers.L2(l2))
        for _ in range(3)
    ]
    return keras.Sequential([keras.Input((16,)), *hidden, keras.layers.Dense(4)])


def test_l2_that_outlives_the_gradient_of_learned_data_is_a_warning(tmp_path: Path) -> None:
    # The data are parted by a line: once they are, only L2 is left to pull.
    diagnosis = diagnosed(
        regularized(1e-3), sgd(momentum=0.9), tmp_path, epochs=60, window_steps=50
    )
    assert finding(diagnosis, "regularizer").severity == "warning"
    assert diagnosis.exit_code == 0, errors(diagnosis)


def test_a_bias_in_front_of_a_normalization_does_not_vanish(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    blocks = [
        layer
        for _ in range(3)
        for layer in (
            keras.layers.Dense(32),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        )
    ]
    model = keras.Sequential([keras.Input((16,)), *blocks, keras.layers.Dense(4)])
    diagnosis = diagnosed(model, keras.optimizers.Adam(1e-3), tmp_path)
    evidence = Evidence.of_log(tmp_path)
    # It is there, and next to zero: the normalization takes it out again.
    norms = evidence.gradients.stat("raw_norm/median")[-1]
    assert norms[1] < 1e-5 * norms[0]
    kinds = [path.rpartition("/")[2] for path in evidence.paths_of(evidence.offset_indices)]
    assert kinds == ["beta", "beta", "beta", "bias"]
    assert diagnosis.exit_code == 0, errors(diagnosis)


def test_kernels_that_start_next_to_zero_may_grow(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    hidden = [
        keras.layers.Dense(
            32, "relu", kernel_initializer=keras.initializers.RandomNormal(stddev=0.01)
        )
        for _ in range(3)
    ]
    model = keras.Sequential([keras.Input((16,)), *hidden, keras.layers.Dense(4)])
    diagnosis = diagnosed(model, keras.optimizers.Adam(1e-3), tmp_path, epochs=60, window_steps=50)
    norms = Evidence.of_log(tmp_path).gradients.stat("weight_norm/median")[:, ::2]
    assert np.median(norms[-1] / norms[0]) > 3
    assert errors(diagnosis) == []


def test_a_window_of_one_step_at_the_end_of_each_epoch_is_no_trend(tmp_path: Path) -> None:
    # A fifth of the labels are wrong: the loss of single batches varies, and nothing diverges.
    random = np.random.default_rng(1)
    points, labels = (each[:102] for each in blobs())
    points = points + random.normal(0, 2, points.shape).astype("float32")
    labels = np.where(random.random(102) < 0.2, random.integers(0, 4, 102), labels)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, "relu")])
    model.add(keras.layers.Dense(4))
    model.compile(sgd(0.003), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    recorder = GradientRecorder(tmp_path, window_steps=50)
    model.fit(points, labels, batch_size=2, epochs=20, verbose=0, callbacks=[recorder])
    evidence = replace(Evidence.of_log(tmp_path), data={"class_names": list("abcd")})
    windows = recorder.log().window_steps
    assert np.diff(windows)[:, 0].tolist() == [49, 0] * 20
    losses = evidence.of_windows("loss", np.arange(len(windows)))
    # With these windows it would have risen.
    assert np.median(losses[-8:]) > 1.5 * losses.min()
    assert diverging(evidence) == []


def test_nothing_is_called_too_small_within_a_warm_up(tmp_path: Path) -> None:
    # As the live diagnosis sees it: the run ends inside its warm-up.
    run = trained(
        tmp_path,
        [
            "optimizer={kind: sgd, learning_rate: 2.0e-5}",
            "schedule={kind: triangular, start_fraction: 0, peak_at: 0.99}",
            "fit.epochs=20",
            "gradients.window_steps=3",
        ],
    )
    whole = Evidence.of_run(run)
    assert small_updates(whole)[0].severity == "error"
    assert plateau(whole)[0].severity == "error"
    windows = [w for w in read_windows(run.gradients) if w.steps["learning_rate"].max() < 1.9e-6]
    assert len(windows) >= 3
    early = replace(whole, log=GradientLog.of(whole.gradients.header, windows))
    with pytest.raises(CannotJudge, match="not come to a tenth of its peak"):
        small_updates(early)


def test_a_healthy_diagnosis_has_no_rule_that_failed(tmp_path: Path) -> None:
    diagnosis = diagnosed(stack("relu", "he_normal", layers=3), sgd(), tmp_path)
    assert not [reason for reason in diagnosis.not_judged.values() if "failed" in reason]
    assert diagnose(Evidence.of_log(tmp_path)).exit_code == 0


def test_a_validation_loss_that_was_never_better_than_now_is_no_overfitting() -> None:
    # The first epochs of configs/quickstart.yaml.
    losses = [2.3016, 2.1583, 1.1471, 1.1389, 0.8200]
    rows = [
        {"loss": 2.5 - 0.4 * i, "val_loss": loss, "accuracy": 0.2 * i, "val_accuracy": 0.1 * i}
        for i, loss in enumerate(losses)
    ]

    assert overfitting(Evidence(None, history=rows)) == []
    # The same, if it then rises and goes on to rise.
    more = [{**rows[-1], "epoch": 5, "loss": 0.1, "val_loss": 1 + 2 * i} for i in range(3)]
    [found] = overfitting(
        Evidence(None, history=[{**r, "epoch": i} for i, r in enumerate(rows)] + more)
    )
    assert found.numbers["end_over_best"] > 1.2


def test_a_validation_loss_that_swings_from_epoch_to_epoch_is_no_overfitting() -> None:
    # The validation losses of configs/plain20.yaml, seed 0; seen after 6 and after 19 epochs.
    losses = [50.5, 4.785, 0.924, 1.167, 1.198, 1.491, 1.217, 0.987, 0.986, 0.846, 1.701, 0.91]
    losses += [1.198, 0.61, 1.111, 0.575, 0.807, 1.037, 1.026]

    def judged(curve: list[float]) -> list[Finding]:
        rows = [
            {"epoch": i, "loss": 1 - 0.02 * i, "accuracy": 0.8, "val_loss": x, "val_accuracy": 0.65}
            for i, x in enumerate(curve)
        ]
        return overfitting(Evidence(None, history=rows))

    assert judged(losses[:7]) == judged(losses) == []
    # As far above the best, and steadily so.
    [found] = judged([1.2, 0.9, 0.7, 0.6, 0.575, 0.6, 0.65, 0.75, 0.88, 1.026, 1.2])
    assert found.numbers["rise_over_noise"] > 3
