"""Trainings out of the ordinary: accumulated gradients, one kernel, sorted files, odd losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from recorded_models import OwnStep
from saved_models import dense, save, save_arrays
from test_diagnosis import diagnosed, finding, sgd, stack

from trainer.callbacks import GradientRecorder
from trainer.diagnose_model import Trial, _Batches, diagnose_model
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import Finding
from trainer.diagnosis.judge import Diagnosis
from trainer.errors import DataError
from trainer.gradient_log import GradientLog
from trainer.loss_checks import check_targets, loss_of_knowing_nothing

SPARSE = keras.losses.SparseCategoricalCrossentropy
NUM_STEPS, BATCH_SIZE = 40, 4


class OwnStepFunctional(OwnStep, keras.Model):
    """Built of inputs and outputs here, and nowhere else."""


class Length(keras.layers.Layer):
    """The length of a vector, whose gradient at 0 is NaN."""

    def call(self, x: Any) -> Any:
        return keras.ops.sqrt(keras.ops.sum(x * x, axis=-1, keepdims=True))


def lost_at(step: int, value: float, folder: Path, kind: type[keras.Model] = keras.Model) -> Any:
    """Train with inputs of one value at a step, and return what is said of it.

    Zeros have a length whose gradient is NaN; inputs of 3e38 overflow in the first layer.
    """
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8,))
    for name in ("far", "near"):
        x = keras.layers.Dense(8, use_bias=False, name=name)(x)
        x = keras.layers.ReLU(negative_slope=0.1, name=f"{name}_act")(x)
    model = kind(inputs, keras.layers.Dense(1, name="head")(Length()(x)))
    model.compile(sgd(1e-3), "mse", jit_compile=False)
    images = np.random.default_rng(0).normal(size=(NUM_STEPS, BATCH_SIZE, 8)).astype("float32")
    images[step] = value
    images = images.reshape(-1, 8)
    recorder = GradientRecorder(folder, window_steps=10, warn=lambda text: None)
    targets = np.ones((len(images), 1), np.float32)
    model.fit(
        images, targets, batch_size=BATCH_SIZE, shuffle=False, verbose=0, callbacks=[recorder]
    )
    steps = recorder.log().steps
    assert len(steps) == NUM_STEPS
    assert np.isfinite(steps["raw_norm"][:step]).all()
    assert not np.isfinite(steps["raw_norm"][step])
    return finding(recorder.diagnose(), "nonfinite")


@pytest.mark.parametrize(("value", "which"), [(0.0, "backward"), (3e38, "forward")])
def test_no_place_is_named_where_the_rest_of_the_window_is_lost_too(
    value: float, which: str, tmp_path: Path
) -> None:
    found: Finding = lost_at(23, value, tmp_path)
    assert found.message == (
        f"17 of 40 steps are not finite, the first is step 23: the {which} pass went first"
    )
    assert found.layers == ()
    # There is what would be mistaken for the place.
    assert (GradientLog.read(tmp_path).activation("nonfinite_count/max")[2] > 0).all()


def test_the_backward_pass_is_lost_first_in_the_variable_next_to_the_loss(tmp_path: Path) -> None:
    found: Finding = lost_at(29, 0.0, tmp_path)
    assert found.message.endswith("the backward pass went first; first in near/kernel")
    assert found.layers == ("near/kernel", "far/kernel")


def test_the_forward_pass_is_lost_first_in_the_first_layer(tmp_path: Path) -> None:
    found: Finding = lost_at(29, 3e38, tmp_path)
    assert found.message.endswith("the forward pass went first; first in far_act")


def test_without_a_loss_nothing_is_said_of_a_pass_that_nobody_saw(tmp_path: Path) -> None:
    found: Finding = lost_at(23, 0.0, tmp_path, OwnStepFunctional)
    assert not GradientLog.read(tmp_path).header.has_loss
    assert found.message.endswith("the first is step 23")


def test_steps_between_those_of_an_accumulating_optimizer_are_not_too_small(
    tmp_path: Path,
) -> None:
    optimizer = keras.optimizers.Adam(3e-3, gradient_accumulation_steps=4)
    diagnosis = diagnosed(stack("relu", "he_normal", layers=3), optimizer, tmp_path)
    steps = GradientLog.read(tmp_path).steps
    assert np.mean(steps["update_norm"] == 0) == 0.75
    assert diagnosis.exit_code == 0, str(diagnosis)


def test_an_accumulating_optimizer_does_not_make_fading_gradients_graver(tmp_path: Path) -> None:
    optimizer = keras.optimizers.Adam(3e-3, gradient_accumulation_steps=4)
    diagnosis = diagnosed(stack("sigmoid", "glorot_uniform", layers=8), optimizer, tmp_path)
    found = finding(diagnosis, "vanishing")
    assert 1e-5 < found.numbers["ratio"] < 1e-3
    assert found.numbers["update_ratio"] > 1e-4
    assert found.severity == "warning"


def test_a_tight_bound_is_a_note_where_adam_takes_steps_of_a_usual_size(tmp_path: Path) -> None:
    optimizer = keras.optimizers.Adam(5e-4, global_clipnorm=1e-3)
    diagnosis = diagnosed(stack("relu", "he_normal", layers=3), optimizer, tmp_path, epochs=2)
    found = finding(diagnosis, "clipping")
    assert found.numbers["left"] < 0.01
    assert found.severity == "note"
    assert diagnosis.exit_code == 0


def one_kernel(**options: Any) -> keras.Sequential:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((16,)), keras.layers.Dense(4, **options)])


@pytest.mark.parametrize(
    ("options", "rate", "rule"),
    [
        ({}, 30.0, "large_updates"),
        ({}, 1e-9, "small_updates"),
        ({"kernel_regularizer": keras.regularizers.L2(10.0)}, 1e-3, "regularizer"),
    ],
)
def test_a_model_of_one_kernel_is_judged_by_what_compares_nothing(
    options: dict[str, Any], rate: float, rule: str, tmp_path: Path
) -> None:
    diagnosis = diagnosed(
        one_kernel(**options), keras.optimizers.Adam(rate), tmp_path, window_steps=5
    )
    assert finding(diagnosis, rule).severity == "error"
    assert diagnosis.not_judged["vanishing"] == "the model has fewer than two kernels to compare"
    # Of a single kernel, bursts can be told.
    assert "exploding" not in diagnosis.not_judged


def test_a_dead_layer_behind_the_only_kernel_is_found(tmp_path: Path) -> None:
    dead = keras.initializers.Constant(-100.0)
    model = one_kernel(activation="relu", bias_initializer=dead)
    model.add(keras.layers.Rescaling(2.0))
    assert finding(diagnosed(model, sgd(), tmp_path), "dead").severity == "error"


def test_a_logistic_regression_that_starts_at_zero_takes_no_large_steps(tmp_path: Path) -> None:
    model = one_kernel(kernel_initializer="zeros")
    diagnosis = diagnosed(model, sgd(), tmp_path)
    assert "large_updates" not in diagnosis.not_judged
    assert diagnosis.exit_code == 0, str(diagnosis)


def tried(model: Path, data: Path, **options: Any) -> Diagnosis:
    options = {"optimizer": "adam:learning_rate=0.003", **options}
    return diagnose_model(Trial(model, data, **options))


def rules_of(diagnosis: Diagnosis) -> list[str]:
    return [each.rule for each in diagnosis.findings]


def test_regularizers_are_a_part_of_the_loss_of_knowing_nothing(tmp_path: Path) -> None:
    model = dense("relu", "relu", units=10, kernel_regularizer=keras.regularizers.L2(0.1))
    for layer in model.layers[:-1]:
        layer.kernel.assign(1.4 * layer.kernel)
    random = np.random.default_rng(0)
    centres, y = random.normal(0, 1, (10, 8)), random.integers(0, 10, 400)
    data = save_arrays(tmp_path, x=(centres[y]).astype("float32"), y=y)
    penalty = sum(float(each) for each in model.losses)
    path = save(tmp_path, model, loss=SPARSE(from_logits=True))
    log = tmp_path / "log"
    diagnosis = tried(path, data, keep=log)
    losses = GradientLog.read(log).steps["loss"]
    # Much is learned, and the whole loss stays above that of a constant without regularizers.
    assert np.log(10) < losses[-10:].mean() < 0.7 * (np.log(10) + penalty)
    assert "plateau" not in rules_of(diagnosis)


def test_a_plateau_says_what_it_was_measured_against(tmp_path: Path) -> None:
    model = dense("relu", kernel_regularizer=keras.regularizers.L2(0.01))
    # A start that is far off, and labels without sense: the loss falls to that of a constant.
    model.get_layer("head").bias.assign([0.0, 0.0, 8.0])
    random = np.random.default_rng(0)
    x, y = random.normal(size=(400, 8)).astype("float32"), random.integers(0, 3, 400)
    penalty = float(keras.ops.sum(model(x[:1]) * 0) + sum(model.losses))
    path = save(tmp_path, model, loss=SPARSE(from_logits=True))
    log = tmp_path / "log"
    diagnosis = tried(
        path, save_arrays(tmp_path, x=x, y=y), keep=log, optimizer="sgd:learning_rate=0.05"
    )
    found = finding(diagnosis, "plateau")
    shares = np.bincount(y) / len(y)
    constant = -np.sum(shares * np.log(shares)) + penalty
    losses = GradientLog.read(log).steps["loss"].reshape(-1, 10)
    expected = np.median(losses, axis=1).min() / constant
    assert found.numbers == {"best_over_constant": pytest.approx(expected, rel=1e-4)}
    assert found.message.endswith(f", and that of a constant answer is {constant:.4g}")


def sorted_blobs(count: int = 30_000) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    centres, y = random.normal(0, 2, (3, 8)), np.sort(random.integers(0, 3, count))
    return (centres[y] + random.normal(0, 2.5, (count, 8))).astype("float32"), y


def test_a_file_that_is_sorted_by_class_is_no_plateau(tmp_path: Path) -> None:
    x, y = sorted_blobs()
    assert np.mean(y[:10_000] == 0) > 0.99
    data = save_arrays(tmp_path, x=x, y=y)
    path = save(tmp_path, dense("relu", "relu"), loss=SPARSE(from_logits=True))
    diagnosis = tried(path, data)
    assert diagnosis.exit_code == 0, str(diagnosis)


def test_the_loss_of_knowing_nothing_is_that_of_random_examples() -> None:
    y = np.repeat(np.arange(4), 20_000)
    loss = SPARSE(from_logits=True)
    first, again, other = (
        loss_of_knowing_nothing(y, np.zeros((2, 4), np.float32), loss, seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first == pytest.approx(np.log(4), rel=1e-3)


def test_units_are_probed_with_examples_from_all_over_the_file() -> None:
    x = np.repeat(np.arange(10), 50)
    batches = [_Batches({"x": x}, {"y": x}, 32, 5, seed) for seed in (1, 1, 2)]
    first, again, other = (each.probe(64) for each in batches)
    assert len(set(first.tolist())) == 10
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_units_that_live_for_other_classes_than_the_first_are_not_dead(tmp_path: Path) -> None:
    y = np.repeat(np.arange(8), 50)
    model = dense("relu", units=8, use_bias=False)
    # Two units a class; the first examples of the file are of two classes.
    hidden = model.layers[0]
    hidden.kernel.assign(np.eye(8, 16, dtype=np.float32) + np.eye(8, 16, 8, dtype=np.float32))
    path = save(tmp_path, model, loss=SPARSE(from_logits=True))
    diagnosis = tried(path, save_arrays(tmp_path, x=np.eye(8, dtype=np.float32)[y], y=y))
    assert "dead" not in rules_of(diagnosis), str(diagnosis)


def test_large_outputs_are_sampled_by_their_values() -> None:
    asked = []

    class Watched(keras.losses.MeanSquaredError):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            asked.append(tuple(y_pred.shape))
            return super().call(y_true, y_pred)

    target = np.random.default_rng(0).normal(size=(12, 1000, 2000)).astype("float32")
    found = loss_of_knowing_nothing(target, target[:1], Watched())
    assert asked == [(5, 1000, 2000)] * 2
    assert found == pytest.approx(1.0, abs=0.3)


SHARES = np.full((2, 3), 1 / 3, np.float32)
Y = np.array([0, 2, 2, 1, 2])


@pytest.mark.parametrize(
    ("loss", "target", "output"),
    [
        (keras.losses.CTC(), np.array([[1, 2, 0], [2, 0, 0]]), np.zeros((2, 9, 4))),
        (keras.losses.Circle(), Y, np.zeros((2, 16))),
        (keras.losses.CategoricalGeneralizedCrossEntropy(), Y, SHARES),
        (SPARSE(ignore_class=255), np.array([0, 2, 255], np.uint8), SHARES),
        (SPARSE(ignore_class=-1), np.array([[0], [-1], [1]]), SHARES),
    ],
    ids=["ctc", "circle", "generalized", "255", "-1"],
)
def test_targets_that_a_loss_takes_are_let_through(
    loss: Any, target: np.ndarray, output: np.ndarray
) -> None:
    check_targets(Path("data.npz"), "y", target, output.astype("float32"), loss)
    # It says a number, or that it does not know.
    nothing = loss_of_knowing_nothing(target, output.astype("float32"), loss)
    assert nothing is None or np.isfinite(nothing)


def test_labels_that_a_loss_does_not_take_are_still_refused() -> None:
    for target, said in ((Y + 5, "from 5 to 7"), (np.full(3, 255), "holds no other")):
        with pytest.raises(DataError, match=said):
            check_targets(Path("data.npz"), "y", target, SHARES, SPARSE(ignore_class=255))


def test_an_ignored_class_is_no_part_of_the_loss_of_knowing_nothing() -> None:
    target = np.array([0, 1, 1, 1, 255, 255, 255, 255])
    loss = SPARSE(ignore_class=255)
    expected = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert loss_of_knowing_nothing(target, SHARES, loss) == pytest.approx(expected, rel=1e-5)


def test_the_best_constant_of_the_generalized_loss_is_the_best_of_a_grid() -> None:
    q, shares = 0.4, np.array([0.7, 0.3])
    target = np.repeat([0, 1], [7, 3])
    grid = np.linspace(0, 1, 10_001)
    losses = shares[0] * (1 - grid**q) / q + shares[1] * (1 - (1 - grid) ** q) / q
    loss = keras.losses.CategoricalGeneralizedCrossEntropy(q=q)
    output = np.full((2, 2), 0.5, np.float32)
    assert loss_of_knowing_nothing(target, output, loss) == pytest.approx(losses.min(), rel=1e-5)


def test_the_weights_of_the_losses_in_the_file_count(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    outputs = [keras.layers.Dense(2, name=name)(inputs) for name in ("left", "right")]
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(0)
    x, left, right = (random.normal(size=(40, n)).astype("float32") for n in (8, 2, 2))
    errors = [
        np.mean((y - answer) ** 2)
        for y, answer in zip((left, right), model.predict(x, verbose=0), strict=True)
    ]
    path = save(tmp_path, model, loss=["mse", "mse"], loss_weights=[1.0, 0.01], optimizer="sgd")
    data = save_arrays(tmp_path, x=x, y_0=left, y_1=right)
    first = []
    for loss in (None, "mse"):
        log = tmp_path / f"log_{loss}"
        tried(path, data, loss=loss, keep=log, batch_size=40, steps=10)
        first.append(float(GradientLog.read(log).steps["loss"][0]))
    # A loss of one's own has no weights.
    assert first == pytest.approx([errors[0] + 0.01 * errors[1], sum(errors)], rel=1e-5)


def test_the_weight_of_a_single_loss_is_that_of_knowing_nothing(tmp_path: Path) -> None:
    x, y = sorted_blobs(400)
    path = save(
        tmp_path, dense("relu", "relu"), loss=SPARSE(from_logits=True), loss_weights=[100.0]
    )
    log = tmp_path / "log"
    random = np.random.default_rng(0)
    data = save_arrays(tmp_path, x=random.permutation(x), y=y)
    diagnosis = tried(path, data, keep=log, optimizer="sgd:learning_rate=1e-5")
    assert GradientLog.read(log).steps["loss"].min() > 100
    [found] = [each for each in diagnosis.findings if each.rule == "plateau"]
    assert 0.9 < next(iter(found.numbers.values())) < 1.5
    assert Evidence.of_log(log).gradients.header.has_loss
