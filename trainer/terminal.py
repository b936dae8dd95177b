"""What a person sees while something takes its time, all of it on standard error."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def say(message: str = "") -> None:
    """Print a line for people, if anybody still reads it: a Ctrl-C ends `| tee`, too."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def stdout_width() -> int | None:
    """Return the columns of the terminal that standard output is, None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def duration(seconds: float) -> str:
    """Return a time for people: `0:07`, `12:30`, `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def progress_bar(title: str, total: int, is_shown: bool = True) -> Iterator[Callable[[], None]]:
    """Draw a bar, on a terminal only, and take it away at the end.

    Args:
        title: What goes on.
        total: Items there are.
        is_shown: False where rows on the same terminal show the progress already.

    Yields:
        A function to call after each item.
    """
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    is_drawn = is_shown and console.is_terminal
    with Progress(
        *columns,
        console=console,
        transient=True,
        # Or what is printed meanwhile would go to the console, wrapped.
        redirect_stdout=False,
        disable=not is_drawn,
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
