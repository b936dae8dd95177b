"""The initializers of the spec: the table of Keras', and Dirac against convolutions."""

from __future__ import annotations

import inspect
import re
from itertools import combinations
from typing import Any

import keras
import numpy as np
import pytest
from small_networks import built, spec_of

from trainer.config.model_schema import INITIALIZERS, InitializerSpec
from trainer.initializers import Dirac

# By the name of the spec


def keras_initializers() -> dict[str, frozenset[str]]:
    """Arguments of each public initializer, but for `seed` and the axes of einsum kernels."""
    base = keras.initializers.Initializer
    classes = {
        kind
        for kind in vars(keras.initializers).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    }
    return {
        re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower(): frozenset(
            inspect.signature(kind).parameters
        )
        - {"seed", "input_axes", "output_axes"}
        for kind in classes
        # The kernel of a Fourier transform, which no weight of a classifier is.
        if kind.__name__ != "STFT"
    }


def test_the_table_of_initializers_is_that_of_keras() -> None:
    assert keras_initializers() == {k: v for k, v in INITIALIZERS.items() if k != "dirac"}


def test_an_initializer_gets_the_arguments_of_the_spec() -> None:
    model = built(
        spec_of(
            normalization="none",
            kernel_initializer={"random_uniform": {"minval": 0.25, "maxval": 0.5}},
            bias_initializer={"constant": {"value": 0.125}},
            head={"kernel_initializer": {"identity": {"gain": 3}}},
        )
    )
    for weight in model.trainable_weights:
        values = weight.numpy()
        if weight.path.startswith("head_logits"):
            expected = 3 * np.eye(8, 10) if weight.name == "kernel" else np.zeros(10)
            np.testing.assert_array_equal(values, expected)
        elif weight.name == "bias":
            np.testing.assert_array_equal(values, 0.125)
        else:
            assert 0.25 <= values.min() < values.max() <= 0.5


@pytest.mark.parametrize("kind", sorted(set(INITIALIZERS) - {"identity"}))
def test_every_initializer_makes_kernels_and_no_two_random_ones_are_equal(kind: str) -> None:
    head = {} if kind == "dirac" else {"kernel_initializer": kind}
    model = built(spec_of(kernel_initializer=kind, head=head))
    kernels = [w.numpy() for w in model.trainable_weights if w.name == "kernel"]
    assert all(np.isfinite(kernel).all() for kernel in kernels)
    equal_pairs = [
        pair
        for pair in combinations(kernels, 2)
        if pair[0].shape == pair[1].shape and np.array_equal(*pair)
    ]
    # Of square kernels, dirac leaves nothing to chance.
    is_random = kind not in ("constant", "dirac", "ones", "zeros")
    assert bool(equal_pairs) == (not is_random)


@pytest.mark.parametrize("kind", sorted(set(INITIALIZERS) - {"dirac", "identity", "orthogonal"}))
def test_every_initializer_but_those_of_matrices_makes_biases(kind: str) -> None:
    built(spec_of(normalization="none", bias_initializer=kind))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"kernel_initializer": "identity"}, "(?s)kernel_initializer.*identity makes matrices"),
        ({"bias_initializer": "dirac"}, "(?s)bias_initializer.*dirac makes kernels"),
        ({"bias_initializer": "identity"}, "(?s)bias_initializer.*identity makes matrices"),
        ({"bias_initializer": "orthogonal"}, "(?s)bias_initializer.*orthogonal makes matrices"),
    ],
)
def test_an_initializer_of_matrices_is_refused_where_there_is_none(
    block: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**block)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "variance_scaling", "mode": "fan"}, "mode must be one of fan_in, fan_out, fan"),
        ({"kind": "variance_scaling", "distribution": 3}, "distribution must be .*uniform"),
        ({"kind": "random_normal", "stddev": "small"}, "stddev must be a number.*'small'"),
    ],
)
def test_an_argument_that_keras_would_refuse_is_refused_in_the_config(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        InitializerSpec.model_validate(arguments)


# Dirac


@pytest.mark.parametrize(("channels", "filters"), [(3, 5), (4, 4), (5, 3)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_first_filters_pass_their_input_on(channels: int, filters: int, size: int) -> None:
    images = np.random.default_rng(0).normal(size=(2, 6, 6, channels)).astype("float32")
    layer = keras.layers.Conv2D(
        filters, size, padding="same", use_bias=False, kernel_initializer=Dirac()
    )
    outputs = keras.ops.convert_to_numpy(layer(images))
    passed = min(channels, filters)
    np.testing.assert_array_equal(outputs[..., :passed], images[..., :passed])


def test_the_other_filters_have_the_variance_of_lecun_normal() -> None:
    kernel = keras.ops.convert_to_numpy(Dirac(seed=1)((3, 3, 32, 512)))
    assert kernel[..., 32:].std() == pytest.approx((1 / (9 * 32)) ** 0.5, rel=0.02)


def test_a_seed_fixes_the_filters_and_survives_a_config() -> None:
    one, same = Dirac(seed=3), Dirac.from_config(Dirac(seed=3).get_config())
    shape = (3, 3, 2, 6)
    np.testing.assert_array_equal(one(shape), same(shape))
    assert not np.array_equal(one(shape), Dirac(seed=4)(shape))


def test_a_copy_of_an_unseeded_one_draws_other_filters() -> None:
    initializer = Dirac()
    shape = (3, 3, 2, 6)
    assert not np.array_equal(initializer(shape), initializer.clone()(shape))


def test_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Conv2D kernel. Received: shape=\(3, 4\)"):
        Dirac()((3, 4))
