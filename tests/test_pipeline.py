from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config.schema import Cutout, EarlyCrops, HorizontalFlip, Mixup, RandomShift
from trainer.data.pipeline import (
    evaluation_batch_size,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from trainer.errors import ConfigError, DataError

AUGMENT = (HorizontalFlip(), RandomShift(pixels=2), Cutout(size=3), Mixup())


def number_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images that spell their own index in base 256, and labels."""
    indices = np.arange(count)
    digits = np.stack([indices >> 16, indices >> 8, indices], axis=-1).astype(np.uint8)
    return digits[:, None, None, :], (indices % 3).astype(np.int32)


def read_indices(images: tf.Tensor) -> np.ndarray:
    return images.numpy()[:, 0, 0, :].astype(np.int64) @ [65536, 256, 1]


def take_epochs(count: int, batch_size: int, epochs: int, seed: int = 0) -> np.ndarray:
    """Return the indices that each epoch takes, shape (epochs, images of an epoch)."""
    images, labels = number_images(count)
    dataset = training_batches(images, labels, 3, batch_size=batch_size, seed=seed)
    batches = dataset.take(epochs * (count // batch_size))
    return np.stack([read_indices(batch) for batch, _ in batches]).reshape(epochs, -1)


def draw_stream(
    seed: int = 0, first_step: int = 0, count: int = 8, early_crops: EarlyCrops | None = None
) -> list[np.ndarray]:
    """Return images and labels in turns; an epoch has four batches of images 6 by 5."""
    images = np.random.default_rng(0).integers(0, 256, (23, 6, 5, 3), np.uint8)
    labels = np.arange(23, dtype=np.int32) % 4
    dataset = training_batches(
        images,
        labels,
        4,
        batch_size=5,
        seed=seed,
        augment=AUGMENT,
        early_crops=early_crops,
        first_step=first_step,
    )
    return [array for batch in dataset.take(count).as_numpy_iterator() for array in batch]


def test_steps_per_epoch_counts_full_batches() -> None:
    assert steps_per_epoch(45_000, 128) == 351
    assert steps_per_epoch(128, 128) == 1


def test_too_few_images_for_one_batch_names_both_numbers_and_the_fix() -> None:
    with pytest.raises(DataError, match=r"100 images, batch_size=128\. Lower fit\.batch_size"):
        steps_per_epoch(100, 128)


@pytest.mark.parametrize(
    ("count", "batch_size"), [(1, 1), (7, 2), (7, 7), (128, 16), (45_000, 128)]
)
def test_an_epoch_takes_each_image_at_most_once(count: int, batch_size: int) -> None:
    taken = count // batch_size * batch_size
    for epoch in take_epochs(count, batch_size, epochs=3):
        assert len(np.unique(epoch)) == taken
        assert 0 <= epoch.min() <= epoch.max() < count


def test_the_images_left_out_differ_by_epoch() -> None:
    left_out = [set(range(23)) - set(epoch) for epoch in take_epochs(23, 5, epochs=20)]
    assert {len(images) for images in left_out} == {3}
    assert len(set().union(*left_out)) > 15


def test_every_image_is_taken_equally_often_at_every_place() -> None:
    epochs = take_epochs(7, 7, epochs=1400)
    counts = np.stack([np.bincount(epochs[:, place], minlength=7) for place in range(7)])
    chi_squared = (np.square(counts - 200.0) / 200.0).sum()
    assert chi_squared < 36 + 5 * np.sqrt(2 * 36)  # Mean and standard deviation of the chi2.


def test_orders_show_no_pattern_within_or_between_epochs() -> None:
    # In a random order of 45,000 no difference of neighbours is met more than about 9 times;
    # tf.random.experimental.index_shuffle repeats some 20 to 40 times.
    epochs = take_epochs(45_000, 1000, epochs=4)
    for epoch in epochs:
        assert np.unique(np.diff(epoch), return_counts=True)[1].max() < 15
    for one, other in pairwise(epochs):
        assert np.unique(one - other, return_counts=True)[1].max() < 15
        assert abs(np.corrcoef(one, other)[0, 1]) * np.sqrt(45_000) < 5


def test_images_keep_their_labels_as_one_hot_vectors() -> None:
    images, labels = number_images(50)
    for batch, one_hot in training_batches(images, labels, 3, batch_size=8, seed=0).take(12):
        np.testing.assert_array_equal(one_hot, np.eye(3)[labels[read_indices(batch)]])


def test_equal_seeds_give_equal_streams() -> None:
    for one, other in zip(draw_stream(), draw_stream(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_seed_gives_another_order() -> None:
    assert (take_epochs(100, 10, 1, seed=0) != take_epochs(100, 10, 1, seed=1)).mean() > 0.9


@pytest.mark.parametrize("first_step", [1, 4, 6])  # Four steps are an epoch.
def test_a_resumed_stream_goes_on_where_the_first_one_stopped(first_step: int) -> None:
    rest = draw_stream()[2 * first_step :]
    resumed = draw_stream(first_step=first_step, count=8 - first_step)
    for one, other in zip(rest, resumed, strict=True):
        np.testing.assert_array_equal(one, other)


def place_of(window: np.ndarray, whole: np.ndarray) -> tuple[int, int]:
    """Return the one place of a window of all images at once."""
    (_, rows, columns, _), (_, height, width, _) = window.shape, whole.shape
    (place,) = [
        (top, left)
        for top in range(height - rows + 1)
        for left in range(width - columns + 1)
        if np.array_equal(whole[:, top : top + rows, left : left + columns], window)
    ]
    return place


def test_early_epochs_see_crops_and_later_ones_whole_images() -> None:
    images = draw_stream(count=12, early_crops=EarlyCrops(size=3, epochs=2))[::2]
    assert [batch.shape for batch in images] == [(5, 3, 3, 3)] * 8 + [(5, 6, 5, 3)] * 4


def test_an_early_batch_is_one_window_of_the_uncropped_batch() -> None:
    cropped = draw_stream(count=40, early_crops=EarlyCrops(size=3, epochs=9))
    whole = draw_stream(count=40)
    places = {place_of(*pair) for pair in zip(cropped[:72:2], whole[:72:2], strict=True)}
    assert len(places) > 8  # Of 4 x 3, in 36 batches.
    for one, other in zip(cropped[1::2] + cropped[72:], whole[1::2] + whole[72:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_seed_crops_elsewhere() -> None:
    def places(seed: int) -> list[tuple[int, int]]:
        cropped = draw_stream(seed, early_crops=EarlyCrops(size=2, epochs=2))[::2]
        return list(map(place_of, cropped, draw_stream(seed)[::2]))

    assert places(0) != places(1)


@pytest.mark.parametrize("first_step", [1, 4, 6, 9])  # Crops end after eight steps.
def test_a_resumed_stream_crops_as_the_first_one_did(first_step: int) -> None:
    early_crops = EarlyCrops(size=3, epochs=2)
    rest = draw_stream(count=12, early_crops=early_crops)[2 * first_step :]
    resumed = draw_stream(first_step=first_step, count=12 - first_step, early_crops=early_crops)
    for one, other in zip(rest, resumed, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_stream_with_early_crops_leaves_height_and_width_open() -> None:
    images, labels = np.zeros((20, 6, 5, 3), np.uint8), np.arange(20, dtype=np.int32)
    for first_step in (0, 5):  # In the early epoch and behind it.
        dataset = training_batches(
            images,
            labels,
            20,
            batch_size=4,
            seed=0,
            early_crops=EarlyCrops(size=4, epochs=1),
            first_step=first_step,
        )
        assert dataset.element_spec == (
            tf.TensorSpec([4, None, None, 3], tf.uint8),
            tf.TensorSpec([4, 20], tf.float32),
        )


def test_early_crops_as_large_as_the_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"size=5, images of 6x5\. Lower"):
        draw_stream(early_crops=EarlyCrops(size=5, epochs=1))


def test_cutout_fills_with_the_mean_color_of_the_training_set() -> None:
    images, labels = number_images(30)
    images = images + np.uint8([200, 100, 0])
    spec = Cutout(size=1)  # The whole of a one-pixel image.
    batch, _ = next(iter(training_batches(images, labels, 3, batch_size=4, seed=0, augment=[spec])))
    np.testing.assert_array_equal(batch[:, 0, 0], np.tile([200, 100, 14], (4, 1)))  # 14.5 to even.


def test_training_batches_have_static_shapes_and_stay_uint8_without_mixup() -> None:
    images, labels = number_images(20)
    plain = training_batches(images, labels, 3, batch_size=4, seed=0, augment=[RandomShift()])
    mixed = training_batches(images, labels, 3, batch_size=4, seed=0, augment=[Mixup()])
    assert plain.element_spec == (
        tf.TensorSpec([4, 1, 1, 3], tf.uint8),
        tf.TensorSpec([4, 3], tf.float32),
    )
    assert mixed.element_spec == (
        tf.TensorSpec([4, 1, 1, 3], tf.float32),
        tf.TensorSpec([4, 3], tf.float32),
    )
    assert plain.cardinality() == tf.data.INFINITE_CARDINALITY


def test_no_stream_is_autotuned() -> None:
    images, labels = number_images(20)
    for dataset in (
        training_batches(images, labels, 3, batch_size=4, seed=0),
        evaluation_batches(images, labels, 3, batch_size=4),
    ):
        assert dataset.options().autotune.enabled is False


class RecordingModel(keras.Model):
    """Keeps what it is given instead of learning from it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[np.ndarray] = []
        self.built = True

    def train_step(self, data: Any) -> dict[str, float]:
        self.batches.append(read_indices(data[0]))
        return {"loss": 0.0}


def test_fit_walks_on_through_one_stream_over_all_epochs() -> None:
    images, labels = number_images(23)
    model = RecordingModel()
    model.compile(run_eagerly=True)
    model.fit(
        training_batches(images, labels, 3, batch_size=5, seed=0),
        steps_per_epoch=4,
        epochs=3,
        verbose=0,
        shuffle=False,
    )
    np.testing.assert_array_equal(np.concatenate(model.batches), take_epochs(23, 5, 3).ravel())


@pytest.mark.parametrize(("count", "batch_size"), [(1, 128), (127, 128), (128, 128), (1001, 100)])
def test_evaluation_gives_every_image_once_and_in_order(count: int, batch_size: int) -> None:
    images, labels = number_images(count)
    batches = list(evaluation_batches(images, labels, 3, batch_size=batch_size))
    indices = np.concatenate([read_indices(batch) for batch, _ in batches])
    np.testing.assert_array_equal(indices, np.arange(count))
    np.testing.assert_array_equal(
        np.concatenate([one_hot for _, one_hot in batches]), np.eye(3, dtype=np.float32)[labels]
    )
    assert len(batches[0][0]) == min(count, batch_size)


@pytest.mark.parametrize(
    ("count", "batch_size", "num_replicas", "expected"),
    [
        (1001, 100, 1, 100),  # One image is enough for one replica.
        (1001, 100, 2, 98),  # 21 are left; of 100, one would be.
        (10_000, 128, 4, 128),  # 16 are left.
        (7, 128, 2, 4),  # 4 and 3; 7 at once cannot be shared equally.
    ],
)
def test_evaluation_batch_size_leaves_no_replica_without_an_image(
    count: int, batch_size: int, num_replicas: int, expected: int
) -> None:
    assert evaluation_batch_size(count, batch_size, num_replicas) == expected


def test_images_that_replicas_cannot_share_are_an_error() -> None:
    # Of eight images, batches of three or six both leave two for three replicas.
    with pytest.raises(DataError, match="8 images, batch_size=128, 3 replicas"):
        evaluation_batch_size(8, 128, 3)


def test_an_empty_split_cannot_be_evaluated() -> None:
    with pytest.raises(DataError, match="0 images"):
        evaluation_batches(*number_images(0), 3, batch_size=4)


TWO_REPLICAS = """
import numpy as np
import tensorflow as tf
from trainer.config.schema import HorizontalFlip, Mixup
from trainer.data.pipeline import evaluation_batches, training_batches

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
images = np.random.default_rng(0).integers(0, 256, (33, 4, 4, 3), np.uint8)
labels = np.arange(33, dtype=np.int32) % 3

def halves(dataset):
    for batch in strategy.experimental_distribute_dataset(dataset):
        yield [strategy.experimental_local_results(part) for part in batch]

training = training_batches(
    images, labels, 3, batch_size=8, seed=0, augment=[HorizontalFlip(), Mixup()]
)
for whole, parts, _ in zip(training, halves(training), range(9)):
    for array, shared in zip(whole, parts):
        assert [len(part) for part in shared] == [4, 4]
        np.testing.assert_array_equal(np.concatenate(shared), array)

seen = []
for parts, _ in halves(evaluation_batches(images, labels, 3, batch_size=8, num_replicas=2)):
    assert all(len(part) for part in parts)
    seen += parts
np.testing.assert_array_equal(np.concatenate(seen), images)
print("all shared")
"""


def test_two_replicas_share_each_batch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.endswith("all shared\n"), done.stderr
