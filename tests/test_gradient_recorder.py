from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import GradientRecorder
from trainer.errors import NonFiniteError
from trainer.gradient_hook import StepHook, StepRecorder

NUM_IMAGES = 32
BATCH_SIZE = 4  # 8 steps an epoch


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


def make_data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(NUM_IMAGES, 5)).astype(np.float32),
        generator.normal(size=(NUM_IMAGES, 1)).astype(np.float32),
    )


def make_tokens() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    # Few tokens: every batch repeats some.
    return (
        generator.integers(0, 6, (NUM_IMAGES, 7)).astype(np.int32),
        generator.normal(size=(NUM_IMAGES, 1)).astype(np.float32),
    )


def build_dense() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, activation="tanh", name="first"),
            keras.layers.Dense(1, name="last"),
        ]
    )


def compiled(model: keras.Model, **options: Any) -> keras.Model:
    options = {"optimizer": keras.optimizers.SGD(0.1), "jit_compile": False, **options}
    model.compile(loss="mse", **options)
    return model


def fit(
    model: keras.Model, *callbacks: keras.callbacks.Callback, data: Any = None, **options: Any
) -> keras.callbacks.History:
    x, y = make_data() if data is None else data
    options = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, callbacks=list(callbacks), **options)


def numbers(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- any Keras model ----


class UnbuiltModel(keras.Model):
    """Subclassed; its variables come to be in the first step of `fit`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = keras.layers.Dense(4, activation="tanh")
        self.last = keras.layers.Dense(1, dtype="float32")

    def call(self, inputs: Any) -> Any:
        return self.last(self.first(inputs))


class LateLayerModel(UnbuiltModel):
    """Says that it is built when only its first layer is."""

    def build(self, input_shape: Any) -> None:
        self.first.build(input_shape)
        self.built = True


class OwnStepModel(UnbuiltModel):
    """Has the train step of Keras' guide: it knows nothing of loss scaling."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        weights = self.trainable_variables
        grads = tape.gradient(loss, weights)
        self.optimizer.apply_gradients(zip(grads, weights, strict=True))
        return {"loss": loss}


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


def build_functional() -> keras.Model:
    inputs = keras.Input((5,))
    x = keras.layers.Dense(5, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x + inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.3)(x)))


def build_tokens(kind: str) -> keras.Model:
    inputs = keras.Input((7,), dtype="int32")
    x = keras.layers.Embedding(10, 4)(inputs)
    if kind == "attention":
        x = keras.layers.MultiHeadAttention(2, 2)(x, x)
    elif kind == "lstm":
        x = keras.layers.LSTM(3, return_sequences=True)(x)
    elif kind == "gru":
        x = keras.layers.GRU(3, return_sequences=True)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


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


# ---- what is left behind: nothing ----


def test_the_model_is_as_before_after_fit(tmp_path: Path) -> None:
    model = compiled(build_dense(), optimizer=keras.optimizers.Adam())
    fit(model)
    attributes = set(vars(model.optimizer))
    paths = [v.path for v in (*model.variables, *model.optimizer.variables)]
    fit(model, GradientRecorder(tmp_path))
    assert set(vars(model.optimizer)) == attributes
    assert [v.path for v in (*model.variables, *model.optimizer.variables)] == paths
    assert not isinstance(getattr(model.optimizer.apply, "__self__", None), StepHook)


def test_a_fit_after_the_recorded_one_records_nothing(tmp_path: Path) -> None:
    model = compiled(build_dense())
    recorder = GradientRecorder(tmp_path)
    fit(model, recorder)
    size = (tmp_path / "windows.bin").stat().st_size
    fit(model)
    assert (tmp_path / "windows.bin").stat().st_size == size


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_two_fits_in_a_row_train_as_without_the_recorder(precision: str, tmp_path: Path) -> None:
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(precision)
        try:
            model = compiled(UnbuiltModel(), optimizer=keras.optimizers.Adam(0.01))
        finally:
            keras.config.set_dtype_policy("float32")
        recorder = GradientRecorder(tmp_path)
        for _ in range(2):
            fit(model, *([recorder] if record else []))
        results.append(numbers(model))
    assert_same(results[1], results[0])
    # The second log has replaced the first.
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(8))


def test_a_resumed_training_continues_the_log(tmp_path: Path) -> None:
    model = compiled(build_dense())
    fit(model, GradientRecorder(tmp_path))
    recorder = GradientRecorder(tmp_path, first_step=8)
    fit(model, recorder)
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(16))


class Saver(keras.callbacks.Callback):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 4:
            self.model.save(self.path)


