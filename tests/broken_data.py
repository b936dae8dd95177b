"""Damaged data sets, each with the exact message that a user gets to see.

`make` writes the files into a folder and returns the config that names them; in
`message`, `{path}` stands for that folder.
"""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from trainer.config.schema import DataConfig
from trainer.data.sources import Part


class BrokenData(NamedTuple):
    """One row: a data set that must be refused, and what is said about it."""

    name: str
    make: Callable[[Path], DataConfig]
    message: str
    part: Part = "test"


BALANCED = np.arange(10_000) % 10


class RunsCode:
    """Pickles as a call of `os.system` that leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def _cifar10(folder: Path) -> DataConfig:
    return DataConfig(source="cifar10", path=str(folder))


def _test_batch(content: Any) -> Callable[[Path], DataConfig]:
    """Write bytes as they are, and anything else as a pickle."""

    def make(folder: Path) -> DataConfig:
        payload = content if isinstance(content, bytes) else pickle.dumps(content)
        (folder / "test_batch").write_bytes(payload)
        return _cifar10(folder)

    return make


def _pixels(rows: int = 10_000, columns: int = 3072, dtype: str = "uint8") -> np.ndarray:
    return np.zeros((rows, columns), dtype)


def _batch(labels: Any) -> Callable[[Path], DataConfig]:
    return lambda folder: _test_batch({b"data": _pixels(), b"labels": labels})(folder)


def _nowhere(folder: Path) -> DataConfig:
    return _cifar10(folder / "nowhere")


def _archive(folder: Path) -> DataConfig:
    (folder / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b")
    return _cifar10(folder / "cifar-10-python.tar.gz")


def _something_else(folder: Path) -> DataConfig:
    for name in ("fine.txt", "train"):
        (folder / name).touch()
    return _cifar10(folder)


def _one_batch_missing(folder: Path) -> DataConfig:
    for i in (1, 2, 4, 5):
        (folder / f"data_batch_{i}").touch()
    return _cifar10(folder)


def _runs_code(folder: Path) -> DataConfig:
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": RunsCode(folder / "pwned")}))
    return _cifar10(folder)


def _two_class_names(folder: Path) -> DataConfig:
    config = _batch(BALANCED.tolist())(folder)
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}))
    return config


def _records(labels: np.ndarray, num_bytes: int = 30_730_000) -> Callable[[Path], DataConfig]:
    def make(folder: Path) -> DataConfig:
        records = np.zeros((10_000, 3073), np.uint8)
        records[:, 0] = labels
        (folder / "test_batch.bin").write_bytes(records.tobytes()[:num_bytes])
        return _cifar10(folder)

    return make


def _changed(values: np.ndarray, place: int, value: int) -> np.ndarray:
    values = values.copy()
    values[place] = value
    return values


def _directory(folder: Path) -> DataConfig:
    return DataConfig(source="directory", path=str(folder), image_size=(8, 8))


def _images(*names: str) -> Callable[[Path], DataConfig]:
    """Write one small image each; a name with a slash at its end is an empty folder."""

    def make(folder: Path) -> DataConfig:
        for name in names:
            file = folder / name
            (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                Image.new("RGB", (9, 7)).save(file)
        return _directory(folder)

    return make


def _images_and(name: str, content: Callable[[Path], bytes]) -> Callable[[Path], DataConfig]:
    def make(folder: Path) -> DataConfig:
        config = _images("train/cat/1.png", "train/dog/1.png")(folder)
        (folder / name).write_bytes(content(folder))
        return config

    return make


def _half_a_photo(folder: Path) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    return (folder / "whole.jpg").read_bytes()[:2000]


def _bomb(folder: Path) -> bytes:
    """A PNG of some fifty bytes that claims 10,000 x 10,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


_WANTED = (
    "a folder with data_batch_1 to data_batch_5 and test_batch (Python layout), or with "
    "data_batch_1.bin to data_batch_5.bin and test_batch.bin (binary layout)"
)
_AGAIN = "Unpack the archive again, or download it afresh from https://www.cs.toronto.edu/~kriz/cifar.html"

