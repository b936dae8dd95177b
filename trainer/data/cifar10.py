"""CIFAR-10 from a local copy, else through Keras' cache and download.

Both official layouts are read: the Python one (pickled dicts) and the binary one
(records of a label byte and 3072 pixel bytes). A pickle can run code when it is
loaded, so these are read by `pickled_arrays`, which calls nothing that a file names.
Only the files of the asked part are opened.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.pickled_arrays import ForbiddenGlobalError, load_pickle
from trainer.data.sources import Part, Split
from trainer.errors import DataError
from trainer.quiet import import_tensorflow

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
IMAGES_PER_FILE = 10_000
_PIXEL_BYTES = 3 * 32 * 32
_AGAIN = "Unpack the archive again, or download it afresh from https://www.cs.toronto.edu/~kriz/cifar.html"
_WANTED = (
    "a folder with data_batch_1 to data_batch_5 and test_batch (Python layout), or with "
    "data_batch_1.bin to data_batch_5.bin and test_batch.bin (binary layout)"
)


def load_cifar10(path: str | None, part: Part) -> Split:
    """Load one part of CIFAR-10.

    Args:
        path: The folder with the batch files, or the folder that holds
            `cifar-10-batches-py` or `cifar-10-batches-bin`; None for
            `$CIFAR10_DIR`, else Keras' cache, else its download.
        part: `"train"`, 50,000 images, or `"test"`, 10,000.

    Returns:
        Images of shape `(num_images, 32, 32, 3)` in the order of the files.

    Raises:
        DataError: If there is no copy and none can be downloaded, or if a file of
            the copy is missing or damaged.
    """
    environment = os.environ.get("CIFAR10_DIR")
    if path is not None:
        folder, layout = _find_folder(Path(path).expanduser(), "data.path")
    elif environment:
        folder, layout = _find_folder(Path(environment).expanduser(), "CIFAR10_DIR")
    else:
        split = _load_through_keras(part)
        _check_balance(split.labels, part, split.origin)
        return split
    images, labels = _read_files(folder, layout, part)
    _check_balance(labels, part, str(folder))
    return Split(images, labels, layout.read_names(folder), str(folder), synthetic=False)


@dataclass(frozen=True)
class _Layout:
    """How one of the official archives stores images and class names.

    Attributes:
        folder: Name of the archive's one folder.
        suffix: What follows `data_batch_1` and `test_batch`.
        read_batch: Reads a file into images `(10000, 3072)`, uint8, all red values
            of an image before all green and all blue ones, and labels `(10000,)`.
        read_names: Reads the ten class names of a folder.
    """

    folder: str
    suffix: str
    read_batch: Callable[[Path], tuple[np.ndarray, np.ndarray]]
    read_names: Callable[[Path], tuple[str, ...]]

    def files(self, part: Part) -> tuple[str, ...]:
        stems = ["test_batch"] if part == "test" else [f"data_batch_{i}" for i in range(1, 6)]
        return tuple(stem + self.suffix for stem in stems)

    def is_in(self, folder: Path) -> bool:
        return any((folder / name).exists() for name in self.files("train") + self.files("test"))


def _find_folder(given: Path, setting: str) -> tuple[Path, _Layout]:
    if not given.exists():
        raise DataError(f"{setting} must name {_WANTED}. Found: nothing at {given}")
    if given.is_file():
        raise DataError(
            f"{setting} must name {_WANTED}. Found: the file {given}. If it is the archive, "
            f"unpack it (tar -xzf {given}) and name the folder that it makes"
        )
    for layout in _LAYOUTS:
        for folder in (given, given / layout.folder):
            if layout.is_in(folder):
                return folder, layout
    found = sorted(entry.name for entry in given.iterdir())
    raise DataError(
        f"{setting} must name {_WANTED}, or the folder above it. Found in {given}: "
        f"{', '.join(found[:8]) or 'nothing'}{', ...' if len(found) > 8 else ''}"
    )


def _read_files(folder: Path, layout: _Layout, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Read the files of one part: images in channels-last order, and labels."""
    files = layout.files(part)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"the {part} part of CIFAR-10 needs {', '.join(files)}. "
            f"Missing in {folder}: {', '.join(missing)}. {_AGAIN}"
        )
    images = np.empty((len(files) * IMAGES_PER_FILE, 32, 32, 3), np.uint8)
    labels = np.empty(len(images), np.int32)
    for i, name in enumerate(files):
        rows = slice(i * IMAGES_PER_FILE, (i + 1) * IMAGES_PER_FILE)
        pixels, labels[rows] = layout.read_batch(folder / name)
        # A channel at a time: NumPy takes several times as long to transpose them at once.
        for channel in range(3):
            images[rows, ..., channel] = pixels.reshape(-1, 3, 32, 32)[:, channel]
    return images, labels


