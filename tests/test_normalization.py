"""The fused BatchNormalization against Keras' own, and the other kinds against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.activations import build_activation
from trainer.config.model_schema import Activation
from trainer.normalization import FusedBatchNormalization, build_normalization

SHAPE = (6, 5, 4, 3)
# Relative to the largest value: a step of the output's type or two; in float32 the stock
# layer's own rounding, which scales and shifts apart: x * scale + (offset - mean * scale).
TOLERANCES = {"float32": 3e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def images_of(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Channels of very different mean and deviation."""
    channels = np.arange(1, shape[-1] + 1)
    values = np.random.default_rng(seed).normal(size=shape)
    return (values * channels + 2 * channels).astype("float32")


def as_array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def pair_of(
    shape: tuple[int, ...] = SHAPE, **options: Any
) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """The fused and the stock layer with equal weights."""
    layers = (FusedBatchNormalization(**options), keras.layers.BatchNormalization(**options))
    generator = np.random.default_rng(1)
    values = [generator.uniform(0.5, 1.5, shape[-1]) for _ in range(4)]
    for layer in layers:
        layer.build(shape)
        layer.set_weights(values[: len(layer.weights)])
    return layers


def train_step(layer: keras.layers.Layer, images: Any, weights: Any) -> dict[str, Any]:
    """Outputs and gradients of a weighted sum of squares, which no symmetry makes zero."""
    images = tf.convert_to_tensor(images)
    variables = [variable.value for variable in layer.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=True)
        loss = tf.reduce_sum(tf.cast(outputs, "float32") ** 2 * weights)
    gradients = tape.gradient(loss, [images, *variables])
    names = [variable.name for variable in layer.trainable_variables]
    return {"outputs": outputs, **dict(zip(("images", *names), gradients, strict=True))}


def assert_close(actual: Any, expected: Any, dtype: str = "float32") -> None:
    expected = as_array(expected)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(as_array(actual), expected, rtol=0, atol=TOLERANCES[dtype] * scale)


# The fused layer in place of the stock one


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("scale", [True, False])
def test_training_has_the_outputs_gradients_and_statistics_of_the_stock_layer(
    scale: bool, policy: str, mode: str
) -> None:
    fused, stock = pair_of(dtype=policy, scale=scale)
    weights = np.random.default_rng(2).uniform(size=SHAPE).astype("float32")
    results = []
    for layer in (fused, stock):
        step = train_step
        if mode != "eager":
            step = tf.function(train_step, jit_compile=mode == "xla")
        for seed in range(3):
            images = tf.cast(images_of(seed=seed), layer.compute_dtype)
            result = step(layer, images, weights)
        results.append(result)
    of_fused, of_stock = results
    for name in ("outputs", "images", *(["gamma"] if scale else []), "beta"):
        assert of_fused[name].dtype == of_stock[name].dtype
        assert_close(of_fused[name], of_stock[name], fused.compute_dtype)
    assert of_fused["outputs"].dtype.name == fused.compute_dtype
    # Float32 whatever the policy: only the inputs were rounded, and equally.
    assert_close(fused.moving_mean, stock.moving_mean)
    assert_close(fused.moving_variance, stock.moving_variance)
    assert fused.moving_mean.dtype == "float32"
    assert not np.allclose(fused.moving_mean, 0, atol=0.01)