def test_a_file_saved_during_fit_holds_nothing_of_the_recorder(tmp_path: Path) -> None:
    paths = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(build_dense(), optimizer=keras.optimizers.Adam())
        path = tmp_path / f"{record}.keras"
        recorder = GradientRecorder(tmp_path / "log", window_steps=4)
        fit(model, Saver(path), *([recorder] if record else []))
        paths.append(path)
        loaded = keras.saving.load_model(path)
        assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    members = []
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            members.append(sorted(archive.namelist()))
            config = archive.read("config.json")
            assert b"recorder" not in config.lower() and b"hook" not in config.lower()
    assert members[0] == members[1]
    assert_same(*[numbers(keras.saving.load_model(path)) for path in paths])


def test_the_callback_can_be_copied_before_fit(tmp_path: Path) -> None:
    recorder = GradientRecorder(tmp_path, window_steps=4)
    for twin in (copy.deepcopy(recorder), copy.copy(recorder)):
        fit(compiled(build_dense()), twin)
        assert len(twin.log().steps) == 8


class Breaker(keras.callbacks.Callback):
    """Breaks the first fit in its sixth step."""

    def __init__(self) -> None:
        super().__init__()
        self.is_done = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 5 and not self.is_done:
            self.is_done = True
            raise RuntimeError("pulled the plug")


@pytest.mark.parametrize("same_recorder", [True, False])
def test_a_fit_that_raised_does_not_disturb_the_next(same_recorder: bool, tmp_path: Path) -> None:
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(build_dense(), optimizer=keras.optimizers.Adam(0.01))
        recorder = GradientRecorder(tmp_path, window_steps=2)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            fit(model, Breaker(), *([recorder] if record else []))
        fit(model)
        if not same_recorder:
            recorder = GradientRecorder(tmp_path, window_steps=2)
        fit(model, *([recorder] if record else []))
        results.append(numbers(model))
    assert_same(results[1], results[0])
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(8))
    assert not isinstance(getattr(model.optimizer.apply, "__self__", None), StepHook)


def test_close_after_a_fit_that_raised_keeps_what_was_recorded(tmp_path: Path) -> None:
    model = compiled(build_dense())
    recorder = GradientRecorder(tmp_path)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(model, Breaker(), recorder)
    recorder.close()
    recorder.close()
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(5))
    assert "apply" not in vars(model.optimizer)


# ---- non-finite values ----


