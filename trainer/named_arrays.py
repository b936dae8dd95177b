"""Read inputs and targets of a model from an npz file. NumPy only."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.errors import DataError

Arrays = dict[str, np.ndarray]
"""By name, in the order in which a model takes or returns them; examples along the first axis."""


def read_examples(
    path: Path, input_names: Sequence[str], output_names: Sequence[str]
) -> tuple[Arrays, Arrays]:
    """Read what goes into a model and what should come out of it.

    One input is `x` or `x_train`; several are `x_0`, `x_1` and so on, or have the names of
    the inputs. Targets are named likewise, with y.

    Args:
        path: An npz file. What is pickled in it is refused.
        input_names: Of the model; empty if it has none yet, and then one array is one input.
        output_names: The same for its outputs.

    Returns:
        Inputs and targets, as many as there are names.

    Raises:
        DataError: If the file is missing or damaged, an array is not there, is no array of
            numbers, or has another number of examples than the others.
    """
    arrays = _read(path)
    inputs = _chosen(path, arrays, "x", "input", input_names)
    targets = _chosen(path, arrays, "y", "output", output_names)
    lengths = {name: len(array) for name, array in {**inputs, **targets}.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        told = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise DataError(f"{path}: all arrays must have equally many examples. Received: {told}")
    return inputs, targets


def first_non_finite(arrays: Arrays) -> tuple[str, int, int] | None:
    """Return the name of an array, its count of values that are not finite, and the first row."""
    for name, array in arrays.items():
        if array.dtype.kind in "fc":
            bad = ~np.isfinite(array)
            if bad.any():
                rows = bad.reshape(len(bad), -1).any(axis=1)
                return name, int(bad.sum()), int(np.argmax(rows))
    return None


def _read(path: Path) -> Arrays:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: must be an npz file, as `numpy.savez` writes it")
            return {name: _array(path, file, name) for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: must be an npz file, as `numpy.savez` writes it ({error})"
        ) from None


def _array(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = file[name]
    except ValueError:
        array = None
    if array is None or array.dtype.kind not in "biufSU" or array.ndim == 0:
        raise DataError(
            f"{path}: {name} must be an array of numbers or strings, examples along the first "
            "axis. Objects are not read, for they are pickled programs"
        )
    return array


def _chosen(path: Path, arrays: Arrays, letter: str, what: str, names: Sequence[str]) -> Arrays:
    numbered = sorted(
        (name for name in arrays if re.fullmatch(rf"{letter}_\d+", name)),
        key=lambda name: int(name[2:]),
    )
    count = max(1, len(names))
    # A name counts in front of a number, and one array is enough for one input.
    for found in (list(names), *([letter], [f"{letter}_train"]), numbered):
        if len(found) == count and all(name in arrays for name in found):
            return {name: arrays[name] for name in found}
    wanted = f"{letter} or {letter}_train" if count == 1 else f"{letter}_0 to {letter}_{count - 1}"
    by_name = f", or have the names of the {what}s ({', '.join(names)})" if names else ""
    there = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "none"
    raise DataError(
        f"{path}: the model has {count} {what}{'s' if count > 1 else ''}, whose arrays must be "
        f"named {wanted}{by_name}. There are: {there}"
    )
