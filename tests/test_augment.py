from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from trainer.config.schema import Augmentation, Cutout, HorizontalFlip, Mixup, RandomShift
from trainer.data.augment import augment_batch
from trainer.errors import ConfigError

HEIGHT, WIDTH, CLASSES = 9, 7, 5
MEAN_COLOR = np.array([230.6, 240.2, 250.4], np.float32)  # Brighter than any pixel below.
ALL = (HorizontalFlip(), RandomShift(pixels=2), Cutout(size=4), Mixup())


def draw_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 200, (count, HEIGHT, WIDTH, 3), np.uint8)


def draw_labels(count: int) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]


def augment(
    images: np.ndarray, specs: Sequence[Augmentation], step: int = 0, epoch: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    new_images, new_labels = augment_batch(
        tf.constant(images),
        tf.constant(draw_labels(len(images))),
        indices=tf.range(len(images), dtype=tf.int64),
        epoch=tf.constant(epoch, tf.int64),
        step=tf.constant(step, tf.int64),
        seed=seed,
        augmentations=specs,
        mean_color=MEAN_COLOR,
    )
    return new_images.numpy(), new_labels.numpy()


def find_flips(images: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Return which images are mirrored; each must be itself or its exact mirror image."""
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (flipped == images).all(axis=(1, 2, 3))).all()
    return mirrored


def find_offset(image: np.ndarray, shifted: np.ndarray, pixels: int, mode: str) -> tuple[int, int]:
    """Return where in the padded image the crop is; there must be one."""
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode)
    for down in range(2 * pixels + 1):
        for right in range(2 * pixels + 1):
            if np.array_equal(padded[down : down + HEIGHT, right : right + WIDTH], shifted):
                return down, right
    raise AssertionError("the image is no crop of the padded image")


def test_no_augmentation_returns_the_batch() -> None:
    images = draw_images(4)
    new_images, new_labels = augment(images, [])
    np.testing.assert_array_equal(new_images, images)
    np.testing.assert_array_equal(new_labels, draw_labels(4))


def test_a_random_flip_mirrors_about_half_of_the_images_exactly() -> None:
    images = draw_images(1000)
    flips = find_flips(images, augment(images, [HorizontalFlip()])[0])
    assert 430 < flips.sum() < 570


def test_an_alternating_flip_shows_every_image_both_ways_in_two_epochs() -> None:
    images = draw_images(1000)
    spec = [HorizontalFlip(mode="alternating")]
    epochs = [
        find_flips(images, augment(images, spec, step=10 * epoch, epoch=epoch)[0])
        for epoch in range(3)
    ]
    np.testing.assert_array_equal(epochs[0], ~epochs[1])
    np.testing.assert_array_equal(epochs[0], epochs[2])
    assert 430 < epochs[0].sum() < 570


def test_an_alternating_flip_chooses_other_images_under_another_seed() -> None:
    images = draw_images(1000)
    spec = [HorizontalFlip(mode="alternating")]
    ours, theirs = (find_flips(images, augment(images, spec, seed=seed)[0]) for seed in (0, 1))
    assert 430 < (ours != theirs).sum() < 570


@pytest.mark.parametrize(("padding", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_a_random_shift_is_a_crop_of_the_padded_image(padding: str, mode: str) -> None:
    images = draw_images(500)
    shifted, _ = augment(images, [RandomShift(pixels=2, padding=padding)])
    offsets = {find_offset(*pair, 2, mode) for pair in zip(images, shifted, strict=True)}
    assert offsets == {(down, right) for down in range(5) for right in range(5)}


def test_a_shift_farther_than_the_image_is_wide_may_leave_it_black() -> None:
    images = draw_images(300)
    shifted, _ = augment(images, [RandomShift(pixels=12)])
    black = 0
    for image, moved in zip(images, shifted, strict=True):
        find_offset(image, moved, 12, "constant")
        black += not moved.any()
    assert black > 0


def test_a_reflecting_shift_as_large_as_the_image_names_pixels_and_size() -> None:
    with pytest.raises(ConfigError, match=r"pixels=7, images of 9x7.*padding: zero"):
        augment(draw_images(2), [RandomShift(pixels=7, padding="reflect")])


@pytest.mark.parametrize("size", [3, 4, 20])
def test_cutout_fills_one_clipped_square_around_any_pixel_with_the_mean_color(size: int) -> None:
    images = draw_images(1500)
    new_images, _ = augment(images, [Cutout(size=size)])
    covered = (new_images == np.round(MEAN_COLOR)).all(axis=-1)
    np.testing.assert_array_equal(new_images[~covered], images[~covered])
    squares = set()
    for row in range(HEIGHT):
        for column in range(WIDTH):
            square = np.zeros((HEIGHT, WIDTH), bool)
            top, left = row - size // 2, column - size // 2
            square[max(top, 0) : top + size, max(left, 0) : left + size] = True
            squares.add(square.tobytes())
    assert {mask.tobytes() for mask in covered} == squares


def test_cutout_needs_a_mean_color() -> None:
    with pytest.raises(ValueError, match="mean_color"):
        augment_batch(
            tf.zeros([1, 2, 2, 3]),
            tf.zeros([1, 2]),
            indices=tf.range(1),
            epoch=tf.constant(0),
            step=tf.constant(0),
            seed=0,
            augmentations=[Cutout()],
        )


def test_mixup_blends_images_and_labels_with_one_weight() -> None:
    images, labels = draw_images(8), draw_labels(8)
    new_images, new_labels = augment(images, [Mixup(alpha=1.0)])
    weight = new_labels[0, 0]  # Image 0 is of class 0, its partner, image 7, of class 2.
    assert 0.0 < weight < 1.0
    assert new_images.dtype == np.float32
    np.testing.assert_allclose(
        new_images, weight * images + (1 - weight) * images[::-1].astype(np.float64), rtol=1e-5
    )
    np.testing.assert_allclose(new_labels, weight * labels + (1 - weight) * labels[::-1], atol=1e-6)


def test_labels_sum_to_one_after_mixup() -> None:
    for step in range(20):
        _, labels = augment(draw_images(7), [Mixup()], step=step)
        np.testing.assert_allclose(labels.sum(axis=1), 1.0, atol=1e-6)


def test_mixup_weights_have_the_moments_of_their_beta_distribution() -> None:
    alpha = 0.5
    weights = [
        augment(draw_images(2), [Mixup(alpha=alpha)], step=step)[1][0, 0] for step in range(400)
    ]
    # Four standard errors: of the mean 0.35 / 20, of the variance 0.09 / 20 or less.
    assert np.mean(weights) == pytest.approx(0.5, abs=0.07)
    assert np.var(weights) == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.018)


def test_mixup_with_a_tiny_alpha_stays_finite() -> None:
    for step in range(50):
        images, _ = augment(draw_images(2), [Mixup(alpha=1e-5)], step=step)
        assert np.isfinite(images).all()


def test_augmentations_apply_in_their_order_with_draws_of_their_own() -> None:
    images = draw_images(100)
    flip, shift = HorizontalFlip(), RandomShift(pixels=2)
    flip_then_shift, _ = augment(images, [flip, shift])
    shift_then_flip, _ = augment(images, [shift, flip])
    np.testing.assert_array_equal(flip_then_shift, augment(augment(images, [flip])[0], [shift])[0])
    np.testing.assert_array_equal(shift_then_flip, augment(augment(images, [shift])[0], [flip])[0])
    assert (flip_then_shift != shift_then_flip).any()


def test_two_augmentations_of_one_kind_draw_differently() -> None:
    images = draw_images(50)
    once, _ = augment(images, [Cutout(size=2)])
    twice, _ = augment(images, [Cutout(size=2), Cutout(size=2)])
    assert (once != twice).any(axis=(1, 2, 3)).mean() > 0.8


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.kind)
def test_draws_repeat_for_a_step_and_differ_by_step_and_seed(spec: Augmentation) -> None:
    images = draw_images(50)
    first, _ = augment(images, [spec])
    np.testing.assert_array_equal(first, augment(images, [spec])[0])
    assert (first != augment(images, [spec], step=1)[0]).any()
    assert (first != augment(images, [spec], seed=1)[0]).any()


def test_eager_and_in_a_tf_data_map_are_equal() -> None:
    images, labels = draw_images(6), draw_labels(6)
    specs = (HorizontalFlip(mode="alternating"), *ALL)

    def augment_step(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return augment_batch(
            tf.constant(images),
            tf.constant(labels),
            indices=tf.range(6, dtype=tf.int64),
            epoch=step // 2,
            step=step,
            seed=0,
            augmentations=specs,
            mean_color=MEAN_COLOR,
        )

    for step, batch in enumerate(tf.data.Dataset.range(4).map(augment_step)):
        eager = augment(images, specs, step=step, epoch=step // 2)
        np.testing.assert_allclose(batch[0], eager[0], rtol=1e-6)
        np.testing.assert_allclose(batch[1], eager[1], rtol=1e-6)
