"""Views of test images against the sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.views import Views, logits_over_views, views_of

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)


def weights_times_pixels(images: np.ndarray) -> np.ndarray:
    """A linear model that sees where each pixel is, with three classes."""
    kernel = np.random.default_rng(1).normal(size=(images[0].size, 3))
    return images.reshape(len(images), -1) @ kernel


def test_a_single_view_is_the_images_themselves() -> None:
    averaged, _ = logits_over_views(weights_times_pixels, IMAGES, "single")
    np.testing.assert_allclose(averaged, weights_times_pixels(IMAGES), rtol=1e-6)


def test_two_views_average_an_image_and_its_mirror_image() -> None:
    mirrored = IMAGES[:, :, ::-1]
    expected = (weights_times_pixels(IMAGES) + weights_times_pixels(mirrored)) / 2
    averaged, _ = logits_over_views(weights_times_pixels, IMAGES, "mirror")
    np.testing.assert_allclose(averaged, expected, rtol=1e-5)


def test_six_views_give_half_of_the_weight_to_images_moved_by_one_pixel() -> None:
    def moved(image: np.ndarray, by: int) -> np.ndarray:
        result = np.empty_like(image)
        height, width, _ = image.shape
        for row in range(height):
            for column in range(width):
                y, x = row + by, column + by
                y = -y if y < 0 else 2 * (height - 1) - y if y >= height else y
                x = -x if x < 0 else 2 * (width - 1) - x if x >= width else x
                result[row, column] = image[y, x]
        return result

    moves = [np.stack([moved(image, by) for image in IMAGES]) for by in (-1, 1)]
    both_ways = [(weights_times_pixels(v) + weights_times_pixels(v[:, :, ::-1])) / 2 for v in moves]
    still = (weights_times_pixels(IMAGES) + weights_times_pixels(IMAGES[:, :, ::-1])) / 2
    expected = 0.5 * still + 0.25 * both_ways[0] + 0.25 * both_ways[1]
    averaged, _ = logits_over_views(weights_times_pixels, IMAGES, "mirror_shift")
    np.testing.assert_allclose(averaged, expected, rtol=1e-5)


@pytest.mark.parametrize(("views", "count"), [("single", 1), ("mirror", 2), ("mirror_shift", 6)])
def test_the_logits_of_the_images_as_they_are_come_without_another_pass(
    views: Views, count: int
) -> None:
    passes = []

    def logits_of(images: np.ndarray) -> np.ndarray:
        passes.append(images)
        return weights_times_pixels(images)

    _, single = logits_over_views(logits_of, IMAGES, views)

    np.testing.assert_array_equal(single, weights_times_pixels(IMAGES).astype(np.float32))
    assert len(passes) == count


@pytest.mark.parametrize("views", ["single", "mirror", "mirror_shift"])
@pytest.mark.parametrize("side", [1, 2, 5])
def test_the_weights_of_the_views_sum_to_one_and_every_view_keeps_its_shape(
    views: str, side: int
) -> None:
    images = np.zeros((2, side, side, 3), np.uint8)
    found = list(views_of(images, views))
    assert sum(weight for weight, _ in found) == 1
    assert {view.shape for _, view in found} == {images.shape}
    assert {view.dtype for _, view in found} == {images.dtype}
