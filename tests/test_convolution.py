"""The convolution of this project computes what Keras' own does, in bfloat16 too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import convolution, layers, models
from trainer.config.model_schema import ModelSpec
from trainer.convolution import Conv2D
from trainer.models import build_model
from trainer.pixels import PixelScaling

# Filters, kernel size, strides, padding.
SHAPES = ((8, 3, 1, "same"), (12, 3, 2, "same"), (16, 1, 1, "same"), (24, 2, 1, "valid"))


@pytest.fixture(params=[None, "amx_bf16"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str | None]:
    """A CPU with instructions for tiles of bfloat16 and one without, whatever this one is."""
    monkeypatch.setattr(convolution, "cpu_bfloat16_flag", lambda: request.param)
    convolution._is_quicker_in_float32.cache_clear()
    yield request.param
    convolution._is_quicker_in_float32.cache_clear()


def computed(
    layer: keras.layers.Layer, images: tf.Tensor, training: bool = False
) -> list[np.ndarray]:
    """Outputs, and the gradients by images and weights of a drawn sum of them, as float64."""
    shape = layer.compute_output_shape(images.shape)
    # Rounded to 16 bits, so that every dtype sums the same.
    drawn = np.random.default_rng(1).integers(-128, 128, shape) / 32
    factors = tf.cast(drawn, layer.compute_dtype)

    @tf.function(autograph=False)
    def compute() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images, **({"training": True} if training else {}))
        weights = [weight.value for weight in layer.trainable_variables]
        return [outputs, *tape.gradient(outputs, [images, *weights], output_gradients=factors)]

    return [tf.cast(each, tf.float64).numpy() for each in compute()]


def convolutions(
    shape: tuple[int, int, int, str], policy: str, oracle: str, activation: str | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What ours computes by `policy`, and Keras' by `oracle`, of the same numbers."""
    filters, size, strides, padding = shape
    options = {"strides": strides, "padding": padding, "activation": activation}
    ours = Conv2D(filters, size, **options, dtype=policy)
    stock = keras.layers.Conv2D(filters, size, **options, dtype=oracle)
    random = np.random.default_rng(0)
    images = tf.cast(random.normal(size=(8, 10, 10, 8)), ours.compute_dtype)
    for layer in (ours, stock):
        layer.build(images.shape)
    kernel, bias = ours.get_weights()
    weights = [tf.cast(kernel, ours.compute_dtype), bias]
    for layer in (ours, stock):
        layer.set_weights([tf.cast(each, layer.variable_dtype) for each in weights])
    training = activation is not None
    expected = computed(stock, tf.cast(images, stock.compute_dtype))
    return computed(ours, images, training), expected


