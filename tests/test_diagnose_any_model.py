"""The monitor on models and a `fit` that are not ours: silent on healthy ones, and not on ill ones.

Each network is tiny and trains for some hundred steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from recorded_models import OwnStep

from trainer import GradientRecorder
from trainer.diagnosis import signal_rules
from trainer.diagnosis.finding import Remedy
from trainer.diagnosis.in_words import _WORDS, in_words
from trainer.diagnosis.judge import Diagnosis

Data = tuple[np.ndarray, np.ndarray]
WINDOW_STEPS = 10


def blobs() -> Data:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 400)
    centres = random.normal(0, 2, (4, 16))
    return (centres[labels] + random.normal(0, 0.5, (400, 16))).astype("float32"), labels


def lines() -> Data:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 16))
    y = 100 * (x @ random.normal(size=(16, 1)) + random.normal(size=(400, 1)))
    return x.astype("float32"), y.astype("float32")


def series(time: int = 12) -> Data:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 400)
    x = random.normal(size=(4, 8))[labels][:, None] + random.normal(size=(400, time, 8))
    return x.astype("float32"), labels


def memories() -> Data:
    """Only the first of 200 time steps tells the label."""
    x = np.random.default_rng(0).normal(size=(200, 200, 2)).astype("float32")
    return x, (x[:, 0, 0] > 0).astype("int32")


def tokens() -> Data:
    x = np.random.default_rng(0).integers(1, 20, (400, 10)).astype("int32")
    return x, (np.sum(x < 10, axis=1) > 5).astype("int32")


def binary_codes() -> Data:
    code = (np.random.default_rng(1).random((4, 16)) > 0.5).astype("float32")
    x = code[np.random.default_rng(0).integers(0, 4, 400)]
    return x, x


def dense(*hidden: str, last: str | None = None, units: int = 4, **options: Any) -> keras.Model:
    stack = [layers.Dense(16, activation, **options) for activation in hidden]
    return keras.Sequential([keras.Input((16,)), *stack, layers.Dense(units, last)])


def recurrent(
    kind: type[layers.RNN],
    depth: int = 1,
    features: int = 8,
    both: bool = False,
    units: int = 4,
    **options: Any,
) -> keras.Model:
    inputs = x = keras.Input((None, features))
    for index in range(depth):
        layer = kind(8, return_sequences=index < depth - 1, **options)
        x = (layers.Bidirectional(layer) if both else layer)(x)
    return keras.Model(inputs, layers.Dense(units)(x))


def transformer(last: str | None = "softmax", **options: Any) -> keras.Model:
    inputs = keras.Input((10,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs) + layers.Embedding(10, 8)(ops.arange(10))
    normal = layers.LayerNormalization()(x)
    x += layers.MultiHeadAttention(2, 4, **options)(normal, normal)
    x += layers.Dense(8)(layers.Dense(16, "gelu")(layers.LayerNormalization()(x)))
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(2, last)(pooled))


class OwnAttention(layers.Layer):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.maps = [layers.Dense(8) for _ in range(3)]

    def call(self, x: Any) -> Any:
        query, key, value = (each(x) for each in self.maps)
        logits = ops.matmul(query, ops.swapaxes(key, 1, 2)) / 8**0.5
        return x + ops.matmul(ops.softmax(self.scale * logits), value)


def own_attention(scale: float) -> keras.Model:
    inputs = keras.Input((12, 8))
    x = OwnAttention(scale)(layers.LayerNormalization()(layers.Dense(8)(inputs)))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def convolutions() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16,)),
            layers.Reshape((16, 1)),
            layers.Conv1D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.SeparableConv1D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(4, "softmax"),
        ]
    )


class HeadFirst(keras.Model):
    """Makes its last layer first, and its first one last."""

    def __init__(self, activation: str = "relu", depth: int = 4) -> None:
        super().__init__()
        self.head = layers.Dense(4, name="head")
        self.hidden = [layers.Dense(16, activation, name=f"hidden{i}") for i in range(depth)]

    def call(self, x: Any) -> Any:
        for layer in reversed(self.hidden):
            x = layer(x)
        return self.head(x)


class OwnHeadFirst(OwnStep, HeadFirst):
    """Does not tell its loss to the optimizer."""


def in_policy(policy: str, build: Callable[[], keras.Model]) -> keras.Model:
    keras.config.set_dtype_policy(policy)
    try:
        return build()
    finally:
        keras.config.set_dtype_policy("float32")


def adam(rate: float = 3e-3) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(rate)


def sgd(rate: float = 0.05, **options: Any) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(rate, **options)


def normal(deviation: float) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=deviation, seed=0)


LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SHARES = "sparse_categorical_crossentropy"

Case = tuple[Callable[[], keras.Model], Callable[[], Any], Any, Callable[[], Data], int]
HEALTHY: dict[str, Case] = {
    "converged": (
        lambda: dense("relu", last="softmax"), lambda: sgd(0.3, momentum=0.9), SHARES, blobs, 20
    ),
    "sigmoid outputs": (
        lambda: dense("relu", last="sigmoid", units=16),
        lambda: adam(0.02), "binary_crossentropy", binary_codes, 12,
    ),
    "noisy regression": (lambda: dense("relu", units=1), lambda: adam(0.02), "mse", lines, 8),
    "negative loss": (
        lambda: dense("relu", units=16), adam, "cosine_similarity",
        lambda: (blobs()[0], blobs()[0]), 6,
    ),
    "convolution": (convolutions, adam, SHARES, blobs, 3),
    "lstm": (lambda: recurrent(layers.LSTM), lambda: adam(0.01), LOGITS, series, 6),
    "bidirectional": (
        lambda: recurrent(layers.SimpleRNN, both=True), adam, LOGITS, series, 6
    ),
    "mixed_float16": (
        lambda: in_policy("mixed_float16", transformer), adam, SHARES, tokens, 3
    ),
    "own attention": (lambda: own_attention(1.0), adam, LOGITS, series, 3),
    "own step": (OwnHeadFirst, adam, LOGITS, blobs, 3),
}  # fmt: skip
DEAD = keras.initializers.Constant(-50.0)
ILL: dict[str, tuple[Case, str]] = {
    "subclassed sigmoids": (
        (lambda: HeadFirst("sigmoid", 20), sgd, LOGITS, blobs, 3), "vanishing",
    ),
    "loud recurrence": (
        (
            lambda: recurrent(layers.SimpleRNN, 2, 2, recurrent_initializer=normal(3.0)),
            adam, LOGITS, memories, 3,
        ),
        "saturated",
    ),
    "forgetful recurrence": (
        (
            lambda: recurrent(
                layers.SimpleRNN, 1, 2, units=2, recurrent_initializer=normal(1e-3)
            ),
            lambda: sgd(0.01), LOGITS, memories, 10,
        ),
        "plateau",
    ),
    "shut gates inside": (
        (
            lambda: recurrent(layers.GRU, both=True, kernel_initializer=normal(30.0)),
            adam, LOGITS, series, 3,
        ),
        "saturated",
    ),
    "a far too large rate": (
        (lambda: recurrent(layers.LSTM), lambda: adam(100.0), LOGITS, series, 2), "large_updates",
    ),
    "dead": (
        (lambda: dense("relu", "relu", bias_initializer=DEAD), adam, LOGITS, blobs, 3), "dead"
    ),
    "attention to one": ((lambda: own_attention(1000.0), adam, LOGITS, series, 3), "saturated"),
    "loud attention": (
        (lambda: transformer(kernel_initializer=normal(5.0)), adam, SHARES, tokens, 3),
        "saturated",
    ),
    "a far too small rate": (
        (lambda: transformer(), lambda: adam(1e-9), SHARES, tokens, 3), "small_updates",
    ),
    "steps lost in rounding": (
        (lambda: dense("relu", "relu"), lambda: sgd(1e-11), LOGITS, blobs, 3), "small_updates",
    ),
    "regression that bursts": (
        (lambda: dense("relu", units=1), lambda: sgd(1.0), "mse", lines, 2), "nonfinite"
    ),
}  # fmt: skip


def fitted(case: Case, folder: Path) -> GradientRecorder:
    build, optimizer, loss, make_data, epochs = case
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(optimizer(), loss, jit_compile=False)
    recorder = GradientRecorder(
        folder,
        window_steps=WINDOW_STEPS,
        moments_every_steps=5,
        activations_every_steps=5,
        warn=lambda text: None,
    )
    x, y = make_data()
    model.fit(x, y, batch_size=20, epochs=epochs, verbose=0, callbacks=[recorder])
    return recorder


def errors_of(diagnosis: Diagnosis) -> list[str]:
    return [each.rule for each in diagnosis.findings if each.severity == "error"]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_has_no_error(name: str, tmp_path: Path) -> None:
    diagnosis = fitted(HEALTHY[name], tmp_path).diagnose()
    assert errors_of(diagnosis) == [], str(diagnosis)
    assert diagnosis.num_rules > 5


@pytest.mark.parametrize("name", ILL)
def test_what_a_model_suffers_from_is_found(name: str, tmp_path: Path) -> None:
    case, rule = ILL[name]
    diagnosis = fitted(case, tmp_path).diagnose()
    assert rule in errors_of(diagnosis), str(diagnosis)


def test_examples_that_are_not_numbers_are_found(tmp_path: Path) -> None:
    def data() -> Data:
        x, y = blobs()
        x[7] = np.nan
        return x, y

    recorder = fitted((lambda: dense("relu"), adam, LOGITS, data, 6), tmp_path)
    assert errors_of(recorder.diagnose())[0] == "nonfinite"


def test_the_first_kernel_is_the_first_in_use_and_not_the_first_made(tmp_path: Path) -> None:
    header = fitted((HeadFirst, adam, LOGITS, blobs, 1), tmp_path).log().header
    used = [header.paths[index].split("/")[-2] for index in header.kernels]
    assert used == ["hidden3", "hidden2", "hidden1", "hidden0", "head"]


def test_biases_of_two_axes_are_no_kernels(tmp_path: Path) -> None:
    def build() -> keras.Model:
        inputs = keras.Input((12, 8))
        x = layers.GRU(8, return_sequences=True)(inputs)
        x = layers.MultiHeadAttention(2, 4)(x, x)
        return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))

    header = fitted((build, adam, LOGITS, series, 1), tmp_path).log().header
    assert sum(len(each.shape) > 1 and "bias" in each.path for each in header.variables) == 4
    kernels = [header.paths[index] for index in header.kernels]
    assert len(kernels) == 2 + 4 + 1
    assert not any("bias" in path for path in kernels)


def test_only_what_makes_the_answer_is_marked_as_output(tmp_path: Path) -> None:
    def build() -> keras.Model:
        model = dense("tanh", last="sigmoid", units=16)
        model.add(layers.Reshape((4, 4)))
        return model

    data = (blobs()[0], binary_codes()[0].reshape(-1, 4, 4))
    case = (build, adam, "binary_crossentropy", lambda: data, 1)
    header = fitted(case, tmp_path).log().header
    assert len(header.activations) == 2
    assert header.outputs == (header.activations[1],)


def test_the_gates_of_an_lstm_are_those_of_its_last_step(tmp_path: Path) -> None:
    case: Case = (
        lambda: recurrent(layers.LSTM, kernel_initializer=normal(8.0)), lambda: sgd(0.0),
        LOGITS, lambda: tuple(each[:20] for each in series()), 1,
    )  # fmt: skip
    recorder = fitted(case, tmp_path)
    found = recorder.log().activation("saturated_fraction/max")[0, 0]
    cell = recorder.model.layers[1].cell
    x = case[3]()[0][:16]
    state = np.asarray(recorder.model.layers[1](x), np.float64)
    kernel, recurrent_kernel, bias = (np.asarray(w, np.float64) for w in cell.get_weights())
    logits = x[:, -1] @ kernel + state @ recurrent_kernel + bias
    forward, forget, _, out = np.split(1 / (1 + np.exp(-logits)), 4, axis=1)
    gates = np.concatenate([forward, forget, out])
    assert 0.3 < found < 0.95
    # Images are shuffled, and 16 of the 20 are looked at.
    assert found == pytest.approx(np.mean(gates * (1 - gates) < 0.01), abs=0.1)


def test_a_diagnosis_in_the_middle_of_a_fit_is_of_what_was_recorded_so_far(
    tmp_path: Path,
) -> None:
    last_steps = []

    class Ask(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            assert recorder.diagnose().num_rules
            last_steps.append(int(recorder.log().steps["step"][-1]))

    model = dense("relu")
    model.compile(adam(), LOGITS)
    recorder = GradientRecorder(tmp_path, window_steps=WINDOW_STEPS)
    model.fit(*blobs(), batch_size=20, epochs=3, verbose=0, callbacks=[Ask(), recorder])
    assert last_steps == [19, 39, 59]


def test_without_a_step_of_the_models_optimizer_it_says_so(tmp_path: Path) -> None:
    class OtherOptimizer(HeadFirst):
        def train_step(self, data: Any) -> dict[str, Any]:
            return {"loss": self.compute_loss(data[0], data[1], self(data[0], training=True))}

    recorder = fitted((OtherOptimizer, adam, LOGITS, blobs, 1), tmp_path)
    diagnosis = recorder.diagnose()
    assert diagnosis.exit_code == 2
    assert "apply" in diagnosis.not_judged["vanishing"]


def test_without_a_config_remedies_are_words(tmp_path: Path) -> None:
    diagnosis = fitted(
        (lambda: dense(*["sigmoid"] * 20), adam, LOGITS, blobs, 2), tmp_path
    ).diagnose()
    text = str(diagnosis)
    assert text.startswith("ERROR vanishing: ")
    assert "--set" not in text
    assert "try a residual connection around each block" in text
    assert max(map(len, text.splitlines())) <= 80
    for finding in diagnosis.as_json()["findings"]:
        assert all(not r["patch"] and not r["options"] for r in finding["remedies"])


def test_every_key_that_a_rule_sets_has_words() -> None:
    used = set()
    for path in Path(signal_rules.__file__).parent.glob("*_rules.py"):
        pattern = r'[{(,]\s*f?"((?:model|optimizer|schedule|data|fit|runtime)\.[a-z_.]+)"'
        used |= set(re.findall(pattern, path.read_text()))
    assert len(used) > 10
    assert used <= set(_WORDS)


def test_words_name_the_values() -> None:
    remedy = Remedy("why", {"model.block.normalization": {"batch": {"momentum": 0.9}}})
    assert in_words(remedy).why == (
        "batch normalization in front of each activation with a momentum of 0.9: why"
    )
    assert in_words(Remedy("why", {"optimizer.clipnorm": None})).why == "no clipnorm: why"
