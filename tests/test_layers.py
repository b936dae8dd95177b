"""Blocks against a NumPy forward pass written from the paper, and their way into a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from math import erf
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from trainer.config.model_schema import ACTIVATIONS
from trainer.layers import PlainBlock, ResidualBlock, build_activation

POLICIES = ["float32", "mixed_bfloat16"]


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def images_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def as_array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def draw_weights(layer: keras.layers.Layer, seed: int = 1) -> None:
    """Give every weight a value that could not be an initial one, variances positive."""
    generator = np.random.default_rng(seed)
    for weight in layer.weights:
        if "seed" not in weight.path:
            low, high = (0.5, 1.5) if "variance" in weight.name else (-0.6, 0.6)
            weight.assign(generator.uniform(low, high, weight.shape))


# The oracle: He et al. (2016), figures 2 and 5, and (2016b), figure 4, in NumPy.


def convolve(images: np.ndarray, kernel: np.ndarray, strides: int) -> np.ndarray:
    """Convolve with zero padding to ceil(size / strides) positions an axis."""
    side = kernel.shape[0]
    sizes = [-(-size // strides) for size in images.shape[1:3]]
    paddings = [
        max((size - 1) * strides + side - before, 0)
        for size, before in zip(sizes, images.shape[1:3], strict=True)
    ]
    padded = np.pad(images, [(0, 0), *((p // 2, p - p // 2) for p in paddings), (0, 0)])
    outputs = np.zeros((len(images), *sizes, kernel.shape[-1]))
    for row in range(side):
        for column in range(side):
            shifted = padded[
                :,
                row : row + (sizes[0] - 1) * strides + 1 : strides,
                column : column + (sizes[1] - 1) * strides + 1 : strides,
            ]
            outputs += shifted @ kernel[row, column]
    return outputs


def normalize(images: np.ndarray, norm: keras.layers.Layer, training: bool) -> np.ndarray:
    gamma, beta, mean, variance = norm.get_weights()
    if training:
        mean, variance = images.mean(axis=(0, 1, 2)), images.var(axis=(0, 1, 2))
    return (images - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def relu(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0)


def branch_oracle(block: PlainBlock, images: np.ndarray, training: bool) -> np.ndarray:
    layers = {layer.name: layer for layer in block.branch}
    num_convolutions = {"basic": 2, "bottleneck": 3}[block.layout]
    # Strides are the first 3x3 convolution's: the second of a bottleneck's three.
    strided = {"basic": 1, "bottleneck": 2}[block.layout]
    x = images.astype("float64")
    for index in range(1, num_convolutions + 1):
        if block.preactivation:
            x = relu(normalize(x, layers[f"norm{index}"], training))
        (kernel,) = layers[f"conv{index}"].get_weights()
        x = convolve(x, kernel, block.strides if index == strided else 1)
        if not block.preactivation:
            x = normalize(x, layers[f"norm{index}"], training)
            x = x if index == num_convolutions else relu(x)
    return x


def padded_oracle(images: np.ndarray, filters: int, strides: int) -> np.ndarray:
    """Option A: every n-th pixel, between channels of zeros."""
    subsampled = images[:, ::strides, ::strides]
    outputs = np.zeros((*subsampled.shape[:-1], filters))
    first = (filters - images.shape[-1]) // 2
    outputs[..., first : first + images.shape[-1]] = subsampled
    return outputs


def shortcut_oracle(block: ResidualBlock, images: np.ndarray, training: bool) -> np.ndarray:
    if block.strides == 1 and images.shape[-1] == block.filters:
        return images
    if block.shortcut == "padded":
        return padded_oracle(images, block.filters, block.strides)
    (kernel,) = block.projection[0].get_weights()
    x = convolve(images.astype("float64"), kernel, block.strides)
    if block.preactivation:
        assert len(block.projection) == 1
        return x
    return normalize(x, block.projection[1], training)


# Numbers


@pytest.mark.parametrize(
    ("strides", "channels", "size"),
    [(1, 8, (4, 4)), (1, 5, (5, 6)), (2, 8, (6, 6)), (2, 4, (7, 5)), (3, 4, (7, 8))],
)
@pytest.mark.parametrize("shortcut", ["padded", "projection"])
@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("layout", ["basic", "bottleneck"])
def test_a_residual_block_is_the_plain_block_plus_a_shortcut(
    layout: str,
    preactivation: bool,
    shortcut: str,
    strides: int,
    channels: int,
    size: tuple[int, int],
) -> None:
    common = {"strides": strides, "layout": layout, "preactivation": preactivation}
    plain, residual = PlainBlock(8, **common), ResidualBlock(8, shortcut=shortcut, **common)
    images = images_of((3, *size, channels))
    for block in (plain, residual):
        block.build(images.shape)
        draw_weights(block)
    for of_plain, of_residual in zip(plain.branch, residual.branch, strict=True):
        of_residual.set_weights(of_plain.get_weights())

    last = (lambda x: x) if preactivation else relu
    for training in (False, True):
        branch = branch_oracle(plain, images, training)
        total = branch + shortcut_oracle(residual, images, training)
        of_plain = as_array(plain(images, training=training))
        of_residual = as_array(residual(images, training=training))
        # Up to 72 products are summed in float32; batch statistics divide by small deviations.
        np.testing.assert_allclose(of_plain, last(branch), rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(of_residual, last(total), rtol=1e-4, atol=2e-5)
    assert plain.compute_output_shape(images.shape) == of_plain.shape
    assert residual.compute_output_shape(images.shape) == of_residual.shape


@pytest.mark.parametrize(("channels", "filters", "strides"), [(4, 8, 2), (3, 8, 1), (8, 8, 2)])
def test_a_padded_shortcut_has_no_weights_and_is_subsampling_and_zeros(
    channels: int, filters: int, strides: int
) -> None:
    block, images = ResidualBlock(filters, strides=strides), images_of((2, 5, 7, channels))
    block.build(images.shape)
    plain = PlainBlock(filters, strides=strides)
    plain.build(images.shape)
    assert block.count_params() == plain.count_params()
    expected = padded_oracle(images, filters, strides)
    np.testing.assert_array_equal(as_array(block.run_shortcut(images, False)), expected)


def test_a_shortcut_of_one_shape_has_no_weights_even_as_a_projection() -> None:
    block, images = ResidualBlock(4, shortcut="projection"), images_of((2, 5, 5, 4))
    block.build(images.shape)
    assert block.projection == []
    np.testing.assert_array_equal(as_array(block.run_shortcut(images, False)), images)


@pytest.mark.parametrize("strides", [1, 2])
def test_a_padded_shortcut_cannot_remove_channels(strides: int) -> None:
    block = ResidualBlock(4, strides=strides)
    with pytest.raises(ValueError, match=r"use shortcut='projection'.*8 input channels, filters=4"):
        block.build((None, 6, 6, 8))


def test_a_projection_can_remove_channels() -> None:
    block = ResidualBlock(4, strides=2, shortcut="projection")
    assert block(images_of((2, 6, 6, 8))).shape == (2, 3, 3, 4)


@pytest.mark.parametrize("kind", ["batch", "layer", "group"])
@pytest.mark.parametrize("layout", ["basic", "bottleneck"])
def test_zero_init_last_starts_a_block_as_the_identity(layout: str, kind: str) -> None:
    options = {"groups": 2} if kind == "group" else {}
    block = ResidualBlock(
        8, layout=layout, zero_init_last=True, normalization={"kind": kind, **options}
    )
    images = relu(images_of((2, 5, 5, 8)))
    for training in (False, True):
        np.testing.assert_array_equal(as_array(block(images, training=training)), images)


# Chance


def test_stochastic_depth_drops_whole_branches_of_some_images_in_training() -> None:
    images = images_of((400, 2, 2, 3))
    block = ResidualBlock(3, stochastic_depth=0.25, preactivation=True)
    block.build(images.shape)
    draw_weights(block)
    block.drop_branch.seed_generator.state.assign([7, 0])
    # The statistics of the batch do not depend on what is dropped.
    branch = as_array(block.run_branch(images, training=True))
    difference = as_array(block(images, training=True)) - images

    dropped = np.all(np.abs(difference) < 1e-6, axis=(1, 2, 3))
    # Four standard deviations of a share of 400 draws: sqrt(0.25 * 0.75 / 400) = 0.022.
    assert dropped.mean() == pytest.approx(0.25, abs=0.087)
    # Scaled by 1 / 0.75, the expected value over all draws is the branch itself.
    np.testing.assert_allclose(difference[~dropped], branch[~dropped] / 0.75, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_does_nothing_in_evaluation() -> None:
    images = images_of((5, 4, 4, 3))
    with_depth, without = ResidualBlock(3, stochastic_depth=0.9), ResidualBlock(3)
    for block in (with_depth, without):
        block.build(images.shape)
        draw_weights(block)
    np.testing.assert_array_equal(
        as_array(with_depth(images, training=False)), as_array(without(images, training=False))
    )


def dropping_block(**rates: float) -> PlainBlock:
    """A block that returns what its dropout lets through of positive images."""
    block = PlainBlock(8, kernel_size=1, normalization={"kind": "none"}, **rates)
    block.build((None, 5, 5, 8))
    for layer in block.branch:
        if "conv" in layer.name:
            layer.set_weights([np.eye(8)[None, None], np.zeros(8)])
    return block


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"spatial_dropout": 0.5}])
def test_dropout_acts_in_training_only(rates: dict[str, float]) -> None:
    block, images = dropping_block(**rates), np.ones((40, 5, 5, 8), "float32")
    np.testing.assert_array_equal(as_array(block(images, training=False)), images)
    outputs = as_array(block(images, training=True))
    assert set(np.unique(outputs)) == {0.0, 2.0}
    # At least 320 maps are kept or dropped: five deviations of the mean are 5 / sqrt(320).
    assert outputs.mean() == pytest.approx(1, abs=0.28)
    # Dropped for itself, not all of them at once.
    maps_are_constant = (np.ptp(outputs, axis=(1, 2)) == 0).all()
    assert maps_are_constant == ("spatial_dropout" in rates)


# Parts


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.array([erf(value / 2**0.5) for value in x]))


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
ACTIVATION_FORMULAS = {
    "relu": relu,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "prelu": relu,  # its slopes start at zero
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "selu": lambda x: _SELU_SCALE * np.where(x > 0, x, _SELU_ALPHA * (np.exp(x) - 1)),
    "gelu": _gelu,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_what_its_name_says(name: str) -> None:
    values = np.linspace(-4, 4, 48, dtype="float32")
    outputs = as_array(build_activation(name, "act")(values.reshape(1, 4, 4, 3))).ravel()
    np.testing.assert_allclose(outputs, ACTIVATION_FORMULAS[name](values), rtol=1e-5, atol=1e-6)


def test_prelu_learns_one_slope_per_channel() -> None:
    block = PlainBlock(4, activation="prelu")
    block.build((None, 6, 6, 4))
    slopes = [weight.shape for weight in block.trainable_weights if weight.name == "alpha"]
    assert slopes == [(1, 1, 4)] * 2


@pytest.mark.parametrize(
    "initializer", ["he_normal", keras.initializers.Orthogonal(gain=2.0), "random_uniform"]
)
def test_two_convolutions_of_equal_shape_never_start_equal(initializer: Any) -> None:
    blocks = [PlainBlock(4, kernel_initializer=initializer) for _ in range(2)]
    kernels = []
    for block in blocks:
        block.build((None, 6, 6, 4))
        kernels += [w.numpy() for w in block.weights if w.name == "kernel"]
    assert len(kernels) == 4
    assert not any(np.array_equal(*pair) for pair in combinations(kernels, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "wide"}, "'basic' or 'bottleneck'. Received: layout='wide'"),
        ({"shortcut": "none"}, "'padded' or 'projection'. Received: shortcut='none'"),
        ({"normalization": {"kind": "bach"}}, "must be batch, layer, group or none.*'bach'"),
        ({"activation": "rellu"}, "(?s)activation.*rellu"),
        ({"kernel_initializer": "he_norml"}, "(?s)initializer.*he_norml"),
    ],
)
def test_an_unknown_name_is_refused_with_what_was_received(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualBlock(4, **options)


def test_biases_exist_only_without_normalization() -> None:
    def names(kind: str) -> set[str]:
        block = ResidualBlock(4, strides=2, shortcut="projection", normalization={"kind": kind})
        block.build((None, 6, 6, 4))
        return {weight.name for weight in block.trainable_weights}

    assert names("none") == {"kernel", "bias"}
    assert names("batch") == {"kernel", "gamma", "beta"}


def test_the_regularizer_adds_the_squares_of_every_kernel() -> None:
    block = ResidualBlock(
        4, strides=2, shortcut="projection", kernel_regularizer=keras.regularizers.L2(0.5)
    )
    block.build((None, 6, 6, 4))
    kernels = [weight.numpy() for weight in block.weights if weight.name == "kernel"]
    assert len(kernels) == 3
    expected = 0.5 * sum((kernel**2).sum() for kernel in kernels)
    assert float(sum(block.losses)) == pytest.approx(expected, rel=1e-5)


# Files

VARIANTS: dict[str, tuple[type[PlainBlock], dict[str, Any]]] = {
    "plain": (PlainBlock, {}),
    "plain_bottleneck": (
        PlainBlock,
        {"layout": "bottleneck", "bottleneck_ratio": 2, "preactivation": True},
    ),
    "residual_padded": (ResidualBlock, {"strides": 2, "kernel_size": 5}),
    "residual_projection": (ResidualBlock, {"strides": 2, "shortcut": "projection"}),
    "residual_preactivation": (
        ResidualBlock,
        {"shortcut": "projection", "preactivation": True, "activation": "prelu"},
    ),
    "residual_bottleneck": (
        ResidualBlock,
        {"layout": "bottleneck", "shortcut": "projection", "normalization": {"kind": "layer"}},
    ),
    "residual_group": (
        ResidualBlock,
        {"normalization": {"kind": "group", "groups": 2, "epsilon": 1e-5}, "zero_init_last": True},
    ),
    "residual_bare": (
        ResidualBlock,
        {
            "normalization": {"kind": "none"},
            "kernel_initializer": keras.initializers.Orthogonal(gain=0.5),
            "bias_initializer": keras.initializers.Constant(0.1),
            "kernel_regularizer": keras.regularizers.L1L2(l1=1e-5, l2=1e-4),
            "shortcut": "projection",
        },
    ),
    "residual_chance": (
        ResidualBlock,
        {"dropout": 0.1, "spatial_dropout": 0.2, "stochastic_depth": 0.3},
    ),
}

LOAD_IN_A_FRESH_PROCESS = """
import sys
from pathlib import Path
import keras
import numpy as np
import trainer.layers
images = np.load(sys.argv[1])
outputs = {}
for path in map(Path, sys.argv[2:]):
    model = keras.models.load_model(path)
    result = model(images, training=False)
    outputs[path.stem] = keras.ops.convert_to_numpy(keras.ops.cast(result, "float32"))
    outputs[path.stem + "/dtype"] = np.array(keras.backend.standardize_dtype(result.dtype))