def poisoned_data(first_bad_step: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_data()
    x[first_bad_step * BATCH_SIZE] = np.nan
    return x, y


@pytest.mark.parametrize("window_steps", [1, 4, 50])
def test_stop_names_the_first_bad_step_and_leaves_a_clean_model(
    window_steps: int, tmp_path: Path
) -> None:
    model = compiled(build_dense())
    recorder = GradientRecorder(tmp_path, window_steps=window_steps, on_error="stop")
    with pytest.raises(NonFiniteError, match=r"^step 5: the loss is nan and the gradient of "):
        fit(model, recorder, data=poisoned_data(5))
    assert "apply" not in vars(model.optimizer)
    assert model.train_function is None
    log = recorder.log()
    np.testing.assert_array_equal(np.isnan(log.steps["loss"]), log.steps["step"] >= 5)
    assert 5 in log.steps["step"]


def test_warn_says_so_once(tmp_path: Path) -> None:
    messages: list[str] = []
    recorder = GradientRecorder(tmp_path, window_steps=1, warn=messages.append)
    fit(compiled(build_dense()), recorder, data=poisoned_data(2), epochs=2)
    assert len(messages) == 1
    assert messages[0].startswith("warning: step 2: the loss is nan and the gradient of ")


def test_steps_skipped_by_loss_scaling_are_in_order(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = UnbuiltModel()
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=2.0**18
    )
    recorder = GradientRecorder(tmp_path, window_steps=2, on_error="stop")
    fit(compiled(model, optimizer=optimizer), recorder)
    steps = recorder.log().steps
    assert steps["skipped"][0] == 1 and steps["skipped"][-1] == 0
    assert not np.isfinite(steps["raw_norm"][0])
    np.testing.assert_array_equal(steps["update_norm"][steps["skipped"] == 1], 0)


def test_the_health_figure_reaches_history(tmp_path: Path) -> None:
    recorder = GradientRecorder(tmp_path)
    history = fit(compiled(build_dense()), recorder, epochs=2)
    norms = recorder.log().stat("raw_norm/median")[-1]
    expected = norms[0] / norms[2]
    assert history.history["first_to_last_grad"][-1] == pytest.approx(expected, rel=1e-6)
    assert recorder.health == history.history["first_to_last_grad"][-1]


# ---- when the host looks ----


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many steps each read of the window buffer takes."""
    taken: list[int] = []
    read = StepRecorder.read

    def spy(self: StepRecorder) -> Any:
        window = read(self)
        taken.append(len(window))
        return window

    monkeypatch.setattr(StepRecorder, "read", spy)
    return taken


def test_no_callback_at_the_end_of_a_batch() -> None:
    # With one, Keras waits for the device at every step.
    for name in ("on_train_batch_end", "on_batch_end"):
        assert getattr(GradientRecorder, name) is getattr(keras.callbacks.Callback, name)


def test_the_host_reads_once_a_window(reads: list[int], tmp_path: Path) -> None:
    fit(compiled(build_dense()), GradientRecorder(tmp_path, window_steps=4), epochs=3)
    # Two windows an epoch; the last read of all finds nothing left.
    assert reads == [4, 4, 4, 4, 4, 4, 0]


def test_a_window_never_spans_two_epochs(reads: list[int], tmp_path: Path) -> None:
    fit(compiled(build_dense()), GradientRecorder(tmp_path, window_steps=5), epochs=2)
    assert reads == [5, 3, 5, 3, 0]


def test_the_step_is_traced_as_often_as_without_the_recorder(tmp_path: Path) -> None:
    traces: list[int] = []

    class Traced(UnbuiltModel):
        def train_step(self, data: Any) -> Any:
            traces.append(1)
            return super().train_step(data)

    def count_traces(*recorders: keras.callbacks.Callback) -> list[int]:
        traces.clear()
        counts: list[int] = []
        counter = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: counts.append(len(traces))
        )
        fit(compiled(Traced()), counter, *recorders, epochs=3)
        return counts

    recorded = count_traces(GradientRecorder(tmp_path, window_steps=3, every_steps=2))
    assert recorded == count_traces()
    assert set(recorded[1:]) == {recorded[1]}


@pytest.mark.parametrize("execution_steps", [1, 4])
@pytest.mark.parametrize("every_steps", [1, 3, 5])
@pytest.mark.parametrize("window_steps", [4, 5, 50])
def test_every_nth_step_is_recorded_and_no_window_is_overrun(
    execution_steps: int, every_steps: int, window_steps: int, reads: list[int], tmp_path: Path
) -> None:
    model = compiled(build_dense(), steps_per_execution=execution_steps)
    recorder = GradientRecorder(tmp_path, window_steps=window_steps, every_steps=every_steps)
    # 6 steps of 5 images and one of 2: 7 steps an epoch, divisible by nothing above.
    fit(model, recorder, batch_size=5, epochs=3, validation_data=make_data())
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(0, 21, every_steps))
    assert max(reads) <= window_steps


def test_skipped_turns_leave_the_weights_alone_too(tmp_path: Path) -> None:
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(build_functional(), optimizer=keras.optimizers.Adam(0.01))
        recorder = GradientRecorder(tmp_path, every_steps=3)
        fit(model, *([recorder] if record else []))
        results.append(numbers(model))
    assert_same(results[1], results[0])


def test_a_window_shorter_than_an_execution_is_refused(tmp_path: Path) -> None:
    model = compiled(build_dense(), steps_per_execution=4)
    with pytest.raises(ValueError, match=r"must hold one execution\. Received: window_steps=3"):
        fit(model, GradientRecorder(tmp_path, window_steps=3))
    fit(model, GradientRecorder(tmp_path, window_steps=2, every_steps=2))


@pytest.mark.parametrize("every", [1, 3])
def test_moments_are_recorded_at_every_nth_recorded_step(every: int, tmp_path: Path) -> None:
    recorder = GradientRecorder(tmp_path, window_steps=1, moments_every_steps=every)
    fit(compiled(build_dense()), recorder)
    is_full = np.isfinite(recorder.log().stat("raw_mean")[:, 0])
    np.testing.assert_array_equal(is_full, [step % every == 0 for step in range(8)])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("every_steps", [1, 3])
def test_a_dataset_of_unknown_length_is_recorded_to_its_end_and_no_further(
    every_steps: int, tmp_path: Path
) -> None:
    x, y = make_data()

    def batches() -> Any:
        for start in range(0, NUM_IMAGES, BATCH_SIZE):
            yield x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]

    recorder = GradientRecorder(tmp_path, window_steps=3, every_steps=every_steps)
    # Keras finds the end by running into it.
    compiled(build_dense()).fit(batches(), shuffle=False, verbose=0, callbacks=[recorder])
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(0, 8, every_steps))


def test_the_log_does_not_grow_with_parameters(tmp_path: Path) -> None:
    sizes = []
    for width in (2, 64):
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(width),
                                  keras.layers.Dense(1)])  # fmt: skip
        fit(compiled(model), GradientRecorder(tmp_path / str(width)))
        sizes.append((tmp_path / str(width) / "windows.bin").stat().st_size)
    assert sizes[0] == sizes[1]