@pytest.mark.parametrize(
    ("policy", "tiles"),
    [("float32", None), ("float32", "amx_bf16"), ("mixed_bfloat16", "amx_bf16")],
    indirect=["tiles"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_those_of_keras_where_its_own_floats_are_quick(
    shape: tuple[int, int, int, str], policy: str, tiles: str | None
) -> None:
    for found, expected in zip(*convolutions(shape, policy, policy), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tiles", ["amx_bf16", "avx512_bf16"], indirect=True)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_trained_in_quick_bfloat16_is_that_of_keras_but_for_the_bias(
    shape: tuple[int, int, int, str], tiles: str | None
) -> None:
    ours, stock = convolutions(shape, "mixed_bfloat16", "mixed_bfloat16", "relu")
    assert 0.2 < np.mean(stock[0] == 0) < 0.8
    for found, expected in zip(ours[:3], stock[:3], strict=True):
        np.testing.assert_array_equal(found, expected)
    # Of the outputs that the activation lets through; see `drawn` in `computed`.
    drawn = np.random.default_rng(1).integers(-128, 128, stock[0].shape) / 32
    exact = np.where(stock[0] > 0, drawn, 0).sum(axis=(0, 1, 2))
    np.testing.assert_allclose(ours[3], exact, rtol=2**-8, atol=2**-8 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("dtype", "tiles"),
    [("bfloat16", None), ("float16", None), ("float16", "amx_bf16")],
    indirect=["tiles"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_are_exact_but_for_rounding_where_they_are_slow(
    shape: tuple[int, int, int, str], dtype: str, tiles: str | None
) -> None:
    step = 2**-7 if dtype == "bfloat16" else 2**-10
    # TensorFlow's own float16 is no oracle: on a CPU without a kernel its sums are float16, too.
    for found, exact in zip(*convolutions(shape, f"mixed_{dtype}", "float64"), strict=True):
        expected = tf.cast(tf.cast(exact, dtype), tf.float64).numpy()
        # Sums of another order round to the neighbour now and then.
        np.testing.assert_allclose(found, expected, step, step / 64 * np.abs(expected).max())
        assert np.mean(found != expected) < 0.05


@pytest.mark.parametrize("tiles", [None, "amx_bf16", "avx512_bf16"], indirect=True)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("side", [8, 32])
def test_the_gradient_of_a_bias_is_the_sum_of_what_comes_back(
    side: int, dtype: str, tiles: str | None
) -> None:
    layer = Conv2D(128, 3, padding="same", dtype=f"mixed_{dtype}")
    layer.build((None, side, side, 64))
    num_images = 2**16 // side**2
    images = tf.zeros((num_images, side, side, 64), dtype)
    drawn = np.random.default_rng(0).normal(0.1, 1, (num_images, side, side, 128))
    upstream = tf.cast(drawn, dtype)
    with tf.GradientTape() as tape:
        outputs = layer(images, training=True)
    found = tape.gradient(outputs, layer.bias.value, upstream)
    expected = tf.reduce_sum(tf.cast(upstream, tf.float64), [0, 1, 2])
    np.testing.assert_allclose(tf.cast(found, tf.float64), expected, rtol=2**-8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_convolves_in_float32_where_its_own_floats_are_slow(
    dtype: str, tiles: str | None
) -> None:
    keras.config.set_dtype_policy(f"mixed_{dtype}")
    try:
        model = model_of_one_block()
    finally:
        keras.config.set_dtype_policy("float32")
    signature = tf.TensorSpec((4, 8, 8, 3), tf.float32)
    graph = tf.function(lambda images: model(images, training=True)).get_concrete_function(
        signature
    )
    kinds = {op.outputs[0].dtype for op in graph.graph.get_operations() if op.type == "Conv2D"}
    assert kinds == {tf.bfloat16 if dtype == "bfloat16" and tiles else tf.float32}
    assert model.get_layer("stage0_block0").output.dtype == dtype


def model_of_one_block() -> keras.Model:
    spec = ModelSpec.model_validate({"stages": [{"filters": 16, "blocks": 1, "strides": 2}]})
    return build_model(spec, (8, 8, 3), 10, PixelScaling((1.0,) * 3, (0.0,) * 3))


def test_files_of_models_with_keras_own_layers_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As they were written before this layer was.
    with monkeypatch.context() as patch:
        patch.setattr(layers, "Conv2D", keras.layers.Conv2D)
        patch.setattr(models, "Conv2D", keras.layers.Conv2D)
        before = model_of_one_block()
        before.save(tmp_path / "before.keras")
    loaded = keras.models.load_model(tmp_path / "before.keras")
    assert any(type(layer) is Conv2D for layer in loaded._flatten_layers())
    for found, expected in zip(loaded.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_it_is_saved_with_its_model_and_takes_the_weights_of_keras_layer(tmp_path: Path) -> None:
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, Conv2D(4, 3, name="conv")(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.get_layer("conv"), Conv2D)
    stock = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(inputs))
    stock.set_weights(loaded.get_weights())
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
    np.testing.assert_array_equal(stock(images), loaded(images))
