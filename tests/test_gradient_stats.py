"""Recorded statistics of gradients against an oracle, in every pair of settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from gradient_oracle import (
    CLIPPING,
    LAYERS,
    Arrays,
    Case,
    Observer,
    Step,
    clip,
    l2,
    make_data,
    make_model,
    train,
    values_of,
)

from trainer.callbacks import GradientRecorder
from trainer.gradient_hook import StepHook, clipping_of
from trainer.gradient_log import GradientLog
from trainer.recorded_steps import MOMENTS, NORMS, RecordedSteps
from trainer.window_buffer import WindowBuffer

# XLA takes its time: up to half a minute a case on two cores, longer on busy ones.
pytestmark = pytest.mark.timeout(600)

# Every pair of settings occurs together in some case.
CASES = (
    Case("plain", "eager", 1, "float32", "none", "adam"),
    Case("plain", "eager", 1, "mixed_bfloat16", "global_clipnorm", "sgd"),
    Case("plain", "eager", 1, "mixed_float16", "global_clipnorm", "adam"),
    Case("residual", "eager", 4, "float32", "clipvalue", "adamw"),
    Case("residual", "eager", 4, "mixed_float16", "clipnorm", "adam"),
    Case("residual", "graph", 1, "mixed_bfloat16", "none", "sgd"),
    Case("residual", "graph", 1, "mixed_float16", "global_clipnorm", "adamw"),
    Case("plain", "graph", 4, "float32", "clipnorm", "sgd"),
    Case("plain", "graph", 4, "mixed_bfloat16", "clipvalue", "adam"),
    Case("residual", "xla", 1, "mixed_bfloat16", "clipnorm", "adamw"),
    Case("residual", "xla", 1, "mixed_float16", "clipvalue", "sgd"),
    Case("plain", "xla", 4, "mixed_float16", "none", "adamw"),
    Case("residual", "xla", 4, "float32", "global_clipnorm", "adam"),
)
SETTINGS = (
    ("plain", "residual"),
    ("eager", "graph", "xla"),
    (1, 4),
    ("float32", "mixed_bfloat16", "mixed_float16"),
    tuple(CLIPPING),
    ("sgd", "adam", "adamw"),
)

# Of the eight of a batch, activations are recorded of these.
NUM_IMAGES = 3

# Float32 sums of some hundred terms, rounded a few times: measured 2.1e-7 at most.
RTOL = 1e-6
ACTIVATION_RTOL = {"float32": 1e-5, "mixed_float16": 1e-3, "mixed_bfloat16": 1e-2}


@dataclass(frozen=True)
class Run:
    """One case trained by a recorded `fit` and by a stock one, whose steps were watched."""

    case: Case
    recorded: RecordedSteps
    log: GradientLog
    steps: list[Step]
    recorded_state: Arrays
    stock_state: Arrays


def concatenate(windows: list[RecordedSteps]) -> RecordedSteps:
    return RecordedSteps(
        *(
            np.concatenate([getattr(window, name) for window in windows])
            for name in ("steps", "norms", "moments", "activations")
        )
    )


@pytest.fixture(scope="module", params=CASES, ids=str)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    case: Case = request.param
    directory = tmp_path_factory.mktemp("gradients")
    recorder = GradientRecorder(
        directory,
        window_steps=case.steps_per_execution,
        moments_every_steps=1,
        activations_every_steps=1,
        activation_images=NUM_IMAGES,
    )
    windows: list[RecordedSteps] = []
    read = WindowBuffer.read

    def spy(self: WindowBuffer) -> RecordedSteps:
        windows.append(read(self))
        return windows[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WindowBuffer, "read", spy)
        recorded_state = train(make_model(case), make_data(), [recorder])
    observer = Observer(*make_data())
    stock_state = train(make_model(replace(case, steps_per_execution=1)), make_data(), [observer])
    if case.steps_per_execution > 1:
        stock_state = train(make_model(case), make_data())
    return Run(
        case, concatenate(windows), recorder.log(), observer.steps, recorded_state, stock_state
    )


def test_the_cases_cover_every_pair_of_settings() -> None:
    fields = [tuple(vars(case).values()) for case in CASES]
    for first, second in combinations(range(len(SETTINGS)), 2):
        for pair in product(SETTINGS[first], SETTINGS[second]):
            assert any((case[first], case[second]) == pair for case in fields), pair


def test_recorded_training_is_bit_identical_to_stock_fit(run: Run) -> None:
    assert len(run.recorded_state) == len(run.stock_state)
    for recorded, stock in zip(run.recorded_state, run.stock_state, strict=True):
        np.testing.assert_array_equal(recorded, stock)


def test_every_norm_equals_that_of_the_oracle(run: Run) -> None:
    for index, step in enumerate(run.steps):
        expected = step.norms()
        if not step.is_finite:
            is_finite = np.isfinite(expected[:, 0])
            np.testing.assert_array_equal(np.isfinite(run.recorded.norms[index, :, 0]), is_finite)
            # Nothing is clipped in a skipped step.
            expected[:, 1] = run.recorded.norms[index, :, 1]
            expected[~is_finite, 0] = run.recorded.norms[index, ~is_finite, 0]
        np.testing.assert_allclose(run.recorded.norms[index], expected, rtol=RTOL)


def test_every_moment_equals_that_of_the_oracle(run: Run) -> None:
    for index, step in enumerate(run.steps):
        moments, expected = run.recorded.moments[index], step.moments()
        largest = expected[:, 2]
        is_finite = np.isfinite(largest)
        # A mean may cancel: its error is of the size of what was added up.
        error = np.abs(moments[is_finite] - expected[is_finite]) / largest[is_finite, None]
        assert error[:, :3].max(initial=0) < RTOL
        np.testing.assert_allclose(moments[:, 3], expected[:, 3], rtol=RTOL)
        np.testing.assert_array_equal(moments[:, 4], expected[:, 4])
        assert not np.isfinite(moments[~is_finite, :3]).any()


def test_every_activation_equals_that_of_the_oracle(run: Run) -> None:
    assert run.log.header.activations == LAYERS
    assert run.log.header.activation_images == (None if run.case.mode == "xla" else NUM_IMAGES)
    for index, step in enumerate(run.steps):
        # XLA knows no choice.
        expected = step.activations(None if run.case.mode == "xla" else NUM_IMAGES)
        # Counted over all images where a step overflows.
        expected[:, 5] = step.activations(None)[:, 5]
        # The statistics keep as many digits as the outputs of the two graphs agree in.
        rtol = ACTIVATION_RTOL[run.case.precision]
        np.testing.assert_allclose(
            run.recorded.activations[index], expected, rtol=rtol, atol=rtol, err_msg=str(index)
        )


def test_what_is_recorded_of_the_whole_step_equals_the_oracle(run: Run) -> None:
    rows = run.recorded.steps
    steps = run.steps
    np.testing.assert_array_equal(rows["step"], np.arange(len(steps)))
    np.testing.assert_array_equal(rows["skipped"], [step.skipped for step in steps])
    np.testing.assert_array_equal(rows["loss_scale"], [step.loss_scale for step in steps])
    np.testing.assert_allclose(rows["loss"], [step.loss for step in steps], rtol=RTOL)
    np.testing.assert_allclose(
        rows["learning_rate"], [step.learning_rate for step in steps], rtol=RTOL
    )
    for index, step in enumerate(steps):
        for position, name in enumerate(NORMS):
            if step.is_finite or name in ("update_norm", "weight_norm"):
                np.testing.assert_allclose(
                    rows[name][index], step.total_norms()[position], rtol=RTOL
                )
            elif name == "raw_norm":
                assert not np.isfinite(rows[name][index])


def test_the_log_summarizes_what_the_oracle_saw_in_each_window(run: Run) -> None:
    size = run.case.steps_per_execution
    for window, start in enumerate(range(0, len(run.steps), size)):
        steps = run.steps[start : start + size]
        np.testing.assert_array_equal(run.log.window_steps[window], [start, start + size - 1])
        if not all(step.is_finite for step in steps):
            continue
        norms = np.array([step.norms() for step in steps])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = norms[:, :, 2] / norms[:, :, 3]
        # A weight of zeros has no ratio.
        ratio[norms[:, :, 3] == 0] = np.nan
        columns = [*np.moveaxis(norms, -1, 0), ratio]
        series = dict(zip((*NORMS, "update_ratio"), columns, strict=True))
        for name, values in series.items():
            for part, summarize in (("min", np.min), ("median", np.median), ("max", np.max)):
                np.testing.assert_allclose(
                    run.log.stat(f"{name}/{part}")[window],
                    summarize(values, axis=0),
                    rtol=2 * RTOL,
                    err_msg=f"{name}/{part}",
                )
        # Clipping that changes less than rounding does may count or not.
        is_shorter = norms[:, :, 1] < norms[:, :, 0] * (1 - RTOL)
        np.testing.assert_allclose(
            run.log.stat("clipped_fraction")[window], is_shorter.mean(axis=0)
        )
        last = steps[-1].moments()
        np.testing.assert_allclose(run.log.stat("raw_zero_fraction")[window], last[:, 3], rtol=RTOL)
        np.testing.assert_allclose(
            run.log.stat("raw_max_abs")[window],
            np.max([step.moments()[:, 2] for step in steps], axis=0),
            rtol=RTOL,
        )


def test_the_cases_reach_what_they_are_for(run: Run) -> None:
    finite = [step for step in run.steps if step.is_finite]
    shares = np.mean([step.norms()[:, 1] < step.norms()[:, 0] for step in finite])
    assert (0 < shares < 1) if run.case.clipping != "none" else shares == 0
    skipped = [step.skipped for step in run.steps]
    if run.case.precision == "mixed_float16":
        # An overflow at first, and another after the scale has grown again.
        assert skipped[0] and any(skipped[3:]) and not all(skipped)
    else:
        assert not any(skipped)


# ---- single gradients, chosen by hand ----


class GivenGradients(keras.Model):
    """A model whose train step hands the optimizer the gradients that it was given."""

    def __init__(self, gradients: list[Any]) -> None:
        super().__init__()
        self._given = gradients
        self._weights_ = [
            self.add_weight(shape=self._shape(grad), initializer="ones", name=f"weight{i}")
            for i, grad in enumerate(gradients)
        ]
        self.built = True

    @staticmethod
    def _shape(grad: Any) -> tuple[int, ...]:
        if isinstance(grad, tf.IndexedSlices):
            return tuple(int(size) for size in grad.dense_shape)
        return tuple(np.shape(grad))

    def train_step(self, data: Any) -> dict[str, Any]:
        # Through the data, so that no compiler can fold them away.
        one = tf.reduce_sum(data)
        gradients = [
            tf.IndexedSlices(grad.values * one, grad.indices, grad.dense_shape)
            if isinstance(grad, tf.IndexedSlices)
            else tf.constant(grad, tf.float32) * one
            for grad in self._given
        ]
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"seen": one}


def record_given(
    tmp_path: Path, gradients: list[Any], *, jit: bool = False, **clipping: float
) -> tuple[RecordedSteps, list[np.ndarray]]:
    """Return what one SGD step records, and by what it really moved the weights."""
    model = GivenGradients(gradients)
    model.compile(keras.optimizers.SGD(1.0, **clipping), jit_compile=jit)
    buffer = WindowBuffer(window_steps=1)
    hook = StepHook(model.optimizer, buffer)
    hook.install()
    before = values_of(model.trainable_variables)
    model.fit(np.ones((1, 1), np.float32), verbose=0)
    hook.remove()
    after = values_of(model.trainable_variables)
    return buffer.read(), [b - a for a, b in zip(after, before, strict=True)]


@pytest.fixture(params=[False, True], ids=["graph", "xla"])
def jit(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param


TINY = np.array([1e-25, -2e-25, 2e-25], np.float32)
HUGE = np.array([1e25, 2e25, -2e25], np.float32)


def test_tiny_and_huge_gradients_have_their_norms_and_moments(tmp_path: Path, jit: bool) -> None:
    plain = np.array([0.5, -1.0, 0.25], np.float32)
    given = [TINY, HUGE, plain, np.zeros(3, np.float32)]
    recorded, _ = record_given(tmp_path, given, jit=jit)
    np.testing.assert_allclose(recorded.norms[0, :, 0], [l2([g]) for g in given], rtol=RTOL)
    expected = [
        (g.mean(dtype=np.float64), g.std(dtype=np.float64), abs(g).max(), np.mean(g == 0), 0)
        for g in given
    ]
    np.testing.assert_allclose(recorded.moments[0], expected, rtol=RTOL, atol=1e-40)
    assert recorded.steps["raw_norm"][0] == pytest.approx(3e25)


def test_gradients_across_the_whole_range_of_float32_have_their_norms(
    tmp_path: Path, jit: bool
) -> None:
    direction = np.random.default_rng(0).normal(size=40)
    given = [(direction * 10.0**power).astype(np.float32) for power in range(-36, 37, 3)]
    recorded, _ = record_given(tmp_path, given, jit=jit)
    expected = [(l2([g]), abs(g).max(), np.std(g, dtype=np.float64)) for g in given]
    found = np.stack(
        [recorded.norms[0, :, 0], recorded.moments[0, :, 2], recorded.moments[0, :, 1]], axis=1
    )
    np.testing.assert_allclose(found, expected, rtol=RTOL)


def test_zeros_are_zeros(tmp_path: Path, jit: bool) -> None:
    given = [np.zeros(4, np.float32), np.array([0, 1, 0, 0], np.float32)]
    recorded, _ = record_given(tmp_path, given, jit=jit, clipnorm=0.5)
    np.testing.assert_array_equal(recorded.norms[0, 0, :3], 0)
    np.testing.assert_array_equal(recorded.moments[0, :, 3], [1, 0.75])
    np.testing.assert_array_equal(recorded.moments[0, 0, [0, 1, 2, 4]], 0)


def test_nan_and_infinity_are_reported_and_not_averaged_away(tmp_path: Path, jit: bool) -> None:
    given = [
        np.array([1, np.nan, 2], np.float32),
        np.array([np.inf, 1, 1], np.float32),
        np.array([-np.inf, np.inf, 1], np.float32),
        np.array([1, 2, 2], np.float32),
    ]
    recorded, _ = record_given(tmp_path, given, jit=jit)
    np.testing.assert_array_equal(recorded.moments[0, :, 4], [1, 1, 2, 0])
    assert not np.isfinite(recorded.norms[0, :3, 0]).any()
    assert not np.isfinite(recorded.moments[0, :3, :3]).any()
    assert recorded.norms[0, 1, 0] == np.inf
    assert recorded.norms[0, 3, 0] == pytest.approx(3)
    assert not np.isfinite(recorded.steps["raw_norm"][0])


def test_a_step_with_a_nan_is_recorded_in_full_out_of_turn() -> None:
    model = GivenGradients([np.array([1, np.nan], np.float32)])
    model.compile(keras.optimizers.SGD(1.0))
    buffer = WindowBuffer(window_steps=3, moments_every_steps=10)
    hook = StepHook(model.optimizer, buffer)
    hook.install()
    model.fit(np.ones((3, 1), np.float32), batch_size=1, verbose=0)
    hook.remove()
    np.testing.assert_array_equal(buffer.read().moments[:, 0, 4], [1, 1, 1])


@pytest.mark.parametrize(
    "clipping",
    [{}, {"clipnorm": 0.7}, {"global_clipnorm": 2.0}, {"clipvalue": 0.6}, {"clipnorm": 1e6}],
    ids=str,
)
def test_clipped_norms_are_those_of_really_clipped_gradients(
    tmp_path: Path, clipping: dict[str, float], jit: bool
) -> None:
    generator = np.random.default_rng(3)
    given = [
        (generator.normal(size=shape) * size).astype(np.float32)
        for shape, size in (((3, 4), 1), ((50,), 0.01), ((7,), 30), ((2, 2, 2), 1e-25))
    ]
    recorded, moved = record_given(tmp_path, given, jit=jit, **clipping)
    expected = [l2([g]) for g in clip([g.astype(np.float64) for g in given], clipping)]
    np.testing.assert_allclose(recorded.norms[0, :, 1], expected, rtol=RTOL)
    # With SGD at rate 1 the weights move by the clipped gradient; a float32 next to 1 keeps 6e-8.
    np.testing.assert_allclose([l2([m]) for m in moved], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "clipping", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 1.0}], ids=str
)
@pytest.mark.parametrize("size", [1e25, np.inf, np.nan])
def test_a_gradient_that_clipping_cannot_save_is_recorded_as_keras_leaves_it(
    tmp_path: Path, clipping: dict[str, float], size: float
) -> None:
    # Keras' own squares overflow: `clipnorm` makes zeros of 1e25, `global_clipnorm` NaN.
    given = [np.array([size, 1, 1], np.float32), np.array([0.3, 0.4], np.float32)]
    recorded, moved = record_given(tmp_path, given, **clipping)
    np.testing.assert_allclose(
        recorded.norms[0, :, 1], [l2([m]) for m in moved], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "clipping",
    [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.3}, {"clipnorm": 1e6}],
    ids=str,
)
def test_an_embedding_is_clipped_by_rows_and_recorded_as_a_whole(
    tmp_path: Path, clipping: dict[str, float]
) -> None:
    # Token 1 occurs twice: Keras clips its two rows before it adds them up.
    rows = np.array([[1, 2], [1, 2], [0.1, -3]], np.float32)
    sparse = tf.IndexedSlices(tf.constant(rows), tf.constant([1, 1, 4]), tf.constant([6, 2]))
    recorded, moved = record_given(tmp_path, [sparse, np.array([0.2, 0.1], np.float32)], **clipping)
    whole = np.zeros((6, 2))
    np.add.at(whole, [1, 1, 4], rows.astype(np.float64))
    assert recorded.norms[0, 0, 0] == pytest.approx(l2([whole]), rel=RTOL)
    assert recorded.moments[0, 0, 3] == pytest.approx(np.mean(whole == 0))
    np.testing.assert_allclose(
        recorded.norms[0, :, 1], [l2([m]) for m in moved], rtol=1e-5, atol=1e-6
    )


def test_unclipped_variables_beside_a_huge_one_do_not_count_as_clipped(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    given = [generator.normal(size=997).astype(np.float32) for _ in range(8)]
    recorded, _ = record_given(tmp_path, [HUGE, *given], clipvalue=100.0)
    np.testing.assert_array_equal(recorded.summarize()[15, 1:], 0)
    assert recorded.summarize()[15, 0] == 1


def test_a_deviation_far_below_the_mean_keeps_its_digits(tmp_path: Path, jit: bool) -> None:
    # A difference of mean squares in float32 would give 0 or NaN here.
    given = (1000 + 0.01 * np.random.default_rng(0).normal(size=2000)).astype(np.float32)
    recorded, _ = record_given(tmp_path, [given], jit=jit)
    expected = given.std(dtype=np.float64)
    # Squares of 1e10 times the variance lose ten of float64's sixteen digits.
    assert recorded.moments[0, 0, 1] == pytest.approx(expected, rel=1e-5)


def test_clipping_of_names_what_the_optimizer_does() -> None:
    assert clipping_of(keras.optimizers.SGD()) == {}
    for clipping in ({"clipnorm": 2.0}, {"global_clipnorm": 3.0}, {"clipvalue": 0.5}):
        assert clipping_of(keras.optimizers.Adam(**clipping)) == clipping
        inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(**clipping))
        assert clipping_of(inner) == clipping


def test_the_moments_stand_in_the_order_of_their_names() -> None:
    assert MOMENTS == (
        "raw_mean", "raw_std", "raw_max_abs", "raw_zero_fraction", "raw_nonfinite_count"
    )  # fmt: skip
    assert NORMS == ("raw_norm", "clipped_norm", "update_norm", "weight_norm")
