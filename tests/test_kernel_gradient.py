"""The gradient of a kernel as matrix products, against TensorFlow's own in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from trainer import convolution
from trainer.convolution import Conv2D
from trainer.kernel_gradient import SHORT_ROW, convolve, kernel_gradient

# Heights and widths, the kernel larger than the image among them.
SIDES = [(7, 7), (3, 13), (4, 6), (2, 2), (1, 3), (1, 1)]


def drawn(*shape: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float64)


def gradients(
    function: Callable[..., tf.Tensor], images: tf.Tensor, kernel: tf.Tensor
) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch([images, kernel])
        outputs = function(images, kernel)
    return [outputs, *tape.gradient(outputs, [images, kernel], tf.sin(7 * outputs))]


def stock(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.nn.conv2d(images, kernel, 1, "SAME")


@pytest.mark.parametrize("size", [(3, 3), (1, 3), (3, 1), (5, 5)])
@pytest.mark.parametrize("sides", SIDES)
def test_both_gradients_are_those_of_tensorflow(
    sides: tuple[int, int], size: tuple[int, int]
) -> None:
    images, kernel = drawn(6, *sides, 3), drawn(*size, 3, 5, seed=1)
    found, expected = gradients(convolve, images, kernel), gradients(stock, images, kernel)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_sides_and_batch_may_be_unknown_when_it_is_traced() -> None:
    kernel = drawn(3, 3, 3, 5, seed=1)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.float64)])
    def traced(images: tf.Tensor) -> list[tf.Tensor]:
        return gradients(convolve, images, kernel)

    for batch, height, width in ((4, 6, 5), (2, 1, 1), (3, 5, SHORT_ROW), (3, 5, SHORT_ROW + 1)):
        images = drawn(batch, height, width, 3)
        for ours, theirs in zip(traced(images), gradients(stock, images, kernel), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "of_tensorflow", "of_rows"),
    [(SHORT_ROW, False, True), (SHORT_ROW + 1, True, False), (None, True, True)],
)
def test_the_width_decides_whose_gradient_it_is(
    width: int | None, of_tensorflow: bool, of_rows: bool
) -> None:
    kernel = drawn(3, 3, 3, 5)

    @tf.function(input_signature=[tf.TensorSpec((2, 5, width, 3), tf.float64)])
    def traced(images: tf.Tensor) -> list[tf.Tensor]:
        return gradients(convolve, images, kernel)

    graph = traced.get_concrete_function().graph
    # The branches of a choice that is left to the step are functions of the graph.
    branches = [node.op for f in graph.as_graph_def().library.function for node in f.node_def]
    kinds = {*branches, *(op.type for op in graph.get_operations())}
    assert ("Conv2DBackpropFilter" in kinds, "MatMul" in kinds) == (of_tensorflow, of_rows)


def test_16_bit_sums_are_rounded_once() -> None:
    images, upstream = (tf.cast(drawn(64, 7, 7, 8, seed=seed), tf.bfloat16) for seed in (0, 1))
    found = kernel_gradient(images, upstream, (3, 3))
    exact = kernel_gradient(
        tf.cast(images, tf.float64), tf.cast(upstream, tf.float64), kernel_size=(3, 3)
    )
    assert found.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(found, tf.float64), exact, rtol=2**-8, atol=1e-3)


@pytest.fixture
def decided_anew() -> Iterator[None]:
    convolution._is_quicker_in_float32.cache_clear()
    yield
    convolution._is_quicker_in_float32.cache_clear()


@pytest.mark.usefixtures("decided_anew")
@pytest.mark.parametrize(
    ("flag", "side", "filters", "options", "is_ours"),
    [
        ("avx512_bf16", 7, 128, {}, True),
        ("avx512_bf16", 7, 128, {"training": False}, False),
        ("avx512_bf16", 7, 128, {"dtype": "float32"}, False),
        ("avx512_bf16", 7, 128, {"strides": 2}, False),
        ("avx512_bf16", 7, 128, {"padding": "valid"}, False),
        ("avx512_bf16", 7, 128, {"kernel_size": 1}, False),
        ("avx512_bf16", 7, 128, {"kernel_size": 2}, False),
        ("avx512_bf16", 7, 512, {"groups": 2}, False),
        ("avx512_bf16", 7, 128, {"dilation_rate": 2}, False),
        ("avx512_bf16", 7, 64, {}, False),
        ("avx512_bf16", 15, 128, {}, False),
        ("avx512_bf16", None, 128, {}, True),
        ("amx_bf16", 7, 128, {}, False),
        (None, 7, 128, {}, False),
    ],
)
def test_a_layer_takes_it_where_it_is_quicker(
    flag: str | None,
    side: int | None,
    filters: int,
    options: dict[str, object],
    is_ours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convolution, "cpu_bfloat16_flag", lambda: flag)
    settings = {"kernel_size": 3, "padding": "same", "dtype": "mixed_bfloat16", **options}
    training = settings.pop("training", True)
    layer = Conv2D(filters, activation="relu", **settings)
    layer.build((None, side, side, 64))

    taken = []

    def spied(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        taken.append(kernel)
        return convolve(images, kernel)

    monkeypatch.setattr(convolution, "convolve", spied)

    @tf.function(input_signature=[tf.TensorSpec((2, side, side, 64), layer.compute_dtype)])
    def step(images: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = layer(images, training=training)
        return tape.gradient(outputs, layer.kernel.value)

    assert step.get_concrete_function().output_shapes == layer.kernel.shape
    assert bool(taken) == is_ours
