"""The registry of data sources, its checks, and the validation split."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from broken_data import BROKEN_DATA, BrokenData

from trainer.config.schema import DataConfig
from trainer.data import sources
from trainer.data.sources import Split, load_split, register_source
from trainer.data.splits import split_off_validation
from trainer.errors import DataError, TrainerError

GOOD = Split(
    images=np.zeros((4, 2, 3, 1), np.uint8),
    labels=np.array([0, 1, 1, 0], np.int32),
    class_names=("cat", "dog"),
    origin="a test",
    synthetic=True,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied at once, because pytest keeps the last three runs' files."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SOURCES", dict(sources._SOURCES))


def load_made(split: Split, part: sources.Part = "train") -> Split:
    register_source("made")(lambda data, part, seed: split)
    return load_split(DataConfig(source="made"), part, 0)


@pytest.mark.parametrize("row", BROKEN_DATA, ids=lambda row: row.name)
def test_broken_data_get_their_exact_message(row: BrokenData, folder: Path) -> None:
    data = row.make(folder)
    with pytest.raises(TrainerError) as caught:
        load_split(data, row.part, seed=0)
    assert str(caught.value) == row.message.replace("{path}", str(folder))


def test_the_table_of_broken_data_names_each_row_once() -> None:
    assert len({row.name for row in BROKEN_DATA}) == len(BROKEN_DATA) >= 15


def test_a_registered_source_gets_the_config_the_part_and_the_seed(own_registry: None) -> None:
    calls = []

    @register_source("made")
    def made(data: DataConfig, part: sources.Part, seed: int) -> Split:
        calls.append((data.train_size, part, seed))
        return GOOD

    assert load_split(DataConfig(source="made", train_size=7), "test", 3) is GOOD
    assert calls == [(7, "test", 3)]


def test_a_name_can_be_registered_only_once(own_registry: None) -> None:
    with pytest.raises(ValueError, match=r"only once .* name='shapes'"):
        register_source("shapes")(lambda data, part, seed: GOOD)


def test_a_split_tells_its_counts_and_its_image_shape() -> None:
    assert (GOOD.num_images, GOOD.num_classes, GOOD.image_shape) == (4, 2, (2, 3, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [[[[0]]]]}, "images as a NumPy array. Received: list"),
        ({"labels": [0, 1, 1, 0]}, "labels as a NumPy array. Received: list"),
        ({"class_names": None}, "names as strings. Received: None"),
        ({"class_names": (0, 1)}, r"names as strings. Received: \(0, 1\)"),
        ({"images": np.zeros((4, 2, 3), np.uint8)}, r"images.shape=\(4, 2, 3\)"),
        ({"images": np.zeros((0, 2, 3, 1), np.uint8)}, r"images.shape=\(0, 2, 3, 1\)"),
        ({"images": np.zeros((4, 2, 3, 1), np.float32)}, "images.dtype=float32"),
        ({"labels": np.zeros(3, np.int32)}, r"labels.shape=\(3,\)"),
        ({"labels": np.zeros(4, np.int64)}, "labels.dtype=int64"),
        ({"labels": np.array([0, 1, 2, 0], np.int32)}, "labels from 0 to 2"),
        ({"labels": np.array([0, 1, -1, 0], np.int32)}, "labels from -1 to 1"),
        ({"labels": np.zeros(4, np.int32)}, "none of: dog"),
        ({"class_names": ("cat",)}, "at least 2 classes"),
        ({"class_names": ("cat", "cat")}, "each with its own name"),
    ],
)
def test_what_a_source_returns_is_checked(
    own_registry: None, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_made(replace(GOOD, **changes))


def test_the_test_part_may_lack_a_class(own_registry: None) -> None:
    one_class = replace(GOOD, labels=np.zeros(4, np.int32))
    assert load_made(one_class, "test") is one_class


def test_the_registry_imports_neither_tensorflow_nor_pillow() -> None:
    code = (
        "import sys, trainer.data.sources, trainer.data.splits, trainer.data.cifar10;"
        "assert not {'tensorflow', 'keras', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def numbered(counts: list[int]) -> Split:
    """A split with these class sizes, shuffled, whose n-th image holds the number n."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    np.random.default_rng(1).shuffle(labels)
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Split(images, labels, tuple(map(str, range(len(counts)))), "a test", True)


def numbers(split: Split) -> list[int]:
    return split.images.ravel().tolist()


def test_validation_takes_the_rounded_share_of_each_class() -> None:
    rest, validation = split_off_validation(numbered([10, 24, 57]), 0.1, seed=0)
    assert validation is not None
    assert np.bincount(validation.labels).tolist() == [1, 2, 6]
    assert np.bincount(rest.labels).tolist() == [9, 22, 51]


def test_train_and_validation_share_no_image_and_lose_none() -> None:
    split = numbered([30, 40])
    rest, validation = split_off_validation(split, 0.25, seed=0)
    assert validation is not None
    assert sorted(numbers(rest) + numbers(validation)) == numbers(split)
    for part in (rest, validation):
        np.testing.assert_array_equal(part.labels, split.labels[numbers(part)])


def test_the_seed_alone_decides_which_images_validate() -> None:
    split = numbered([60, 60])
    chosen = [numbers(split_off_validation(split, 0.2, seed)[1]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_fraction_zero_sets_nothing_aside() -> None:
    split = numbered([3, 3])
    assert split_off_validation(split, 0.0, seed=0) == (split, None)


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 0), (0.9, 4)])
def test_a_class_without_images_on_one_side_is_refused(fraction: float, count: int) -> None:
    with pytest.raises(DataError, match=f"sets aside {count} of the 4 images of class '1'"):
        split_off_validation(numbered([20, 4]), fraction, seed=0)
