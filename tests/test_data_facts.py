"""What is measured of the data, against plain NumPy, and where a run and an evaluation say it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import run_trainer, write_tiny_config

from trainer.config import load_config
from trainer.config.schema import DataConfig
from trainer.data import sources
from trainer.data.facts import Duplicates, SplitFacts, image_digests
from trainer.data.shapes import draw_shapes
from trainer.data.sources import Part, Split, load_split, register_source
from trainer.errors import RunDirectoryError
from trainer.evaluate import evaluate, format_evaluation
from trainer.run_dir import RunDir, read_json
from trainer.train import train


def random_split(num_images: int = 40, channels: int = 3) -> Split:
    random = np.random.default_rng(0)
    images = random.integers(10, 200, (num_images, 5, 4, channels), dtype=np.uint8)
    labels = random.integers(0, 3, num_images, dtype=np.int32)
    return Split(images, labels, ("cat", "dog", "owl"), "a test", True)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixel_figures_are_those_of_numpy(channels: int) -> None:
    split = random_split(channels=channels)
    facts = SplitFacts.of(split)
    pixels = split.images.reshape(-1, channels).astype(np.float64)
    assert facts.pixel_min == tuple(pixels.min(axis=0))
    assert facts.pixel_max == tuple(pixels.max(axis=0))
    np.testing.assert_allclose(facts.pixel_mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(facts.pixel_std, pixels.std(axis=0), rtol=1e-12)


def test_labels_are_counted_for_every_class_also_for_one_without_images() -> None:
    split = random_split()
    split = replace(split, labels=np.where(split.labels == 1, 0, split.labels).astype(np.int32))
    counts = SplitFacts.of(split).images_per_class
    assert counts == tuple(split.labels.tolist().count(label) for label in range(3))
    assert counts[1] == 0


def test_an_image_of_one_colour_is_constant_and_one_of_two_colours_is_not() -> None:
    split = random_split()
    split.images[3] = [7, 80, 9]
    split.images[5] = 0
    split.images[6] = 0
    split.images[6, -1, -1, -1] = 1
    assert SplitFacts.of(split).constant_images == 2


def test_more_images_than_are_compared_at_a_time_are_all_counted() -> None:
    split = draw_shapes(1000, "train", 0)
    split.images[[0, 999]] = 4
    facts = SplitFacts.of(split)
    assert facts.constant_images == 2
    np.testing.assert_allclose(facts.pixel_mean, split.images.mean(axis=(0, 1, 2)), rtol=1e-12)


def test_a_digest_is_that_of_the_bytes_of_the_image() -> None:
    images = random_split().images
    digests = image_digests(images[::2])
    expected = hashlib.blake2b(images[4].tobytes(), digest_size=8).digest()
    assert digests[2] == int.from_bytes(expected, "little")
    assert digests.dtype == np.uint64


def counted(split: Split, validation: np.ndarray | None = None) -> Duplicates:
    others = None if validation is None else image_digests(validation)
    return Duplicates.of(image_digests(split.images), split.labels, others)


def test_different_images_are_no_duplicates() -> None:
    split = random_split()
    assert counted(split, random_split(80).images[40:]) == Duplicates(0, 0, 0)
    assert counted(split).validation_in_train is None


def test_repeated_images_are_counted_and_those_with_another_label_are_contradictory() -> None:
    split = random_split()
    split.images[[1, 2, 3]] = split.images[0]
    split.images[9] = split.images[8]
    split.labels[[0, 1, 2, 3]] = [1, 1, 1, 2]
    split.labels[[8, 9]] = 0
    # All four of the first image contradict each other, the two of the other one do not.
    assert counted(split) == Duplicates(within_train=4, contradictory=4, validation_in_train=None)


def test_each_validation_image_that_is_a_training_image_counts_once() -> None:
    split = random_split()
    split.images[1] = split.images[0]
    validation = np.concatenate([split.images[[0, 0, 7]], random_split(80).images[60:]])
    assert counted(split, validation).validation_in_train == 3


@pytest.fixture(scope="module")
def leaky_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    """A run on images of which the source gives five for testing too."""
    registered = dict(sources._SOURCES)

    @register_source("leaky")
    def leaky(data: DataConfig, part: Part, seed: int) -> Split:
        split = draw_shapes(200 if part == "train" else 53, part, seed)
        if part == "test":
            # Without validation every image of the source is a training image.
            split.images[:5] = draw_shapes(200, "train", seed).images[-5:]
        return split

    folder = tmp_path_factory.mktemp("leaky")
    overrides = [
        "data={source: leaky, validation_split: 0}",
        "fit.epochs=1",
        "schedule={kind: constant}",
    ]
    config = load_config(write_tiny_config(folder), overrides)
    yield train(config, runs_dir=folder / "runs", command=["trainer", "train"])
    sources._SOURCES.clear()
    sources._SOURCES.update(registered)


def test_a_run_writes_what_its_data_are_like(leaky_run: RunDir) -> None:
    facts = read_json(leaky_run.data)
    images = draw_shapes(200, "train", 3).images
    assert facts["splits"]["validation"] is None
    assert facts["splits"]["train"]["num_images"] == 200
    assert sum(facts["splits"]["train"]["images_per_class"]) == 200
    assert facts["splits"]["train"]["pixel_max"] == images.max(axis=(0, 1, 2)).tolist()
    assert facts["duplicates"] == {
        "within_train": 0,
        "contradictory": 0,
        "validation_in_train": None,
    }
    assert (facts["label_noise"], facts["num_wrong_labels"]) == (0, 0)


def test_the_digests_of_a_run_are_eight_bytes_for_each_training_image(leaky_run: RunDir) -> None:
    digests = np.load(leaky_run.train_digests)
    assert leaky_run.train_digests.stat().st_size < 200 * 8 + 200
    assert set(digests) == set(image_digests(draw_shapes(200, "train", 3).images))


def test_an_evaluation_counts_the_test_images_that_were_trained_on(leaky_run: RunDir) -> None:
    evaluation = evaluate(leaky_run)
    assert evaluation.seen_in_training == 5
    assert read_json(leaky_run.evaluation)["seen_in_training"] == 5
    lines = format_evaluation(evaluation).splitlines()
    assert lines[1] == ("warning: 5 of them (9.43%) equal a training image: they measure memory")


def test_a_run_without_digests_is_evaluated_and_one_with_damaged_ones_is_not(
    leaky_run: RunDir,
) -> None:
    content = leaky_run.train_digests.read_bytes()
    try:
        leaky_run.train_digests.write_bytes(content[:90])
        with pytest.raises(
            RunDirectoryError, match=r"train_digests\.npy: this artifact is damaged"
        ):
            evaluate(leaky_run)
        leaky_run.train_digests.unlink()
        assert evaluate(leaky_run).seen_in_training is None
    finally:
        leaky_run.train_digests.write_bytes(content)


def test_measuring_takes_the_images_as_they_are_loaded_and_changes_none() -> None:
    split = load_split(DataConfig(source="shapes", train_size=100), "train", 0)
    before = split.images.copy()
    split.images.flags.writeable = False
    SplitFacts.of(split)
    image_digests(split.images)
    np.testing.assert_array_equal(split.images, before)


def test_the_data_line_and_the_facts_tell_of_label_noise(tmp_path: Path) -> None:
    answer = run_trainer(
        "train",
        write_tiny_config(tmp_path),
        "--runs-dir",
        tmp_path / "runs",
        *(
            "--set",
            "data.label_noise=0.5",
            "--set",
            "fit.epochs=1",
            "--set",
            "schedule.kind=constant",
        ),
    )
    assert answer.returncode == 0, answer.stderr
    (path,) = (tmp_path / "runs").iterdir()
    facts = read_json(RunDir(path).data)
    assert facts["label_noise"] == 0.5
    assert f"({facts['num_wrong_labels']} of them labelled wrongly on purpose)" in answer.stderr
    assert sum(facts["splits"]["validation"]["images_per_class"]) == 20
