"""The Dirac initializer against convolutions."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from trainer.initializers import Dirac


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
