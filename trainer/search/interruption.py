"""How a process of a search ends: by a signal wherever it stands, and not only within `fit`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.errors import InterruptedRun

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_WATCH_SECONDS = 0.5


@contextmanager
def interruptible(*, is_managed: bool = False) -> Iterator[None]:
    """Raise `InterruptedRun` at a SIGINT or SIGTERM; within `fit`, after a checkpoint.

    Args:
        is_managed: Another process looks after this one and can kill it. Then a second
            signal is ignored, for a supervisor often sends one of its own beside that of
            the other process. Else it acts as it always does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in _NUMBERS}

    def handle(number: int, frame: FrameType | None) -> None:
        for each in _NUMBERS:
            signal.signal(each, signal.SIG_IGN if is_managed else previous[each])
        raise InterruptedRun(number, f"interrupted by {signal.Signals(number).name}")

    for number in _NUMBERS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in _NUMBERS:
            signal.signal(number, previous[number])


def interrupt_main() -> None:
    """Send the main thread the signal that `interruptible` and `fit` answer."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGTERM)


def has_lost(parent: int | None) -> bool:
    """Whether the process that started this one is gone."""
    return parent is not None and os.getppid() != parent


def watch_parent(parent: int) -> None:
    """Interrupt this process soon after the one that started it is gone."""

    def watch() -> None:
        while not has_lost(parent):
            time.sleep(_WATCH_SECONDS)
        interrupt_main()

    threading.Thread(target=watch, daemon=True).start()


def ending(code: int) -> str:
    """Return how a process ended: its exit code, or the name of the signal."""
    if code >= 0:
        return f"exit code {code}"
    return next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