def test_moving_statistics_are_the_biased_ones_of_the_batch() -> None:
    layer, images = FusedBatchNormalization(momentum=0.75), images_of()
    layer(images, training=True)
    np.testing.assert_allclose(layer.moving_mean, 0.25 * images.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(
        layer.moving_variance, 0.75 + 0.25 * images.var(axis=(0, 1, 2)), rtol=1e-5
    )


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("training", [False, None])
def test_evaluation_has_the_outputs_of_the_stock_layer_and_changes_nothing(
    training: bool | None, scale: bool
) -> None:
    fused, stock = pair_of(scale=scale)
    before = fused.get_weights()
    assert_close(fused(images_of(), training=training), stock(images_of(), training=training))
    for value, value_before in zip(fused.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, value_before)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_evaluation_is_the_same_compiled(mode: str) -> None:
    fused, stock = pair_of(dtype="mixed_bfloat16")
    images = images_of()
    evaluate = tf.function(fused, jit_compile=mode == "xla")
    assert_close(evaluate(images, training=False), stock(images), "bfloat16")


def test_a_frozen_layer_evaluates_in_training_too() -> None:
    fused, stock = pair_of()
    fused.trainable = stock.trainable = False
    before = fused.get_weights()
    outputs = fused(images_of(), training=True)
    assert_close(outputs, stock(images_of(), training=True))
    np.testing.assert_array_equal(as_array(outputs), as_array(fused(images_of(), training=False)))
    for value, value_before in zip(fused.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, value_before)


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3, 2, 3)])
def test_a_batch_of_one_is_finite_and_as_in_the_stock_layer(
    shape: tuple[int, ...], mode: str
) -> None:
    fused, stock = pair_of(shape)
    step = train_step if mode == "eager" else tf.function(train_step, jit_compile=True)
    of_fused, of_stock = (step(layer, images_of(shape), 0.5) for layer in (fused, stock))
    for name, expected in of_stock.items():
        assert np.isfinite(as_array(of_fused[name])).all()
        assert_close(of_fused[name], expected)
    assert_close(fused.moving_variance, stock.moving_variance)


def test_training_by_fit_moves_the_statistics_as_the_stock_layer_does() -> None:
    images, moved = images_of((24, 4, 4, 3)), []
    for layer in pair_of():
        model = keras.Sequential([keras.Input((4, 4, 3)), layer, keras.layers.Flatten()])
        model.compile(keras.optimizers.SGD(0.01), "mse")
        model.fit(images, np.zeros((24, 48)), batch_size=8, epochs=2, shuffle=False, verbose=0)
        moved.append(model.get_weights())
    for of_fused, of_stock in zip(*moved, strict=True):
        np.testing.assert_allclose(of_fused, of_stock, rtol=1e-5, atol=1e-6)


# Files


def test_a_saved_layer_computes_the_same_bits_and_stays_fused(tmp_path: Path) -> None:
    fused, _ = pair_of(momentum=0.9, epsilon=1e-2)
    model = keras.Sequential([keras.Input(SHAPE[1:]), fused])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is FusedBatchNormalization
    assert loaded.layers[0].get_config() == fused.get_config()
    np.testing.assert_array_equal(as_array(loaded(images_of())), as_array(model(images_of())))


def test_weights_go_into_the_stock_layer_and_back() -> None:
    fused, stock = pair_of()
    for saved, loaded in ((fused, stock), (stock, fused)):
        values = [weight * 3 for weight in saved.get_weights()]
        saved.set_weights(values)
        store: dict[str, Any] = {}
        saved.save_own_variables(store)
        loaded.load_own_variables(store)
        for weight, value in zip(loaded.get_weights(), values, strict=True):
            np.testing.assert_array_equal(weight, value)
    assert [weight.name for weight in fused.weights] == [weight.name for weight in stock.weights]


