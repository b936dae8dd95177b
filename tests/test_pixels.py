"""Statistics of the training images against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.pixels import PixelScaling, whitening_kernel


def random_images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth_images(num_images: int, side: int = 12) -> np.ndarray:
    """Images whose neighbouring pixels and channels are alike, as in photographs."""
    rng = np.random.default_rng(1)
    grey = rng.normal(size=(num_images, side, side, 1)).cumsum(axis=1).cumsum(axis=2)
    color = grey * [1.0, 0.9, 0.8] + rng.normal(size=(num_images, side, side, 3))
    return np.clip(128 + 12 * color, 0, 255).astype(np.uint8)


def test_pixels_per_channel_have_zero_mean_and_unit_deviation() -> None:
    images = random_images((50, 4, 4, 3))
    images[..., 1] //= 4
    scaling = PixelScaling.of(images, "per_channel")
    pixels = images.astype("float64").reshape(-1, 3)
    mean, deviation = pixels.mean(axis=0), pixels.std(axis=0)
    np.testing.assert_allclose(scaling.scale, 1 / deviation, rtol=1e-12)
    np.testing.assert_allclose(scaling.offset, -mean / deviation, rtol=1e-12)


def test_a_channel_of_one_value_becomes_zero() -> None:
    images = np.full((5, 2, 2, 1), 7, np.uint8)
    scaling = PixelScaling.of(images, "per_channel")
    assert 7 * scaling.scale[0] + scaling.offset[0] == 0


@pytest.mark.parametrize(("normalize", "largest"), [("unit", 1.0), ("none", 255.0)])
def test_pixels_without_statistics_keep_zero_at_zero(normalize: str, largest: float) -> None:
    scaling = PixelScaling.of(random_images((2, 2, 2, 3)), normalize)
    assert scaling.offset == (0, 0, 0)
    assert np.multiply(255, scaling.scale) == pytest.approx([largest] * 3)


def convolved(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the outputs of a convolution without padding, one row a position."""
    size = kernel.shape[0]
    height, width = images.shape[1] - size + 1, images.shape[2] - size + 1
    total = sum(
        images[:, row : row + height, column : column + width] @ kernel[row, column]
        for row in range(size)
        for column in range(size)
    )
    return np.asarray(total).reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("size", [2, 3])
def test_a_whitening_kernel_makes_uncorrelated_outputs_of_unit_power(size: int) -> None:
    images = smooth_images(200)
    scaling = PixelScaling.of(images, "per_channel")
    kernel = whitening_kernel(images, scaling, size, epsilon=1e-9)
    length = size * size * 3
    assert kernel.shape == (size, size, 3, 2 * length) and kernel.dtype == np.float32
    scaled = images * np.array(scaling.scale) + np.array(scaling.offset)
    outputs = convolved(scaled, kernel.astype(np.float64))[:, :length]
    moments = outputs.T @ outputs / len(outputs)
    np.testing.assert_allclose(moments, np.eye(length), atol=2e-3)


def test_the_second_half_of_a_whitening_kernel_is_the_first_negated() -> None:
    images = smooth_images(20)
    kernel = whitening_kernel(images, PixelScaling.of(images, "per_channel"), 2, 5e-4)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])


def test_epsilon_keeps_components_without_variance_finite() -> None:
    images = np.full((3, 4, 4, 3), 9, np.uint8)
    kernel = whitening_kernel(images, PixelScaling.of(images, "unit"), 2, epsilon=0.01)
    assert np.isfinite(kernel).all() and np.abs(kernel).max() <= 1 / np.sqrt(0.01)


def test_a_whitening_kernel_of_many_images_takes_evenly_spaced_ones() -> None:
    images = smooth_images(60)
    # The same images a hundred times over: spaced by two, each is still seen.
    many = np.repeat(images, 200, axis=0)
    scaling = PixelScaling.of(images, "per_channel")
    # The inverse of the second moments: free of the signs and of rotations among like components.
    few, many = (
        kernel.reshape(12, 24) @ kernel.reshape(12, 24).T
        for kernel in (whitening_kernel(i, scaling, 2, 1e-3) for i in (images, many))
    )
    np.testing.assert_allclose(few, many, atol=0.01 * np.abs(few).max())