BROKEN_DATA = (
    BrokenData(
        "a source that nobody registered",
        lambda folder: DataConfig(source="cifar-10"),
        "data.source must be one of cifar10, directory, shapes, or the path of a Python file. "
        "Received: source='cifar-10'. "
        "Did you mean 'cifar10'?",
    ),
    BrokenData(
        "cifar10: a path with nothing there",
        _nowhere,
        f"data.path must name {_WANTED}. Found: nothing at {{path}}/nowhere",
    ),
    BrokenData(
        "cifar10: the archive, not unpacked",
        _archive,
        f"data.path must name {_WANTED}. Found: the file {{path}}/cifar-10-python.tar.gz. If it "
        "is the archive, unpack it (tar -xzf {path}/cifar-10-python.tar.gz) and name the folder "
        "that it makes",
    ),
    BrokenData(
        "cifar10: a folder of something else",
        _something_else,
        f"data.path must name {_WANTED}, or the folder above it. Found in {{path}}: "
        "fine.txt, train",
    ),
    BrokenData(
        "cifar10: one batch file is missing",
        _one_batch_missing,
        "the train part of CIFAR-10 needs data_batch_1, data_batch_2, data_batch_3, "
        f"data_batch_4, data_batch_5. Missing in {{path}}: data_batch_3. {_AGAIN}",
        part="train",
    ),
    BrokenData(
        "cifar10: an empty file",
        _test_batch(b""),
        f"{{path}}/test_batch must be a pickle, but it is empty (0 bytes). {_AGAIN}",
    ),
    BrokenData(
        "cifar10: a web page saved as a batch",
        _test_batch(b"<!DOCTYPE html><html></html>"),
        "{path}/test_batch must be a pickle, but it begins with b'<!DOCTYPE html><' "
        f"(28 bytes). {_AGAIN}",
    ),
    BrokenData(
        "cifar10: a truncated file",
        _test_batch(pickle.dumps({b"data": _pixels(rows=10)})[:20_000]),
        "{path}/test_batch is damaged or cut short: its pickle cannot be read to the end "
        f"(20000 bytes; an official batch has about 31 million). {_AGAIN}",
    ),
    BrokenData(
        "cifar10: a pickle that runs a command",
        _runs_code,
        f"{{path}}/test_batch must hold only numbers, names and an array, but it asks to load "
        f"{os.system.__module__}.system, which could run foreign code. Nothing was run. Do not "
        f"trust this copy. {_AGAIN}",
    ),
    BrokenData(
        "cifar10: a pickled list",
        _test_batch([1, 2, 3]),
        f"{{path}}/test_batch must hold a dict. Found: list. {_AGAIN}",
    ),
    BrokenData(
        "cifar10: no labels",
        _test_batch({b"data": _pixels(rows=1), b"fine_labels": [0]}),
        "a batch file must hold b'data' and b'labels'. {path}/test_batch lacks b'labels'; "
        f"found: b'data', b'fine_labels'. {_AGAIN}",
    ),
    BrokenData(
        "cifar10: too few images",
        _test_batch({b"data": _pixels(rows=100), b"labels": [0] * 100}),
        f"b'data' of {{path}}/test_batch must have shape (10000, 3072). Found: (100, 3072). "
        f"{_AGAIN}",
    ),
    BrokenData(
        "cifar10: pixels as floats",
        _test_batch({b"data": _pixels(rows=100, dtype="float32"), b"labels": [0] * 100}),
        f"b'data' of {{path}}/test_batch must be a uint8 array. Found: float32. {_AGAIN}",
    ),
    BrokenData(
        "cifar10: one label too few",
        _batch(BALANCED.tolist()[1:]),
        "b'labels' of {path}/test_batch must be a list of 10000 labels. Found: shape (9999,). "
        f"{_AGAIN}",
    ),
    BrokenData(
        "cifar10: a label out of range",
        _batch(_changed(BALANCED, 7, 10).tolist()),
        "labels of {path}/test_batch must be whole numbers from 0 to 9. Found: 10 and 0 more "
        f"that are not. {_AGAIN}",
    ),
    BrokenData(
        "cifar10: one mislabelled image",
        _batch(_changed(BALANCED, 0, 3).tolist()),
        "the test part of CIFAR-10 has 1000 images of each class, so this copy is mislabelled. "
        "Found in {path}: 999, 1000, 1000, 1001, 1000, 1000, 1000, 1000, 1000, 1000 images of "
        f"the classes 0 to 9. {_AGAIN}",
    ),
    BrokenData(
        "cifar10: two class names",
        _two_class_names,
        f"{{path}}/batches.meta must hold 10 class names. Found: cat, dog. {_AGAIN}, or delete "
        "batches.meta: the official names are known without it",
    ),
    BrokenData(
        "cifar10: a truncated binary file",
        _records(BALANCED, num_bytes=1000),
        "{path}/test_batch.bin must have 30730000 bytes, 10000 records of 3073. "
        f"Found: 1000 bytes. {_AGAIN}",
    ),
    BrokenData(
        "cifar10: a binary label out of range",
        _records(_changed(BALANCED, 5, 255)),
        "labels of {path}/test_batch.bin must be whole numbers from 0 to 9. Found: 255 and 0 "
        f"more that are not. {_AGAIN}",
    ),
    BrokenData(
        "directory: a path with nothing there",
        lambda folder: _directory(folder / "nowhere"),
        "data.path must hold train/<class>/ and test/<class>/, but there is no folder "
        "{path}/nowhere/train. Found in {path}/nowhere: no such folder",
        part="train",
    ),
    BrokenData(
        "directory: class folders without train/",
        _images("cat/1.png", "dog/1.png"),
        "data.path must hold train/<class>/ and test/<class>/, but there is no folder "
        "{path}/train. Found in {path}: cat/, dog/",
        part="train",
    ),
    BrokenData(
        "directory: no test/",
        _images("train/cat/1.png", "train/dog/1.png"),
        "data.path must hold train/<class>/ and test/<class>/, but there is no folder "
        "{path}/test. Found in {path}: train/",
    ),
    BrokenData(
        "directory: images outside of class folders",
        _images("train/1.png"),
        "{path}/train must hold one folder for each class. Found in it: 1.png",
        part="train",
    ),
    BrokenData(
        "directory: an empty class folder",
        _images("train/cat/1.png", "train/dog/"),
        "every class needs at least one image (.png, .jpg, .jpeg, .bmp, .webp). "
        "Found in {path}/train/dog: nothing",
        part="train",
    ),
    BrokenData(
        "directory: one class",
        _images("train/cat/1.png"),
        "classification needs at least 2 classes, each with its own name. "
        "Source directory found: cat",
        part="train",
    ),
    BrokenData(
        "directory: classes of train and test differ",
        _images("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/cow/1.png"),
        "train and test must have the same class folders. Found in {path}: "
        "dog only in train; cow only in test",
    ),
    BrokenData(
        "directory: text that is called an image",
        _images_and("train/dog/2.png", lambda folder: b"no image"),
        "{path}/train/dog/2.png must be an image, but it is none of PNG, JPEG, BMP, WEBP "
        "(8 bytes). Delete or replace it",
        part="train",
    ),
    BrokenData(
        "directory: a truncated image",
        _images_and("train/dog/2.jpg", _half_a_photo),
        "{path}/train/dog/2.jpg is a damaged or truncated image (2000 bytes). Delete or replace it",
        part="train",
    ),
    BrokenData(
        "directory: a decompression bomb",
        _images_and("train/dog/2.png", _bomb),
        f"{{path}}/train/dog/2.png must have at most {Image.MAX_IMAGE_PIXELS} pixels; it claims "
        "more, as files made to exhaust the memory do. Delete it or make it smaller",
        part="train",
    ),
    BrokenData(
        "shapes: fewer images than classes",
        lambda folder: DataConfig(source="shapes", train_size=8),
        "every class needs at least one image to train on. Source shapes gave 8 train images "
        "and none of: dumbbell, corner",
        part="train",
    ),
)