# Which path is taken


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of the fused kernel was one of training."""
    calls, kernel = [], tf.compat.v1.nn.fused_batch_norm

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["is_training"])
        return kernel(*args, **kwargs)

    monkeypatch.setattr(tf.compat.v1.nn, "fused_batch_norm", counted)
    return calls


@pytest.mark.parametrize("scale", [True, False])
def test_images_take_the_fused_kernel(fused_calls: list[bool], scale: bool) -> None:
    layer = FusedBatchNormalization(scale=scale)
    layer(images_of(), training=True)
    layer(images_of(), training=False)
    assert fused_calls == [True, False]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (12, 3)),
        ({}, (6, 5, 3)),
        ({"axis": 1}, (3, 4, 5, 3)),
        ({"center": False}, SHAPE),
        ({"epsilon": 1e-6}, SHAPE),
        ({"synchronized": True}, SHAPE),
        ({"dtype": "float64"}, SHAPE),
        ({"dtype": "bfloat16"}, SHAPE),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_what_the_kernel_cannot_do_takes_the_stock_path(
    fused_calls: list[bool], options: dict[str, Any], shape: tuple[int, ...], training: bool
) -> None:
    layers = (FusedBatchNormalization(**options), keras.layers.BatchNormalization(**options))
    fused, stock = (layer(images_of(shape), training=training) for layer in layers)
    assert fused_calls == []
    assert fused.dtype == stock.dtype
    np.testing.assert_array_equal(as_array(fused), as_array(stock))
    for of_fused, of_stock in zip(layers[0].weights, layers[1].weights, strict=True):
        np.testing.assert_array_equal(as_array(of_fused), as_array(of_stock))


def test_a_mask_takes_the_stock_path(fused_calls: list[bool]) -> None:
    fused, stock = pair_of()
    mask = np.random.default_rng(0).uniform(size=SHAPE[:-1]) < 0.5
    outputs = [as_array(layer(images_of(), training=True, mask=mask)) for layer in (fused, stock)]
    assert fused_calls == []
    np.testing.assert_array_equal(*outputs)
    np.testing.assert_array_equal(fused.moving_mean, stock.moving_mean)


# The other kinds


def test_layer_normalization_is_over_all_of_an_image() -> None:
    layer = build_normalization({"kind": "layer", "epsilon": 1e-4}, "norm")
    images = images_of()
    layer.build(SHAPE)
    layer.set_weights([np.array([1.0, 2, 3]), np.array([0.0, -1, 1])])
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    variance = images.var(axis=(1, 2, 3), keepdims=True)
    expected = (images - mean) / np.sqrt(variance + 1e-4) * [1, 2, 3] + [0, -1, 1]
    np.testing.assert_allclose(layer(images), expected, rtol=1e-4, atol=1e-5)


def test_group_normalization_is_over_the_channels_of_a_group() -> None:
    layer = build_normalization({"kind": "group", "groups": 2, "epsilon": 1e-4}, "norm")
    images = images_of((3, 4, 5, 6))
    grouped = images.reshape(3, 20, 2, 3)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = grouped.var(axis=(1, 3), keepdims=True)
    expected = ((grouped - mean) / np.sqrt(variance + 1e-4)).reshape(images.shape)
    np.testing.assert_allclose(layer(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "batch", "momentum": 0.5, "epsilon": 0.25, "synchronized": True},
        {"kind": "layer", "epsilon": 0.25},
        {"kind": "group", "groups": 2, "epsilon": 0.25},
    ],
)
def test_a_kind_is_built_with_its_options_name_scale_and_policy(spec: dict[str, Any]) -> None:
    layer = build_normalization(spec, "norm", "zeros", dtype="mixed_bfloat16")
    layer.build((None, 4, 4, 6))
    assert {key: getattr(layer, key) for key in spec if key != "kind"} == {
        key: value for key, value in spec.items() if key != "kind"
    }
    assert (layer.name, layer.dtype_policy.name) == ("norm", "mixed_bfloat16")
    np.testing.assert_array_equal(layer.gamma, np.zeros(6))


def test_no_normalization_is_no_layer() -> None:
    assert build_normalization({"kind": "none"}, "norm") is None


def test_an_unknown_kind_is_refused_with_what_was_received() -> None:
    with pytest.raises(ValueError, match=r"batch, layer, group or none\. Received: .*'instance'"):
        build_normalization({"kind": "instance"}, "norm")


@pytest.mark.parametrize("name", get_args(Activation))
def test_every_activation_behind_a_convolution_and_batch_normalization_predicts(name: str) -> None:
    # TensorFlow fuses the three outside of training, and has no such kernel for some.
    images = images_of((2, 8, 8, 3))
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, use_bias=False),
            build_normalization({"kind": "batch"}, "norm", activation=name),
            build_activation(name, "act"),
        ]
    )
    expected = model(images, training=False)
    assert_close(model.predict(images, verbose=0), expected)


def test_inference_without_the_fused_kernel_survives_a_file(tmp_path: Path) -> None:
    layer = build_normalization({"kind": "batch"}, "norm", activation="tanh")
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not loaded.get_layer("norm").fused_inference