def _read_python_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(path)
    lacking = [key for key in (b"data", b"labels") if key not in batch]
    if lacking:
        raise DataError(
            f"a batch file must hold b'data' and b'labels'. {path} lacks {lacking[0]!r}; "
            f"found: {', '.join(map(repr, batch)) or 'nothing'}. {_AGAIN}"
        )
    data, labels = batch[b"data"], np.asarray(batch[b"labels"], dtype=object)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8:
        kind = data.dtype if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"b'data' of {path} must be a uint8 array. Found: {kind}. {_AGAIN}")
    if data.shape != (IMAGES_PER_FILE, _PIXEL_BYTES):
        raise DataError(
            f"b'data' of {path} must have shape ({IMAGES_PER_FILE}, {_PIXEL_BYTES}). "
            f"Found: {data.shape}. {_AGAIN}"
        )
    if labels.shape != (IMAGES_PER_FILE,):
        raise DataError(
            f"b'labels' of {path} must be a list of {IMAGES_PER_FILE} labels. "
            f"Found: shape {labels.shape}. {_AGAIN}"
        )
    return data, _checked_labels(labels, path)


def _read_binary_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    record_bytes = 1 + _PIXEL_BYTES
    payload = _read_bytes(path)
    if len(payload) != IMAGES_PER_FILE * record_bytes:
        raise DataError(
            f"{path} must have {IMAGES_PER_FILE * record_bytes} bytes, {IMAGES_PER_FILE} records "
            f"of {record_bytes}. Found: {len(payload)} bytes. {_AGAIN}"
        )
    records = np.frombuffer(payload, np.uint8).reshape(IMAGES_PER_FILE, record_bytes)
    return records[:, 1:], _checked_labels(records[:, 0], path)


def _checked_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    wrong = [x for x in labels.tolist() if not (isinstance(x, int) and 0 <= x <= 9)]
    if wrong:
        raise DataError(
            f"labels of {path} must be whole numbers from 0 to 9. Found: {wrong[0]!r} and "
            f"{len(wrong) - 1} more that are not. {_AGAIN}"
        )
    return labels.astype(np.int32)


def _check_balance(labels: np.ndarray, part: Part, origin: str) -> None:
    expected = len(labels) // len(CLASS_NAMES)
    counts = np.bincount(labels, minlength=len(CLASS_NAMES))
    if (counts != expected).any():
        raise DataError(
            f"the {part} part of CIFAR-10 has {expected} images of each class, so this copy is "
            f"mislabelled. Found in {origin}: {', '.join(map(str, counts))} images of the classes "
            f"0 to 9. {_AGAIN}"
        )


def _read_python_names(folder: Path) -> tuple[str, ...]:
    path = folder / "batches.meta"
    if not path.exists():
        return CLASS_NAMES
    names = _unpickle(path).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        names = []
    return _checked_names([name.decode(errors="replace") for name in names], path)


def _read_binary_names(folder: Path) -> tuple[str, ...]:
    path = folder / "batches.meta.txt"
    if not path.exists():
        return CLASS_NAMES
    return _checked_names(_read_bytes(path).decode(errors="replace").split(), path)


def _checked_names(names: list[str], path: Path) -> tuple[str, ...]:
    if len(names) != len(CLASS_NAMES):
        raise DataError(
            f"{path} must hold {len(CLASS_NAMES)} class names. "
            f"Found: {', '.join(names) or 'none'}. {_AGAIN}, or delete {path.name}: the official "
            "names are known without it"
        )
    return tuple(names)


def _unpickle(path: Path) -> dict[Any, Any]:
    payload = _read_bytes(path)
    # Every protocol that can hold an array of bytes begins with this opcode.
    if not payload.startswith(pickle.PROTO):
        found = f"begins with {payload[:16]!r}" if payload else "is empty"
        raise DataError(f"{path} must be a pickle, but it {found} ({len(payload)} bytes). {_AGAIN}")
    try:
        content = load_pickle(payload)
    except ForbiddenGlobalError as error:
        raise DataError(
            f"{path} must hold only numbers, names and an array, but it asks to load {error}, "
            f"which could run foreign code. Nothing was run. Do not trust this copy. {_AGAIN}"
        ) from error
    # A damaged pickle raises nearly any exception, from EOFError to IndexError.
    except Exception as error:
        raise DataError(
            f"{path} is damaged or cut short: its pickle cannot be read to the end "
            f"({len(payload)} bytes; an official batch has about 31 million). {_AGAIN}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a dict. Found: {type(content).__name__}. {_AGAIN}")
    return content


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


_LAYOUTS = (
    _Layout("cifar-10-batches-py", "", _read_python_batch, _read_python_names),
    _Layout("cifar-10-batches-bin", ".bin", _read_binary_batch, _read_binary_names),
)


def _load_through_keras(part: Part) -> Split:
    try:
        # Another thread may be about it.
        import_tensorflow()
        import keras

        # Keras prints its progress to standard output, which belongs to `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            train, test = keras.datasets.cifar10.load_data()
    # Offline, blocked, a wrong checksum, a full disk: all mean that there is no copy.
    except Exception as error:
        cache = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"
        raise DataError(
            "no local copy of CIFAR-10: data.path is not set, CIFAR10_DIR is not set, and Keras "
            f"has none in {cache} and could not download one ({error}). Set data.path or "
            f"CIFAR10_DIR to {_WANTED}, or try the embedded data set with data.source: shapes"
        ) from error
    images, labels = train if part == "train" else test
    return Split(
        images,
        labels.reshape(-1).astype(np.int32),
        CLASS_NAMES,
        "keras.datasets.cifar10",
        synthetic=False,
    )
