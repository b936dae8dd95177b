from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from recorded_models import (
    BATCH_SIZE,
    NUM_IMAGES,
    LateLayerModel,
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

from trainer import GradientRecorder


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


class HeadFirstModel(UnbuiltModel):
    """Trains its last layer alone."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            loss = self.optimizer.scale_loss(loss)
        weights = self.last.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


MODELS: dict[str, Callable[[], keras.Model]] = {
    "sequential": build_dense,
    "functional": build_functional,
    "subclassed": UnbuiltModel,
    "partly built": LateLayerModel,
    "own train step": OwnStepModel,
    "embedding": lambda: build_tokens("embedding"),
    "lstm": lambda: build_tokens("lstm"),
    "gru": lambda: build_tokens("gru"),
    "attention": lambda: build_tokens("attention"),
}


def data_for(name: str) -> tuple[np.ndarray, np.ndarray]:
    return make_tokens() if name in ("embedding", "lstm", "gru", "attention") else make_data()


def norms_by_tape(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[float]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
    grads = tape.gradient(loss, model.trainable_variables)
    arrays = [np.asarray(tf.convert_to_tensor(g), np.float64) for g in grads]
    return [float(np.sqrt(np.sum(a**2))) for a in arrays]


@pytest.mark.parametrize("name", MODELS)
def test_any_model_trains_the_same_and_is_recorded_right(name: str, tmp_path: Path) -> None:
    data = data_for(name)
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(MODELS[name](), optimizer=keras.optimizers.Adam(0.01, clipnorm=0.5))
        recorder = GradientRecorder(tmp_path, window_steps=1, moments_every_steps=1)
        fit(model, *([recorder] if record else []), data=data)
        results.append(numbers(model))
    assert_same(results[1], results[0])

    log = recorder.log()
    assert log.header.paths == tuple(v.path for v in model.trainable_variables)
    assert all(variable.connected for variable in log.header.variables)
    keras.utils.set_random_seed(0)
    twin = MODELS[name]()
    twin(data[0][:1])
    first = norms_by_tape(twin, data[0][:BATCH_SIZE], data[1][:BATCH_SIZE])
    # The step is compiled, the tape is not: rounding differs.
    np.testing.assert_allclose(log.stat("raw_norm/max")[0], first, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["embedding", "lstm", "attention"])
def test_recording_under_xla_works_where_training_does(name: str, tmp_path: Path) -> None:
    model = compiled(MODELS[name](), jit_compile=True)
    recorder = GradientRecorder(tmp_path, window_steps=4)
    fit(model, recorder, data=data_for(name))
    assert len(recorder.log().steps) == 8
    assert np.isfinite(recorder.log().stat("raw_norm/max")).all()


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
def test_loss_scaling_of_a_model_that_is_not_built_yet_is_seen_from_the_first_step(
    eager: bool, tmp_path: Path
) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(UnbuiltModel(), run_eagerly=eager)
        recorder = GradientRecorder(tmp_path, window_steps=1)
        fit(model, recorder)
    finally:
        keras.config.set_dtype_policy("float32")
    steps = recorder.log().steps
    np.testing.assert_array_equal(steps["loss_scale"], 2.0**15)
    assert steps["raw_norm"].max() < 100


def test_the_steps_own_loss_is_recorded_and_not_the_running_mean(tmp_path: Path) -> None:
    x, y = make_data()
    model = compiled(build_dense(), optimizer=keras.optimizers.SGD(0.0))
    recorder = GradientRecorder(tmp_path)
    fit(model, recorder)
    expected = [np.mean((model.predict(x[i : i + 4], verbose=0) - y[i : i + 4]) ** 2)
                for i in range(0, NUM_IMAGES, 4)]  # fmt: skip
    np.testing.assert_allclose(recorder.log().steps["loss"], expected, rtol=1e-5)


def test_a_train_step_that_hides_its_loss_is_no_reason_to_stop(tmp_path: Path) -> None:
    model = compiled(OwnStepModel())
    warnings: list[str] = []
    recorder = GradientRecorder(tmp_path, on_error="stop", warn=warnings.append)
    fit(model, recorder)
    log = recorder.log()
    assert not log.header.has_loss
    assert np.isnan(log.steps["loss"]).all()
    assert np.isfinite(log.steps["raw_norm"]).all()
    assert not warnings


def test_a_train_step_may_train_some_of_the_variables(tmp_path: Path) -> None:
    model = compiled(HeadFirstModel())
    recorder = GradientRecorder(tmp_path, window_steps=1)
    fit(model, recorder)
    log = recorder.log()
    assert log.header.paths == tuple(v.path for v in model.last.trainable_variables)
    assert (log.stat("raw_norm/max") > 0).all()


def test_a_train_step_that_applies_twice_is_refused_with_the_rule(tmp_path: Path) -> None:
    class TwiceModel(HeadFirstModel):
        def train_step(self, data: Any) -> dict[str, Any]:
            super().train_step(data)
            return super().train_step(data)

    model = compiled(TwiceModel())
    with pytest.raises(ValueError, match="must apply gradients once to be recorded"):
        fit(model, GradientRecorder(tmp_path, window_steps=4))


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
def test_a_disconnected_variable_is_recorded_as_zeros_and_marked(tmp_path: Path) -> None:
    class Disconnected(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.used = keras.layers.Dense(1)
            self.unused = self.add_weight(shape=(3, 3), name="unused", initializer="ones")

        def call(self, inputs: Any) -> Any:
            return self.used(inputs)

    model = compiled(Disconnected())
    recorder = GradientRecorder(tmp_path, window_steps=1, moments_every_steps=1)
    fit(model, recorder)
    log = recorder.log()
    connected = {v.path.split("/")[-1]: v.connected for v in log.header.variables}
    assert connected == {"unused": False, "kernel": True, "bias": True}
    index = [path.endswith("unused") for path in log.header.paths].index(True)
    for name in ("raw_norm/max", "clipped_norm/max", "update_norm/max", "raw_max_abs"):
        np.testing.assert_array_equal(log.stat(name)[:, index], 0)
    np.testing.assert_array_equal(log.stat("raw_zero_fraction")[:, index], 1)
    np.testing.assert_allclose(log.stat("weight_norm/max")[:, index], 3)


def test_frozen_layers_are_not_recorded_until_they_are_thawed(tmp_path: Path) -> None:
    model = build_dense()
    model.get_layer("first").trainable = False
    recorder = GradientRecorder(tmp_path)
    fit(compiled(model), recorder)
    assert {path.split("/")[-2] for path in recorder.log().header.paths} == {"last"}
    model.get_layer("first").trainable = True
    fit(compiled(model), recorder)
    assert len(recorder.log().header.paths) == 4


def test_a_model_without_trainable_weights_leaves_no_log(tmp_path: Path) -> None:
    model = build_dense()
    model.trainable = False
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        fit(compiled(model), GradientRecorder(tmp_path / "gradients"))
    assert not (tmp_path / "gradients").exists()


def test_tf_data_and_sample_weights_are_recorded_as_they_train(tmp_path: Path) -> None:
    x, y = make_data()
    weights = np.linspace(0, 2, NUM_IMAGES).astype(np.float32)
    logs = []
    for record in (True, False):
        keras.utils.set_random_seed(0)
        model = compiled(build_dense())
        dataset = tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(BATCH_SIZE)
        recorder = GradientRecorder(tmp_path)
        model.fit(dataset, shuffle=False, verbose=0, callbacks=[recorder] if record else [])
        logs.append(numbers(model))
    assert_same(*logs)
    assert len(recorder.log().steps) == 8


def test_a_smaller_last_batch_is_a_step_like_any_other(tmp_path: Path) -> None:
    model = compiled(build_dense())
    recorder = GradientRecorder(tmp_path)
    fit(model, recorder, batch_size=5)
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(7))


def test_gradient_accumulation_is_recorded_a_micro_batch_at_a_time(tmp_path: Path) -> None:
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
        model = compiled(build_dense(), optimizer=optimizer)
        recorder = GradientRecorder(tmp_path, window_steps=1)
        fit(model, *([recorder] if record else []))
        results.append(numbers(model))
    assert_same(results[1], results[0])
    log = recorder.log()
    assert (log.steps["raw_norm"] > 0).all()
    np.testing.assert_array_equal(log.steps["update_norm"] > 0, [0, 0, 0, 1, 0, 0, 0, 1])
    # Keras counts every micro-batch as an iteration: none is a skipped step.
    np.testing.assert_array_equal(log.steps["skipped"], 0)


def test_a_moving_average_of_weights_is_untouched(tmp_path: Path) -> None:
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        optimizer = keras.optimizers.Adam(
            0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
        )
        model = compiled(build_dense(), optimizer=optimizer)
        recorder = GradientRecorder(tmp_path, window_steps=1)
        fit(model, *([recorder] if record else []), epochs=2)
        results.append(numbers(model))
    assert_same(results[1], results[0])
    assert len(recorder.log().steps) == 16


def test_weight_constraints_count_as_part_of_the_update(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(1, kernel_constraint=keras.constraints.MaxNorm(0.1))]
    )
    before = model.layers[0].kernel.numpy()
    recorder = GradientRecorder(tmp_path, window_steps=1)
    fit(compiled(model), recorder, batch_size=NUM_IMAGES)
    moved = np.linalg.norm(model.layers[0].kernel.numpy() - before)
    assert recorder.log().stat("update_norm/max")[0, 0] == pytest.approx(moved, rel=1e-5)
