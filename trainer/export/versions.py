"""Versions of an export, as TensorFlow Serving lays them out: `<root>/1`, `<root>/2`, ..."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import RunDirectoryError
from trainer.run_dir import is_alive

# A server takes only numbers for versions.
_UNFINISHED = ".unfinished-"


@dataclass
class NewVersion:
    """A version in the making.

    Attributes:
        directory: Where to write; moved to its place in one step at the end.
        number: The version; known when the directory is in its place.
        path: Its place.
    """

    directory: Path
    number: int
    path: Path


def versions_of(root: Path) -> list[int]:
    """Return the finished versions below a folder, oldest first."""
    if not root.is_dir():
        return []
    names = [entry.name for entry in root.iterdir()]
    # Not 007: a version is found by its number again.
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


@contextmanager
def new_version(root: Path) -> Iterator[NewVersion]:
    """Make a version beside the older ones; whatever interrupts it leaves nothing behind.

    Args:
        root: Folder of all versions; made if missing.

    Raises:
        RunDirectoryError: If it cannot be written; older versions are untouched.
    """
    had_root = root.is_dir()
    directory = root / f"{_UNFINISHED}{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_left_over(root)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        number = max(versions_of(root), default=0) + 1
        version = NewVersion(directory, number, root / str(number))
        yield version
        os.rename(directory, version.path)
    except OSError as error:
        raise RunDirectoryError(
            f"{root}: the export cannot be written ({error.strerror or error}); older versions "
            "in it are untouched"
        ) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if not had_root:
            with suppress(OSError):
                root.rmdir()


def _remove_left_over(root: Path) -> None:
    """Remove what exports that were killed have left."""
    for entry in root.glob(f"{_UNFINISHED}*"):
        pid = entry.name.removeprefix(_UNFINISHED)
        if not pid.isdecimal() or not is_alive(int(pid)):
            shutil.rmtree(entry, ignore_errors=True)
