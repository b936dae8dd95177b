"""Gradients of biases that lose digits in bfloat16 are named, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from bias_oracle import LOSES_DIGITS, error_of_sum
from keras import layers

from trainer import GradientRecorder
from trainer.bias_sums import summands_in_bfloat16
from trainer.convolution import Conv2D

SIDE = 16
IMAGES = SIDE * SIDE


def convolutions(kind: type[layers.Layer] = layers.Conv2D, normalized: bool = False) -> Any:
    def between() -> list[Any]:
        return [layers.BatchNormalization()] if normalized else []

    return keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            kind(4, 3, padding="same", name="first"),
            *between(),
            layers.ReLU(),
            kind(8, 3, padding="same", strides=2, name="second"),
            *between(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(1, name="head"),
        ]
    )


def findings(build: Callable[[], Any], policy: str, folder: Path, **options: Any) -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = build()
    finally:
        keras.config.set_dtype_policy("float32")
    random = np.random.default_rng(0)
    x = random.normal(size=(32, *model.input_shape[1:])).astype("float32")
    y = random.normal(size=(32, 1)).astype("float32")
    model.compile(optimizer="sgd", loss="mse", **{"jit_compile": False, **options})
    recorder = GradientRecorder(folder / "gradients", window_steps=5)
    model.fit(x, y, batch_size=2, epochs=1, verbose=0, callbacks=[recorder])
    return {each.rule: each for each in recorder.diagnose().findings}


def test_a_bias_whose_gradient_loses_digits_is_named(tmp_path: Path) -> None:
    found = findings(convolutions, "mixed_bfloat16", tmp_path)
    assert ("rounded_bias" in found) == LOSES_DIGITS
    if LOSES_DIGITS:
        finding = found["rounded_bias"]
        # The second one has 8 x 8 positions, the head one.
        assert [path.split("/")[-2:] for path in finding.layers] == [["first", "bias"]]
        assert finding.numbers == {"summands": IMAGES}
        assert finding.severity == "warning"


def test_time_steps_are_summands_too(tmp_path: Path) -> None:
    def build() -> Any:
        flat = layers.GlobalAveragePooling1D()
        return keras.Sequential([keras.Input((300, 4)), layers.Dense(3), flat, layers.Dense(1)])

    found = findings(build, "mixed_bfloat16", tmp_path)
    assert ("rounded_bias" in found) == LOSES_DIGITS
    if LOSES_DIGITS:
        assert found["rounded_bias"].numbers == {"summands": 300}


def test_a_normalization_over_channels_leaves_the_bias_in(tmp_path: Path) -> None:
    def build() -> Any:
        stack = [layers.Dense(3), layers.LayerNormalization(), layers.GlobalAveragePooling1D()]
        return keras.Sequential([keras.Input((300, 4)), *stack, layers.Dense(1)])

    assert ("rounded_bias" in findings(build, "mixed_bfloat16", tmp_path)) == LOSES_DIGITS


@pytest.mark.parametrize(
    ("build", "policy", "options"),
    [
        (convolutions, "float32", {}),
        (convolutions, "mixed_float16", {}),
        (convolutions, "mixed_bfloat16", {"jit_compile": True}),
        (lambda: convolutions(Conv2D), "mixed_bfloat16", {}),
        (lambda: convolutions(normalized=True), "mixed_bfloat16", {}),
    ],
    ids=["float32", "float16", "xla", "ours", "normalized"],
)
def test_sums_that_keep_their_digits_or_do_not_matter_are_not_named(
    build: Callable[[], Any], policy: str, options: dict[str, Any], tmp_path: Path
) -> None:
    assert "rounded_bias" not in findings(build, policy, tmp_path, **options)


@pytest.mark.parametrize(
    ("dtype", "jit"), [("float32", False), ("float16", False), ("bfloat16", True)]
)
def test_what_is_never_named_is_right_on_this_machine(dtype: str, jit: bool) -> None:
    assert error_of_sum(dtype, jit) < 0.01


@pytest.mark.parametrize(
    ("shape", "data_format", "expected"),
    [
        ((2, 5, 7, 3), "NHWC", 35),
        ((2, 3, 5, 7), "NCHW", 35),
        ((2, 3), "NHWC", 1),
        ((None, None, 7, 3), "NHWC", 7),
    ],
)
def test_summands_are_the_positions_of_one_example(
    shape: tuple[int | None, ...], data_format: str, expected: int
) -> None:
    counts = []

    @tf.function
    def step(values: Any) -> Any:
        bias = tf.zeros(3)
        with tf.GradientTape() as tape:
            tape.watch(bias)
            sums = tf.nn.bias_add(values, tf.cast(bias, tf.bfloat16), data_format)
            # Its own gradient is added to that of the sum.
            loss = tf.reduce_sum(tf.cast(sums, tf.float32)) + tf.reduce_sum(bias**2)
        gradient = tape.gradient(loss, bias)
        counts.append(summands_in_bfloat16(gradient / 128.0))
        return gradient

    step.get_concrete_function(tf.TensorSpec(shape, tf.bfloat16))
    assert counts == [expected if LOSES_DIGITS else 0]


def test_the_calls_of_a_shared_layer_are_added_up_and_an_unknown_shape_counts_as_one() -> None:
    counts = []

    @tf.function
    def step(values: Any, others: Any, shapeless: Any) -> None:
        bias = tf.zeros(3)
        with tf.GradientTape() as tape:
            tape.watch(bias)
            half = tf.cast(bias, tf.bfloat16)
            sums = [tf.nn.bias_add(each, half) for each in (values, others, shapeless)]
            loss = tf.add_n([tf.reduce_sum(tf.cast(each, tf.float32)) for each in sums])
        counts.append(summands_in_bfloat16(tape.gradient(loss, bias)))

    step.get_concrete_function(
        *(tf.TensorSpec(shape, tf.bfloat16) for shape in [(2, 5, 7, 3), (2, 4, 3), None])
    )
    assert counts == [35 + 4 + 1 if LOSES_DIGITS else 0]


def test_what_has_no_graph_has_no_summands() -> None:
    rows = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([0]))
    assert [summands_in_bfloat16(each) for each in (None, tf.ones(3), rows)] == [0, 0, 0]