np.savez(Path(sys.argv[1]).with_name("loaded.npz"), **outputs)
"""


@pytest.mark.parametrize("policy", POLICIES, indirect=True)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_block_comes_back_from_its_config(variant: str, policy: str) -> None:
    kind, options = VARIANTS[variant]
    images = images_of((2, 7, 7, 4))
    block = kind(8, name="block", **options)
    block.build(images.shape)
    draw_weights(block)
    keras.config.set_dtype_policy("float32")

    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(block))
    again.set_weights(block.get_weights())
    assert type(again) is kind
    assert again.get_config() == block.get_config()
    outputs, outputs_again = block(images, training=False), again(images, training=False)
    assert outputs_again.dtype == outputs.dtype == block.compute_dtype
    np.testing.assert_array_equal(as_array(outputs_again), as_array(outputs))


def test_the_config_holds_every_argument() -> None:
    config = ResidualBlock(8).get_config()
    arguments = {*ResidualBlock.__init__.__annotations__, *PlainBlock.__init__.__annotations__}
    assert arguments - {"kwargs", "return"} <= set(config)


@pytest.mark.parametrize("policy", POLICIES, indirect=True)
def test_the_policy_of_a_block_holds_for_all_layers_inside(policy: str) -> None:
    keras.config.set_dtype_policy("float32")
    for kind, options in VARIANTS.values():
        block = kind(8, dtype=policy, **options)
        block.build((None, 7, 7, 4))
        assert {layer.dtype_policy.name for layer in block._flatten_layers()} == {policy}


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, ...]]:
    """Outputs of each saved block, here and in a process that imports `trainer.layers` alone."""
    folder = tmp_path_factory.mktemp("blocks")
    images = images_of((2, 7, 7, 4))
    np.save(folder / "images.npy", images)
    outputs, paths = {}, []
    for policy in POLICIES:
        keras.config.set_dtype_policy(policy)
        for variant, (kind, options) in VARIANTS.items():
            model = keras.Sequential([keras.Input((7, 7, 4)), kind(8, **options)])
            draw_weights(model)
            paths.append(folder / f"{variant}-{policy}.keras")
            model.save(paths[-1])
            outputs[paths[-1].stem] = model(images, training=False)
    keras.config.set_dtype_policy("float32")
    subprocess.run(
        [sys.executable, "-c", LOAD_IN_A_FRESH_PROCESS, folder / "images.npy", *paths],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=Path(__file__).parents[1],
    )
    with np.load(folder / "loaded.npz") as loaded:
        return {
            name: (
                as_array(output),
                loaded[name],
                np.array(output.dtype.name),
                loaded[f"{name}/dtype"],
            )
            for name, output in outputs.items()
        }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_block_computes_the_same_bits_in_another_process(
    reloaded: dict[str, tuple[np.ndarray, ...]], variant: str, policy: str
) -> None:
    saved, loaded, dtype, loaded_dtype = reloaded[f"{variant}-{policy}"]
    assert loaded_dtype == dtype
    np.testing.assert_array_equal(loaded, saved)
