"""The embedded data set: what it is drawn from, and what does not give the class away."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.shapes import _SHAPES, CLASS_NAMES, _side_of_equal_area, draw_shapes
from trainer.data.sources import Split


@pytest.fixture(scope="module")
def train() -> Split:
    return draw_shapes(6000, "train", seed=0)


@pytest.fixture(scope="module")
def test() -> Split:
    return draw_shapes(2000, "test", seed=0)


def linear_accuracy(train: np.ndarray, test: np.ndarray, splits: tuple[Split, Split]) -> float:
    """Fit one-hot labels to features by ridge regression; return the test accuracy."""
    mean = train.mean(axis=0)
    train, test = train - mean, test - mean
    targets = np.eye(len(CLASS_NAMES))[splits[0].labels]
    gram = train.T @ train + 1e-3 * len(train) * np.eye(train.shape[1])
    scores = test @ np.linalg.solve(gram, train.T @ (targets - targets.mean(axis=0)))
    return float((scores.argmax(axis=1) == splits[1].labels).mean())


def mean_colours(split: Split) -> np.ndarray:
    return split.images.mean(axis=(1, 2)) / 255


def half_size_pixels(split: Split) -> np.ndarray:
    # Fewer features than images: at full size the fit is too loose to be a fair attempt.
    pixels = split.images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4), dtype=np.float32)
    return pixels.reshape(split.num_images, -1) / 255


def test_images_are_32_by_32_in_colour_and_marked_synthetic(test: Split) -> None:
    assert (test.images.shape, test.images.dtype) == ((2000, 32, 32, 3), np.uint8)
    assert (test.labels.shape, test.labels.dtype) == ((2000,), np.int32)
    assert test.synthetic
    assert test.origin == "a drawing with seed 0"
    assert test.num_classes == 10


def test_the_same_seed_draws_the_same_bytes() -> None:
    first, second = draw_shapes(50, "train", seed=3), draw_shapes(50, "train", seed=3)
    assert first.images.tobytes() == second.images.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()


def test_another_seed_draws_other_images() -> None:
    assert (draw_shapes(50, "train", 3).images != draw_shapes(50, "train", 4).images).mean() > 0.9


def test_train_and_test_have_no_image_in_common(train: Split, test: Split) -> None:
    drawn = {image.tobytes() for image in train.images}
    assert len(drawn) == train.num_images
    assert drawn.isdisjoint(image.tobytes() for image in test.images)


def test_classes_are_as_even_as_the_number_allows() -> None:
    assert sorted(np.bincount(draw_shapes(57, "test", 0).labels)) == [5] * 3 + [6] * 7


def test_more_images_of_a_class_than_one_block_are_all_drawn() -> None:
    assert (np.ptp(draw_shapes(5100, "train", 0).images, axis=(1, 2, 3)) > 0).all()


def test_the_mean_colour_does_not_tell_the_class(train: Split, test: Split) -> None:
    accuracy = linear_accuracy(mean_colours(train), mean_colours(test), (train, test))
    assert accuracy <= 0.15


def test_a_linear_classifier_does_not_tell_the_class(train: Split, test: Split) -> None:
    accuracy = linear_accuracy(half_size_pixels(train), half_size_pixels(test), (train, test))
    assert accuracy <= 0.20


def test_shapes_of_one_size_cover_the_same_area() -> None:
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 100_000))
    for distance in _SHAPES.values():
        side = _side_of_equal_area(distance)
        inside = distance(*(points / side)) < 0
        assert inside.mean() * 3**2 == pytest.approx(1, abs=0.04)


def test_no_shape_has_a_handedness() -> None:
    """Each one is its own mirror image about some axis, so that a flip keeps the label."""
    axis = np.linspace(-2, 2, 81)
    x, y = axis[None, :], axis[:, None]
    for name, distance in _SHAPES.items():
        shape = distance(x, y)
        mirrored = (distance(-x, y), distance(x, -y), distance(y, x))
        assert any(np.allclose(shape, image, atol=1e-6) for image in mirrored), name
