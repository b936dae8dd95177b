"""CIFAR-10: both layouts, and where copies are looked for."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_data import BALANCED
from python2_pickle import python2_dumps

from trainer.config.schema import DataConfig
from trainer.data.cifar10 import CLASS_NAMES
from trainer.data.sources import Split, load_split
from trainer.errors import DataError


@pytest.fixture(autouse=True)
def no_copy_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIFAR10_DIR", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied at once, because a batch has 30 MB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10_000, 3072), np.uint8)


def batch(pixels: np.ndarray) -> dict[bytes, Any]:
    return {b"data": pixels, b"labels": BALANCED.tolist()}


def load(path: Path | None, part: str = "test") -> Split:
    data = DataConfig(source="cifar10", path=None if path is None else str(path))
    return load_split(data, part, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_batch_pickled_by_python_3_is_read(
    folder: Path, pixels: np.ndarray, protocol: int
) -> None:
    (folder / "test_batch").write_bytes(pickle.dumps(batch(pixels), protocol))
    split = load(folder)
    # The files hold the 1024 red values first, row by row, then green, then blue.
    assert split.images[123, 4, 5].tolist() == pixels[123, [133, 133 + 1024, 133 + 2048]].tolist()
    assert split.images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(split.labels, BALANCED)
    assert (split.origin, split.synthetic) == (str(folder), False)


def test_a_batch_pickled_by_python_2_and_old_numpy_is_read(folder: Path) -> None:
    pixels = np.full((10_000, 3072), 7, np.uint8)
    payload = python2_dumps(batch(pixels))
    assert payload.startswith(b"\x80\x02")
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in payload
    (folder / "test_batch").write_bytes(payload)
    assert (load(folder).images == 7).all()


def test_the_binary_layout_gives_the_same_split(folder: Path, pixels: np.ndarray) -> None:
    for name in ("py", "bin"):
        (folder / name).mkdir()
    (folder / "py/test_batch").write_bytes(pickle.dumps(batch(pixels)))
    records = np.concatenate([BALANCED[:, None].astype(np.uint8), pixels], axis=1)
    (folder / "bin/test_batch.bin").write_bytes(records.tobytes())
    python, binary = load(folder / "py"), load(folder / "bin")
    np.testing.assert_array_equal(python.images, binary.images)
    np.testing.assert_array_equal(python.labels, binary.labels)
    assert python.class_names == binary.class_names == CLASS_NAMES


def test_train_reads_five_files_in_order_and_never_the_test_batch(folder: Path) -> None:
    (folder / "test_batch").write_bytes(b"damaged")
    for i in range(1, 6):
        pixels = np.full((10_000, 3072), i, np.uint8)
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps(batch(pixels)))
    split = load(folder, "train")
    assert split.num_images == 50_000
    assert split.images[::5000, 0, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("above", ["", "cifar-10-batches-bin"])
def test_the_folder_or_the_one_above_it_can_be_named(folder: Path, above: str) -> None:
    records = np.zeros((10_000, 3073), np.uint8)
    records[:, 0] = BALANCED
    (folder / above).mkdir(exist_ok=True)
    (folder / above / "test_batch.bin").write_bytes(records.tobytes())
    names = [f"class{i}" for i in range(10)]
    (folder / above / "batches.meta.txt").write_text("\n".join(names) + "\n\n")
    split = load(folder)
    assert split.origin == str(folder / above)
    assert split.class_names == tuple(names)


def test_class_names_come_from_batches_meta(folder: Path) -> None:
    names = [f"class{i}" for i in range(10)]
    (folder / "test_batch").write_bytes(pickle.dumps(batch(np.zeros((10_000, 3072), np.uint8))))
    (folder / "batches.meta").write_bytes(python2_dumps({"label_names": names}))
    assert load(folder).class_names == tuple(names)


def test_a_path_in_the_config_goes_before_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR10_DIR", str(folder / "from_environment"))
    with pytest.raises(DataError, match=r"^data\.path must name .* nothing at .*/from_config$"):
        load(folder / "from_config")
    with pytest.raises(DataError, match=r"^CIFAR10_DIR must name .* nothing at .*/from_env"):
        load(None)


def fake_keras(load_data: Any) -> types.ModuleType:
    keras = types.ModuleType("keras")
    keras.datasets = types.SimpleNamespace(  # type: ignore[attr-defined]
        cifar10=types.SimpleNamespace(load_data=load_data)
    )
    return keras


def test_without_a_copy_keras_is_asked_and_its_labels_flattened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_data() -> Any:
        print("Downloading data")
        test = np.ones((100, 32, 32, 3), np.uint8), (BALANCED[:100, None]).astype(np.uint8)
        return (test[0][:0], test[1][:0]), test

    monkeypatch.setitem(sys.modules, "keras", fake_keras(load_data))
    split = load(None)
    assert split.labels.shape == (100,)
    assert (split.origin, split.synthetic) == ("keras.datasets.cifar10", False)
    captured = capsys.readouterr()
    assert captured.out == "", "standard output belongs to --json"
    assert "Downloading data" in captured.err


def test_a_failed_download_says_where_a_copy_was_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_data() -> Any:
        raise Exception("URL fetch failure")

    monkeypatch.setitem(sys.modules, "keras", fake_keras(load_data))
    monkeypatch.setenv("KERAS_HOME", "/some/cache")
    with pytest.raises(DataError) as caught:
        load(None)
    assert str(caught.value) == (
        "no local copy of CIFAR-10: data.path is not set, CIFAR10_DIR is not set, and Keras has "
        "none in /some/cache/datasets and could not download one (URL fetch failure). Set "
        "data.path or CIFAR10_DIR to a folder with data_batch_1 to data_batch_5 and test_batch "
        "(Python layout), or with data_batch_1.bin to data_batch_5.bin and test_batch.bin "
        "(binary layout), or try the embedded data set with data.source: shapes"
    )


REAL_COPY = os.environ.get("CIFAR10_DIR")


@pytest.mark.skipif(not REAL_COPY, reason="CIFAR10_DIR names no copy of CIFAR-10")
@pytest.mark.parametrize(
    ("part", "mean"),
    [("train", (125.307, 122.950, 113.865)), ("test", (126.025, 123.709, 114.854))],
)
def test_the_real_data_set_has_the_published_mean(part: str, mean: tuple[float, ...]) -> None:
    split = load(Path(str(REAL_COPY)), part)
    np.testing.assert_allclose(split.images.mean(axis=(0, 1, 2)), mean, atol=1e-3)
