"""What a person sees of a training: a line an epoch, and a bar within it."""

from __future__ import annotations

import math
import time

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trainer.terminal import say


class EpochLines(keras.callbacks.Callback):
    """One line an epoch, and on a terminal a bar that moves within it.

    Adds `seconds` and `images_per_second` of the training part of an epoch to its
    logs, so it comes before the callbacks that write them.

    Args:
        num_epochs: Of the whole run.
        batch_size: Images a step.
    """

    def __init__(self, num_epochs: int, batch_size: int) -> None:
        super().__init__()
        self._num_epochs = num_epochs
        self._batch_size = batch_size
        self._num_batches = 0
        self._started = 0.0
        self._seconds: float | None = None
        self._drawn = 0.0
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._started = time.perf_counter()
        self._seconds = None
        self._num_batches = 0
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed}/{task.total} steps"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                auto_refresh=False,
            )
            name = f"{epoch + 1}/{self._num_epochs}"
            self._task = self._bar.add_task("", total=self.params["steps"], epoch=name)
            self._bar.start()

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        # Begin, not end: see GradientRecorder.on_train_batch_begin.
        self._num_batches = batch + self.model.steps_per_execution
        now = time.perf_counter()
        if self._bar is not None and now - self._drawn > 0.2:
            self._drawn = now
            self._bar.update(self._task, completed=batch, refresh=True)

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        self._seconds = time.perf_counter() - self._started

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.close()
        logs = {} if logs is None else logs
        seconds = self._seconds or time.perf_counter() - self._started
        logs["seconds"] = seconds
        logs["images_per_second"] = self._num_batches * self._batch_size / seconds
        say(format_epoch(epoch, self._num_epochs, logs))

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def format_epoch(epoch: int, num_epochs: int, logs: dict[str, float]) -> str:
    """Return an epoch's line; `epoch` counts from 0. It fits into 100 columns."""
    width = len(str(num_epochs))
    parts = [f"epoch {epoch + 1:{width}}/{num_epochs}"]
    parts.append(f"loss {logs['loss']:.4f} acc {logs['accuracy']:.4f}")
    if "val_loss" in logs:
        parts.append(f"val {logs['val_loss']:.4f} {logs['val_accuracy']:.4f}")
    parts.append(f"{logs['images_per_second']:,.0f} img/s")
    ratio = logs.get("first_to_last_grad", math.nan)
    if not math.isnan(ratio):
        parts.append(f"grad first/last {ratio:.2g}")
    return "  ".join(parts)
