"""Recorded activations: which layers, when, and that nothing else notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from gradient_oracle import activation_statistics
from recorded_models import (
    BATCH_SIZE,
    Breaker,
    OwnStepModel,
    UnbuiltModel,
    assert_same,
    build_dense,
    build_functional,
    build_tokens,
    compiled,
    fit,
    make_data,
    make_tokens,
    numbers,
)

from trainer import GradientLog, GradientRecorder
from trainer.activation_hook import activation_layers
from trainer.activation_stats import PARTS, activation_parts, combine_replicas, saturation_of
from trainer.layers import PlainBlock, ResidualBlock
from trainer.recorded_steps import ACTIVATIONS, RecordedSteps
from trainer.window_buffer import WindowBuffer


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


def record(
    model: keras.Model, folder: Path, data: Any = None, **options: Any
) -> tuple[GradientLog, list[np.ndarray]]:
    """Train one epoch of 8 steps; return the log, and weights and optimizer state."""
    settings = {"window_steps": 1, "activations_every_steps": 1, "activation_images": None}
    recorder = GradientRecorder(folder, **(settings | options))
    fit(model, recorder, data=data)
    return recorder.log(), numbers(model)


def found(log: GradientLog, window: int, layer: int) -> list[float]:
    return [float(log.activation(f"{name}/max")[window, layer]) for name in ACTIVATIONS]


def is_saturated_tanh(values: np.ndarray) -> np.ndarray:
    return 1 - values.astype(np.float64) ** 2 < 0.01


# ---- which layers ----


def test_blocks_and_nonlinear_layers_are_chosen_and_linear_ones_are_not() -> None:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="linear_conv")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("relu", name="act")(x)
    x = ResidualBlock(4, name="block")(x)
    x = keras.Sequential([keras.layers.Conv2D(4, 1, activation="gelu", name="inner")])(x)
    x = keras.layers.LeakyReLU(name="leaky")(keras.layers.Dropout(0.1)(x))
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="head")(x))
    assert [layer.name for layer in activation_layers(model)] == [
        "act", "block", "inner", "leaky", "head"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["attention", "lstm", "gru"])
def test_layers_made_of_layers_are_chosen(kind: str) -> None:
    (layer,) = activation_layers(build_tokens(kind))
    assert layer.name.split("_")[0] in ("multi", "lstm", "gru")


def test_augmentation_made_of_layers_is_not_chosen() -> None:
    augmentation = keras.layers.Pipeline([keras.layers.RandomFlip()])
    model = keras.Sequential([keras.Input((4, 4, 3)), augmentation, keras.layers.Flatten()])
    assert activation_layers(model) == ()


def test_layers_can_be_named_at_any_depth() -> None:
    inputs = keras.Input((8, 8, 3))
    blocks = [PlainBlock(4, name="b0"), PlainBlock(4, name="b1")]
    model = keras.Model(inputs, blocks[1](blocks[0](inputs)))
    assert [v.path for v in activation_layers(model, ["b1/act1"])] == ["b1/act1"]
    assert [v.path for v in activation_layers(model, ["conv2"])] == ["b0/conv2", "b1/conv2"]
    with pytest.raises(ValueError, match=r"Received: 'act9'\. There are: .*b0/conv1, "):
        activation_layers(model, ["b0", "act9"])


def test_named_layers_are_the_ones_recorded(tmp_path: Path) -> None:
    log, _ = record(compiled(build_dense()), tmp_path, activation_layers=["last"])
    (path,) = log.header.activations
    assert path.endswith("/last")
    assert np.isfinite(log.activation("mean/max")).all()


def test_a_model_without_nonlinear_layers_is_recorded_without_activations(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    log, _ = record(compiled(model), tmp_path)
    assert log.header.activations == ()
    assert len(log.steps) == 8


# ---- what is recorded ----


def test_every_step_of_a_tanh_layer_equals_numpy(tmp_path: Path) -> None:
    x, y = make_data()
    x *= 3
    model = compiled(build_dense(), optimizer=keras.optimizers.SGD(0.0))
    kernel, bias = (variable.numpy().astype(np.float64) for variable in model.variables[:2])
    log, _ = record(model, tmp_path, (x, y), activation_images=3)
    for window in range(8):
        images = x[window * BATCH_SIZE : window * BATCH_SIZE + 3]
        values = np.tanh(images @ kernel + bias)
        expected = activation_statistics(values, is_saturated_tanh(values))
        np.testing.assert_allclose(found(log, window, 0), expected, rtol=1e-5)
    assert 0 < log.activation("saturated_fraction/max").max() < 1


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("sigmoid", lambda y: y * (1 - y)),
        ("tanh", lambda y: 1 - y**2),
        ("softsign", lambda y: (1 - abs(y)) ** 2),
        ("hard_sigmoid", lambda y: np.where((y > 0) & (y < 1), 1 / 6, 0)),
        ("hard_tanh", lambda y: np.where(abs(y) < 1, 1.0, 0)),
    ],
)
def test_saturated_is_where_the_slope_is_below_a_hundredth(
    name: str, slope: Callable[[np.ndarray], np.ndarray]
) -> None:
    layer = keras.layers.Activation(name)
    values = keras.ops.convert_to_numpy(layer(np.linspace(-12, 12, 997, dtype=np.float32)))
    parts = activation_parts([[tf.constant(values)]], [saturation_of(layer)], None)
    expected = np.mean(slope(values.astype(np.float64)) < 0.01)
    assert 0 < expected < 1
    assert float(parts[0, PARTS.index("saturated_fraction")]) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("preactivation", [False, True])
def test_a_block_is_bounded_only_if_its_activation_comes_last(preactivation: bool) -> None:
    block = ResidualBlock(4, activation="tanh", preactivation=preactivation)
    assert (saturation_of(block) is None) == preactivation
    assert saturation_of(keras.layers.Dense(2, activation="relu")) is None


def test_a_mean_far_above_the_deviation_and_huge_values_keep_their_digits() -> None:
    generator = np.random.default_rng(0)
    near = (1000 + generator.normal(size=4000)).astype(np.float32)
    huge = (1e25 * generator.normal(size=100)).astype(np.float32)
    parts = activation_parts([[tf.constant(near)], [tf.constant(huge)]], [None, None], None)
    for row, values in zip(parts.numpy(), (near, huge), strict=True):
        assert row[0] == len(values)
        np.testing.assert_allclose(row[1:], activation_statistics(values), rtol=2e-5)


def test_non_finite_values_are_counted_and_not_averaged_away() -> None:
    values = np.array([1, np.nan, np.inf, 0], np.float32)
    parts = activation_parts([[tf.constant(values)], [tf.ones(3)]], [None, None], None).numpy()
    assert not np.isfinite(parts[0, 1:4]).any()
    np.testing.assert_array_equal(parts[:, PARTS.index("nonfinite_count")], [2, 0])
    np.testing.assert_array_equal(parts[:, PARTS.index("zero_fraction")], [0.25, 0])


def test_the_statistics_of_replicas_combine_to_those_of_all_their_values() -> None:
    generator = np.random.default_rng(0)
    shares = [generator.normal(size, 1 + size / 9, (size, 5)).astype("float32") for size in (7, 2)]
    shares.append(np.empty((0, 5), np.float32))
    parts = [activation_parts([[tf.constant(s)]], [None], None).numpy() for s in shares]
    expected = activation_statistics(np.concatenate(shares))
    np.testing.assert_allclose(combine_replicas(np.stack(parts))[0], expected, rtol=1e-5)
    not_recorded = np.full((2, 3, 1, len(PARTS)), np.nan, np.float32)
    assert np.isnan(combine_replicas(not_recorded)).all()


def test_a_layer_that_is_called_twice_counts_as_one_set_of_values(tmp_path: Path) -> None:
    inputs = keras.Input((5,))
    shared = keras.layers.Dense(5, activation="tanh", name="shared")
    model = keras.Model(inputs, keras.layers.Dense(1)(shared(shared(inputs))))
    kernel, bias = (variable.numpy().astype(np.float64) for variable in shared.variables)
    log, _ = record(compiled(model, optimizer=keras.optimizers.SGD(0.0)), tmp_path)
    once = np.tanh(make_data()[0][:BATCH_SIZE] @ kernel + bias)
    values = np.stack([once, np.tanh(once @ kernel + bias)])
    expected = activation_statistics(values, is_saturated_tanh(values))
    np.testing.assert_allclose(found(log, 0, 0), expected, rtol=1e-5)


def test_a_layer_inside_a_branch_of_the_graph_is_left_out_and_disturbs_nothing(
    tmp_path: Path,
) -> None:
    class Branching(UnbuiltModel):
        def call(self, inputs: Any) -> Any:
            once = self.last(self.first(inputs))
            is_large = tf.reduce_sum(inputs) > 0
            return tf.cond(is_large, lambda: self.last(self.first(inputs)), lambda: once)

    model = compiled(Branching(), optimizer=keras.optimizers.SGD(0.0))
    log, _ = record(model, tmp_path)
    values = keras.ops.convert_to_numpy(model.first(make_data()[0][:BATCH_SIZE]))
    expected = activation_statistics(values, is_saturated_tanh(values))
    np.testing.assert_allclose(found(log, 0, 0), expected, rtol=1e-5)


# ---- when ----


@pytest.mark.parametrize(("every", "activations_every"), [(1, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("execution_steps", [1, 4])
def test_activations_are_recorded_at_every_nth_recorded_step(
    every: int,
    activations_every: int,
    execution_steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = compiled(build_dense(), steps_per_execution=execution_steps)
    recorder = GradientRecorder(
        tmp_path,
        window_steps=4,
        every_steps=every,
        activations_every_steps=activations_every,
    )
    windows = []
    read = WindowBuffer.read

    def spy(self: WindowBuffer) -> RecordedSteps:
        windows.append(read(self))
        return windows[-1]

    monkeypatch.setattr(WindowBuffer, "read", spy)
    fit(model, recorder)
    has_activations = np.concatenate([window.has_activations for window in windows])
    expected = [index % activations_every == 0 for index in range(8 // every)]
    np.testing.assert_array_equal(has_activations, expected)


def test_zero_records_none_and_touches_no_layer(tmp_path: Path) -> None:
    touched = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            touched.append([name for layer in self.model.layers for name in vars(layer)
                            if name == "call"])  # fmt: skip

    recorder = GradientRecorder(tmp_path, activations_every_steps=0)
    fit(compiled(build_dense()), recorder, Look())
    assert not any(touched)
    assert recorder.log().header.activations == ()


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_validation_and_prediction_in_between_are_not_recorded(eager: bool, tmp_path: Path) -> None:
    class Predict(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.predict(1000 * make_data()[0], verbose=0)

    x, y = make_data()
    logs = []
    for callbacks, validation in (([], None), ([Predict()], (1000 * x, y))):
        keras.utils.set_random_seed(0)
        recorder = GradientRecorder(tmp_path, window_steps=1, activations_every_steps=1)
        model = compiled(build_dense(), run_eagerly=eager)
        fit(model, recorder, *callbacks, validation_data=validation, epochs=2)
        logs.append(recorder.log())
    assert logs[0].activation_table.shape[0] == 16
    np.testing.assert_array_equal(logs[0].activation_table, logs[1].activation_table)


# ---- nothing else notices ----

# Blocks, eager, XLA and mixed precision stand in test_gradient_stats.py.

MODELS: dict[str, tuple[Callable[[], keras.Model], Any, dict[str, Any]]] = {
    "functional": (build_functional, make_data, {}),
    "own train step": (OwnStepModel, make_data, {}),
    "lstm": (lambda: build_tokens("lstm"), make_tokens, {}),
    "attention": (lambda: build_tokens("attention"), make_tokens, {}),
    "unbuilt": (
        lambda: keras.Sequential([keras.layers.Dense(3, "relu"), keras.layers.Dense(1)]),
        make_data,
        {},
    ),
    "several steps at once": (build_functional, make_data, {"steps_per_execution": 4}),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_the_same_with_activations_and_without(name: str, tmp_path: Path) -> None:
    build, data, options = MODELS[name]
    results = []
    for is_recorded in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(build(), optimizer=keras.optimizers.Adam(0.01), **options)
        if is_recorded:
            log, found_numbers = record(model, tmp_path, data(), window_steps=4)
        else:
            fit(model, data=data())
            found_numbers = numbers(model)
        results.append(found_numbers)
    assert_same(results[1], results[0])
    assert len(log.header.activations) >= 1
    assert np.isfinite(log.activation("std/max")).all()


def test_after_an_exception_close_leaves_model_and_layers_as_without_it(tmp_path: Path) -> None:
    attributes = []
    for recorder in (GradientRecorder(tmp_path), None):
        model = compiled(build_functional())
        with pytest.raises(RuntimeError, match="pulled the plug"):
            fit(model, Breaker(), *([recorder] if recorder else []))
        if recorder:
            recorder.close()
        attributes.append([set(vars(each)) for each in (model, *model.layers)])
    assert attributes[0] == attributes[1]


def test_a_recorder_left_by_an_exception_is_taken_off_by_the_next(tmp_path: Path) -> None:
    model = compiled(build_dense())
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(model, Breaker(), GradientRecorder(tmp_path / "first"))
    # A new optimizer knows nothing of the old hook.
    compiled(model)
    log, _ = record(model, tmp_path / "second")
    assert np.isfinite(log.activation("mean/max")).all()
    assert "train_step" not in vars(model)
    assert not any("call" in vars(layer) for layer in model.layers)


def test_a_call_that_someone_put_on_a_layer_is_put_back(tmp_path: Path) -> None:
    model = compiled(build_dense())
    layer = model.get_layer("first")
    stock = layer.call
    layer.call = own = lambda inputs, **options: 2 * stock(inputs, **options)
    record(model, tmp_path)
    assert layer.call is own


# ---- which pass was it? ----


@pytest.mark.parametrize("activations_every", [100, 0])
def test_a_forward_pass_that_is_not_finite_is_named_out_of_turn_and_over_all_images(
    activations_every: int, tmp_path: Path
) -> None:
    x, y = make_data()
    x[5 * BATCH_SIZE + 3] = np.inf
    x[5 * BATCH_SIZE + 3, 0] = -np.inf
    messages: list[str] = []
    recorder = GradientRecorder(
        tmp_path,
        window_steps=1,
        activations_every_steps=activations_every,
        activation_images=1,
        warn=messages.append,
    )
    fit(compiled(build_dense()), recorder, data=(x, y))
    assert ("/first is not (learning rate" in messages[0]) == bool(activations_every)
    if activations_every:
        counts = recorder.log().activation("nonfinite_count/max")[:, 0]
        # At its turn, and from the bad step on.
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(counts)), [0, 5, 6, 7])
        assert counts[5] > 0


def test_a_backward_pass_that_is_not_finite_leaves_the_outputs_finite(tmp_path: Path) -> None:
    @tf.custom_gradient
    def spoil(values: tf.Tensor) -> Any:
        return tf.identity(values), lambda upstream: upstream * np.float32(np.nan)

    inputs = keras.Input((5,))
    x = keras.layers.Dense(3, activation="relu", name="hidden")(inputs)
    x = keras.layers.Lambda(spoil, output_shape=(3,))(x)
    model = compiled(keras.Model(inputs, keras.layers.Dense(1)(x)))
    messages: list[str] = []
    recorder = GradientRecorder(tmp_path, window_steps=1, warn=messages.append)
    fit(model, recorder)
    assert messages[0].startswith("warning: step 0: the gradient of hidden/kernel and 1 more is ")
    assert "; the recorded layers' outputs are all finite (learning rate" in messages[0]


def test_of_a_large_map_only_the_first_images_are_looked_at() -> None:
    values = np.random.default_rng(0).normal(size=(16, 32, 32, 16)).astype(np.float32)
    changed = values.copy()
    changed[4:] = 100  # four images hold 65,536 values

    parts, same = (
        activation_parts([[tf.constant(each)]], [None], 16).numpy() for each in (values, changed)
    )

    np.testing.assert_array_equal(parts, same)
    np.testing.assert_allclose(parts[0, :2], [4 * 32 * 32 * 16, values[:4].mean()], rtol=1e-4)
