"""Networks against the paper's sizes and sums written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_networks import built, num_trainable, random_images, spec_of

from trainer.config.model_schema import ModelSpec
from trainer.layers import PlainBlock, ResidualBlock
from trainer.model_summary import summarize
from trainer.models import build_model
from trainer.pixels import PixelScaling

# Table 6 of He et al. (2016): blocks a stage -> millions of parameters.
PAPER_SIZES = {3: "0.27", 5: "0.46", 7: "0.66", 9: "0.85", 18: "1.7"}


@pytest.fixture
def mixed_bfloat16() -> Iterator[None]:
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def cifar_spec(blocks: int, kind: str) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "stem": {"filters": 16},
            "stages": [
                {"filters": 16, "blocks": blocks},
                {"filters": 32, "blocks": blocks, "strides": 2},
                {"filters": 64, "blocks": blocks, "strides": 2},
            ],
            "block": {"kind": kind, "shortcut": "padded"},
        }
    )


# Sizes


@pytest.mark.parametrize("blocks", PAPER_SIZES)
def test_a_residual_network_has_the_parameters_of_the_paper(blocks: int) -> None:
    n = blocks
    kernels = 9 * (
        3 * 16 + 2 * n * 16 * 16 + 16 * 32 + (2 * n - 1) * 32 * 32 + 32 * 64 + (2 * n - 1) * 64 * 64
    )
    # A scale and an offset for each channel of the stem and of 2n convolutions a stage.
    normalizations = 2 * (16 + 2 * n * (16 + 32 + 64))
    dense = 64 * 10 + 10

    model = built(cifar_spec(n, "residual"), (32, 32, 3))
    assert num_trainable(model) == kernels + normalizations + dense
    # The moving mean and variance go along with each scale and offset.
    assert model.count_params() == kernels + 2 * normalizations + dense
    decimals = len(PAPER_SIZES[n]) - 2
    assert f"{num_trainable(model) / 1e6:.{decimals}f}" == PAPER_SIZES[n]


def test_a_plain_network_has_as_many_parameters_as_a_residual_one() -> None:
    shape = (32, 32, 3)
    plain, residual = built(cifar_spec(3, "plain"), shape), built(cifar_spec(3, "residual"), shape)
    assert num_trainable(plain) == num_trainable(residual) == 269_722


def test_resnet20_multiplies_and_adds_as_often_as_its_kernels_meet_a_position() -> None:
    kernels_and_positions = [
        (9 * 3 * 16, 32 * 32),
        (6 * 9 * 16 * 16, 32 * 32),
        (9 * 16 * 32 + 5 * 9 * 32 * 32, 16 * 16),
        (9 * 32 * 64 + 5 * 9 * 64 * 64, 8 * 8),
        (64 * 10, 1),
    ]
    expected = sum(kernel * positions for kernel, positions in kernels_and_positions)
    layers = summarize(built(cifar_spec(3, "residual"), (32, 32, 3)))
    assert sum(layer.multiply_adds for layer in layers) == expected == 40_551_040


# What plain and residual networks have in common


@pytest.mark.parametrize("layout", ["basic", "bottleneck"])
@pytest.mark.parametrize("preactivation", [False, True])
def test_plain_and_residual_networks_of_one_seed_start_equal(
    layout: str, preactivation: bool
) -> None:
    models = []
    for kind in ("plain", "residual"):
        keras.utils.set_random_seed(5)
        models.append(built(spec_of(kind=kind, layout=layout, preactivation=preactivation)))
    plain, residual = models
    assert [w.path for w in plain.weights] == [w.path for w in residual.weights]
    for of_plain, of_residual in zip(plain.get_weights(), residual.get_weights(), strict=True):
        np.testing.assert_array_equal(of_plain, of_residual)


def test_the_kind_of_block_is_all_that_differs() -> None:
    plain, residual = built(spec_of(kind="plain")), built(spec_of(kind="residual"))
    assert [layer.name for layer in plain.layers] == [layer.name for layer in residual.layers]
    kinds = [type(model.get_layer("stage0_block0")) for model in (plain, residual)]
    assert kinds == [PlainBlock, ResidualBlock]


# What the spec asks for


def test_layers_are_named_by_their_place() -> None:
    names = [layer.name for layer in built(spec_of()).layers]
    assert names == [
        "image",
        "pixels",
        "stem_conv",
        "stem_norm",
        "stem_act",
        "stage0_block0",
        "stage0_block1",
        "stage1_block0",
        "head_pool",
        "head_logits",
    ]


def test_a_preactivation_network_normalizes_once_after_the_last_block() -> None:
    names = [layer.name for layer in built(spec_of(preactivation=True)).layers]
    assert "stem_norm" not in names
    assert names[-4:] == ["head_norm", "head_act", "head_pool", "head_logits"]


def test_only_the_first_block_of_a_stage_has_its_strides() -> None:
    spec = ModelSpec.model_validate({"stages": [{"filters": 16, "blocks": 3, "strides": 2}]})
    model = built(spec)
    strides = [model.get_layer(f"stage0_block{index}").strides for index in range(3)]
    assert strides == [2, 1, 1]


def test_stochastic_depth_grows_linearly_to_its_rate_at_the_last_block() -> None:
    model = built(spec_of(stochastic_depth=0.3))
    names = ("stage0_block0", "stage0_block1", "stage1_block0")
    rates = [model.get_layer(name).stochastic_depth for name in names]
    assert rates == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("stem", "positions"),
    [({"filters": 4, "strides": 2}, 4), ({"filters": 4, "strides": 2, "pool_size": 2}, 2)],
)
def test_the_stem_down_samples_by_strides_and_pooling(stem: dict[str, int], positions: int) -> None:
    model = built(spec_of(stem=stem))
    assert model.get_layer("stage0_block0").input.shape[1:] == (positions, positions, 4)


@pytest.mark.parametrize(("pooling", "features"), [("average", 8), ("max", 8), ("flatten", 128)])
def test_the_head_pools_as_asked(pooling: str, features: int) -> None:
    model = built(spec_of(head={"pooling": pooling, "dropout": 0.5}))
    logits = model.get_layer("head_logits")
    assert logits.kernel.shape == (features, 10)
    before = model.get_layer("head_flatten" if pooling == "flatten" else "head_pool")
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype("float32")
    reduce = {
        "average": lambda: x.mean((1, 2)),
        "max": lambda: x.max((1, 2)),
        "flatten": lambda: x.reshape(2, -1),
    }
    np.testing.assert_allclose(before(x), reduce[pooling](), rtol=1e-5, atol=1e-6)


def test_every_kernel_is_regularized_and_nothing_else_is() -> None:
    l1_l2 = {"l1": 0.01, "l2": 0.02}
    model = built(
        spec_of(kernel_regularizer=l1_l2, shortcut="projection", head={"kernel_regularizer": l1_l2})
    )
    kernels = [weight.numpy() for weight in model.trainable_weights if weight.name == "kernel"]
    expected = sum(0.01 * np.abs(k).sum() + 0.02 * (k**2).sum() for k in kernels)
    assert len(kernels) == 1 + 6 + 1 + 1
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


def test_no_regularizer_adds_no_loss() -> None:
    assert built(spec_of()).losses == []


@pytest.mark.usefixtures("mixed_bfloat16")
def test_logits_are_float32_under_mixed_precision() -> None:
    model = built(spec_of(normalization={"kind": "group", "groups": 4}))
    images = random_images((2, 8, 8, 3))
    assert model(images).dtype == "float32"
    assert model.get_layer("stage1_block0")(np.zeros((1, 8, 8, 4))).dtype == "bfloat16"
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_saved_network_computes_the_same_bits_whatever_the_policy_at_loading(
    policy: str, tmp_path: Path
) -> None:
    keras.config.set_dtype_policy(policy)
    model = build_model(
        spec_of(dropout=0.1, stochastic_depth=0.2),
        (8, 8, 3),
        10,
        PixelScaling((0.01, 0.02, 0.03), (-1.0, 0.0, 1.0)),
    )
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    images = random_images((3, 8, 8, 3))
    np.testing.assert_array_equal(loaded(images), model(images))


# Pixels


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("layout", ["basic", "bottleneck"])
@pytest.mark.parametrize("shortcut", ["padded", "projection"])
def test_pooling_down_samples_a_stage_by_the_largest_values(
    kind: str, layout: str, shortcut: str
) -> None:
    spec = ModelSpec.model_validate(
        {
            "stem": {"filters": 4},
            "stages": [{"filters": 8, "blocks": 2, "pool_size": 2}],
            "block": {"kind": kind, "layout": layout, "shortcut": shortcut},
        }
    )
    model = build_model(spec, (9, 9, 3), 10, PixelScaling.identity(3))
    # The odd last row and column are dropped.
    assert model.get_layer("stage0_block0").output.shape == (None, 4, 4, 8)
    assert model.get_layer("stage0_block1").output.shape == (None, 4, 4, 8)
    rows = {row.path: row for row in summarize(model)}
    pooled_behind = "conv1" if layout == "basic" else "conv2"
    paths = [path for path in rows if path.startswith("stage0_block0/") and "short" not in path]
    assert paths[paths.index("stage0_block0/pool") - 1] == f"stage0_block0/{pooled_behind}"
    assert "stage0_block1/pool" not in rows


def test_the_shortcut_of_a_pooled_block_is_the_pooled_input() -> None:
    block = ResidualBlock(4, pool_size=2, kernel_initializer="zeros", activation="elu")
    images = np.random.default_rng(0).random((2, 6, 6, 4), np.float32)
    block.build(images.shape)
    largest = images.reshape(2, 3, 2, 3, 2, 4).max(axis=(2, 4))
    np.testing.assert_allclose(block(images, training=False), largest, rtol=1e-6)


def test_a_whitening_stem_is_frozen_and_has_the_kernel_that_it_is_given() -> None:
    kernel = np.random.default_rng(0).normal(size=(2, 2, 3, 24)).astype("float32")
    spec = spec_of(stem={"kind": "whitening"}, kind="plain")
    model = build_model(spec, (8, 8, 3), 10, PixelScaling.identity(3), stem_kernel=kernel)
    stem = model.get_layer("stem_conv")
    np.testing.assert_array_equal(stem.kernel, kernel)
    assert stem.output.shape == (None, 7, 7, 24)
    assert not any(w.path.startswith("stem") for w in model.trainable_weights)
    assert "stem_norm" not in [layer.name for layer in model.layers]


def test_the_bias_of_a_whitening_stem_is_all_that_is_trained_of_it() -> None:
    spec = spec_of(stem={"kind": "whitening", "bias": True}, kind="plain", activation="elu")
    model = built(spec)
    trained = [w for w in model.trainable_weights if w.path.startswith("stem")]
    assert [(w.path, w.shape) for w in trained] == [("stem_bias/bias", (24,))]
    images = random_images((2, 8, 8, 3)).astype("float32")
    before = model.get_layer("stem_conv")(images)
    np.testing.assert_array_equal(model.get_layer("stem_bias")(before), before)
    trained[0].assign(np.arange(24))
    stem = keras.Model(model.input, model.get_layer("stem_act").output)
    sums = np.asarray(before) + np.arange(24)
    np.testing.assert_allclose(stem(images), np.where(sums > 0, sums, np.expm1(sums)), rtol=1e-5)


def test_the_model_scales_its_pixels_itself() -> None:
    scaling = PixelScaling((0.5, 1.0, 2.0), (1.0, 0.0, -1.0))
    model = build_model(spec_of(), (8, 8, 3), 10, scaling)
    images = random_images((2, 8, 8, 3))
    np.testing.assert_allclose(
        model.get_layer("pixels")(images),
        images * np.float32([0.5, 1, 2]) + np.float32([1, 0, -1]),
    )


# Images of any size

POOLED = [{"filters": 24, "blocks": 1, "pool_size": 2}, {"filters": 32, "blocks": 1}]


@pytest.mark.parametrize(
    "spec",
    [
        {"block": {"kind": "plain", "layout": "bottleneck", "normalization": "layer"}},
        {"block": {"preactivation": True, "activation": "prelu", "stochastic_depth": 0.3}},
        {
            "stem": {"filters": 4, "strides": 2, "pool_size": 2},
            "block": {
                "preactivation": True,
                "shortcut": "projection",
                "normalization": {"group": {"groups": 2}},
            },
        },
        {
            "block": {
                "shortcut": "projection",
                "normalization": "none",
                "dropout": 0.2,
                "spatial_dropout": 0.2,
            }
        },
        {
            "stem": {"kind": "whitening", "bias": True},
            "stages": POOLED,
            "block": {"activation": "silu"},
        },
        {"stages": POOLED, "block": {"shortcut": "projection"}, "head": {"pooling": "max"}},
    ],
    ids=lambda spec: "-".join(map(str, spec["block"].values())),
)
def test_a_network_for_any_size_computes_what_one_for_a_fixed_size_does(
    spec: dict[str, Any],
) -> None:
    stages = [{"filters": 4, "blocks": 1}, {"filters": 8, "blocks": 1, "strides": 2}]
    # Odd and not square, so that strides, padding and pooling meet remainders.
    images = random_images((3, 13, 11, 3))
    results = []
    for height, width in ((13, 11), (None, None)):
        keras.utils.set_random_seed(5)  # The same weights, and the same dropout.
        small = {"stem": {"filters": 4}, "stages": stages, **spec}
        model = built(ModelSpec.model_validate(small), (height, width, 3))
        logits, gradient = _step_for(model, height, width)(images)
        results.append([logits, gradient, *model.get_weights()])
    for fixed, any_size in zip(*results, strict=True):
        # Some gradients are nothing but rounding: of a bias before a normalization.
        np.testing.assert_allclose(any_size, fixed, rtol=1e-4, atol=1e-5 * np.abs(fixed).max())


def _step_for(model: keras.Model, height: int | None, width: int | None) -> Any:
    """Return a graph for images of these sides: logits of inference, gradient of training."""

    @tf.function(input_signature=[tf.TensorSpec([3, height, width, 3], tf.uint8)])
    def step(images: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(images, training=True)))
        gradient = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
        whole = tf.concat([tf.reshape(part, [-1]) for part in gradient], axis=0)
        return model(images, training=False), whole

    return step
