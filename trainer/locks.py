"""One process at a time in a folder, by a lock that the kernel takes back whatever ends it.

On a network's file system it holds as far as that has locks which all machines share.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.errors import RunDirectoryError, TrainerError

try:
    import fcntl
except ImportError:  # Not a Unix.
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_TRY_SECONDS = 0.2
_held: set[int] = set()
"""Descriptors of the locks of this process."""


def _let_go() -> None:
    """In a forked child, which would hold its parent's locks as long as it lives."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)


class NoLocksError(RunDirectoryError):
    """The file system, or the machine, has no locks."""


class HeldError(TrainerError):
    """Another process holds the folder.

    Attributes:
        holder: `<pid> on <host>`.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"held by pid {holder}")
        self.holder = holder


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder for this process alone; it is made if it is not there.

    Args:
        path: The folder.
        patience: Seconds to wait for another process to let go of it.

    Raises:
        HeldError: If another process has it.
        NoLocksError: If there are no locks where it is.
        RunDirectoryError: If it cannot be written.
    """
    descriptor = _opened(path / LOCK_FILE)
    _held.add(descriptor)
    try:
        _wait_for(descriptor, path, time.monotonic() + patience)
        with suppress(OSError):  # On a full disk it holds, though nobody can read whose it is.
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        # Not in a child that was forked meanwhile, which has closed it.
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds a folder, this one included; None if nothing tells.

    It takes the lock for an instant, beside others that do: `locked` needs some patience.
    """
    if fcntl is None:
        return None
    try:
        with open(path / LOCK_FILE, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _opened(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be written ({error.strerror})") from error


def _wait_for(descriptor: int, path: Path, end: float) -> None:
    if fcntl is None:
        raise NoLocksError(f"{path}: this machine has no locks")
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                raise HeldError(holder or "unknown") from None
        except OSError as error:
            why = f"this file system has no locks ({error.strerror})"
            raise NoLocksError(f"{path}: {why}") from None
        time.sleep(_TRY_SECONDS)
