"""Labels that are replaced on purpose: how many, which, by what, and where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import write_tiny_config

from trainer.config import load_config
from trainer.data.label_noise import with_label_noise
from trainer.data.shapes import draw_shapes
from trainer.data.sources import Split
from trainer.data.splits import load_training_data, split_off_validation
from trainer.run_dir import read_json
from trainer.train import train


@pytest.fixture(scope="module")
def split() -> Split:
    labels = np.random.default_rng(1).integers(0, 10, 5000, dtype=np.int32)
    images = np.zeros((5000, 1, 1, 1), np.uint8)
    return Split(images, labels, tuple("abcdefghij"), "a test", True)


def changed(split: Split, share: float, seed: int = 0) -> np.ndarray:
    return np.flatnonzero(with_label_noise(split, share, seed).labels != split.labels)


def test_no_noise_leaves_the_split_itself(split: Split) -> None:
    assert with_label_noise(split, 0.0, 0) is split


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_nine_tenths_of_the_drawn_labels_of_ten_classes_are_wrong(
    split: Split, share: float
) -> None:
    drawn = round(share * 5000)
    deviation = (drawn * 0.9 * 0.1) ** 0.5
    assert abs(len(changed(split, share)) - 0.9 * drawn) < 4 * deviation


def test_labels_drawn_at_random_say_nothing_about_the_old_ones(split: Split) -> None:
    noisy = with_label_noise(split, 1.0, 0)
    table = np.zeros((10, 10))
    np.add.at(table, (split.labels, noisy.labels), 1)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    # Chi-squared with 81 degrees of freedom: mean 81, deviation 12.7.
    assert ((table - expected) ** 2 / expected).sum() < 81 + 4 * 12.7


def test_a_larger_share_keeps_the_wrong_labels_of_a_smaller_one(split: Split) -> None:
    few, many = (with_label_noise(split, share, 3).labels for share in (0.3, 0.6))
    wrong = few != split.labels
    np.testing.assert_array_equal(many[wrong], few[wrong])


def test_the_seed_alone_decides_which_labels_are_wrong(split: Split) -> None:
    assert np.array_equal(changed(split, 0.4, 1), changed(split, 0.4, 1))
    assert not np.array_equal(changed(split, 0.4, 1), changed(split, 0.4, 2))


def test_images_and_the_given_labels_stay_as_they_are(split: Split) -> None:
    before = split.labels.copy()
    noisy = with_label_noise(split, 1.0, 0)
    np.testing.assert_array_equal(split.labels, before)
    assert noisy.images is split.images
    assert noisy.labels.dtype == np.int32


def test_the_validation_images_are_the_same_ones_with_the_right_labels(tmp_path: Path) -> None:
    path = write_tiny_config(tmp_path)
    clean, noisy = (
        load_training_data(load_config(path, [f"data.label_noise={share}"])) for share in (0, 0.8)
    )
    assert clean.validation is not None and noisy.validation is not None
    np.testing.assert_array_equal(noisy.validation.images, clean.validation.images)
    np.testing.assert_array_equal(noisy.validation.labels, clean.validation.labels)
    np.testing.assert_array_equal(noisy.train.images, clean.train.images)
    assert noisy.num_wrong_labels == np.sum(noisy.train.labels != clean.train.labels) > 100


def test_a_run_counts_the_labels_that_it_trains_on(tmp_path: Path) -> None:
    overrides = ["data.label_noise=0.8", "fit.epochs=1", "schedule={kind: constant}"]
    config = load_config(write_tiny_config(tmp_path), overrides)
    facts = read_json(train(config, runs_dir=tmp_path / "runs", command=["trainer"]).data)
    kept, _ = split_off_validation(draw_shapes(200, "train", 3), 0.1, 3)
    noisy = with_label_noise(kept, 0.8, 3).labels
    assert facts["splits"]["train"]["images_per_class"] == np.bincount(noisy).tolist()
    assert facts["splits"]["validation"]["images_per_class"] == [2] * 10
    assert facts["num_wrong_labels"] == np.sum(noisy != kept.labels)
