"""What a person sees of a training: a line an epoch, and on a terminal one that moves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from trainer.machine import peak_memory_mib
from trainer.runtime import peak_gpu_memory_mib
from trainer.terminal import duration, say

_DRAW_SECONDS = 0.2
# Loss and accuracy are on the device: to read them waits for the step that runs.
_READ_SECONDS = 1.0
_ORDER = ("steps", "metrics", "speed", "health", "left")
# Where it is too narrow for all, these go first.
_LESS_WANTED = ("speed", "steps")
_FEWEST_OF_BAR = 4


class Pace:
    """How fast a training goes, and how long the rest of it takes.

    What an epoch takes beside its steps, for validation and checkpoint, is known from the
    end of the first one on.

    Args:
        end_epoch: Up to which epoch it trains.
        epoch_steps: Of an epoch.
    """

    def __init__(self, end_epoch: int, epoch_steps: int) -> None:
        self._end_epoch = end_epoch
        self._epoch_steps = epoch_steps
        self._epoch = 0
        self._begun = (0, 0.0)
        self._step_seconds = math.nan
        self._other_seconds = 0.0

    def begin(self, epoch: int) -> None:
        """Note that an epoch begins."""
        self._epoch = epoch
        self._begun = (0, 0.0)

    def note(self, steps: int, now: float) -> None:
        """Note how many steps of the epoch are done; the first one, which traces, is left out."""
        if steps and not self._begun[0]:
            self._begun = (steps, now)
        elif steps > self._begun[0]:
            self._step_seconds = (now - self._begun[1]) / (steps - self._begun[0])

    def note_rest(self, seconds: float) -> None:
        """Note what an epoch took beside its steps."""
        self._other_seconds = seconds

    @property
    def step_seconds(self) -> float:
        """Of one step lately, NaN before the second one."""
        return self._step_seconds

    def seconds_left(self, steps: int) -> float:
        """Return what is left of the run after some steps of this epoch; NaN if unknown."""
        epochs = self._end_epoch - self._epoch - 1
        left = max(self._epoch_steps - steps, 0) + epochs * self._epoch_steps
        rests = epochs + (steps < self._epoch_steps)
        return left * self._step_seconds + rests * self._other_seconds


class EpochLines(keras.callbacks.Callback):
    """One line an epoch, and on a terminal one that moves within it.

    Adds to an epoch's logs, so that it comes before the callbacks that write them:
    `seconds` and `images_per_second` of its training part; `memory_mib`, the largest
    resident set of this process so far; and on GPUs `gpu_memory_mib`, the most that
    TensorFlow has had of one of them.

    Args:
        num_epochs: Of the whole run.
        batch_size: Images a step.
        epoch_steps: Steps of a whole epoch.
        end_epoch: Up to which epoch it trains; there can be reasons to stop earlier.
        health: Returns what the live diagnosis says in a word or two; empty for nothing.
    """

    def __init__(
        self,
        num_epochs: int,
        batch_size: int,
        epoch_steps: int,
        end_epoch: int,
        health: Callable[[], str] = lambda: "",
    ) -> None:
        super().__init__()
        self._num_epochs = num_epochs
        self._batch_size = batch_size
        self._epoch_steps = epoch_steps
        self._health = health
        self._pace = Pace(end_epoch, epoch_steps)
        self._end_epoch = end_epoch
        self._offset = 0
        self._num_batches = 0
        self._started = 0.0
        self._seconds: float | None = None
        self._drawn = 0.0
        self._read = 0.0
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._words: dict[str, str] = {}
        self._room = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        now = time.perf_counter()
        if self._seconds is not None:
            # With the checkpoint, which is written after this callback.
            self._pace.note_rest(now - self._started - self._seconds)
        self._started = now
        self._seconds = None
        self._num_batches = 0
        # Of an epoch that is gone on with.
        self._offset = self._epoch_steps - self.params["steps"]
        self._pace.begin(epoch)
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(f"epoch {epoch + 1}/{self._num_epochs}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[words]}"),
                console=console,
                transient=True,
                auto_refresh=False,
            )
            self._task = self._bar.add_task("", total=self._epoch_steps, words="")
            self._words = {"steps": f"0/{self._epoch_steps}"}
            self._room = console.width - len(f"epoch {epoch + 1}/{self._num_epochs}")
            self._bar.start()

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        # Begin, not end: see GradientRecorder.on_train_batch_begin.
        self._num_batches = batch + self.model.steps_per_execution
        now = time.perf_counter()
        self._pace.note(batch, now)
        if self._bar is not None and now - self._drawn > _DRAW_SECONDS:
            self._drawn = now
            self._draw(self._bar, batch, now)

    def _draw(self, bar: Progress, batch: int, now: float) -> None:
        done = self._offset + batch
        words = self._words
        words["steps"] = f"{done}/{self._epoch_steps}"
        if batch and now - self._read > _READ_SECONDS:
            self._read = now
            values = {key: float(value) for key, value in self.model.get_metrics_result().items()}
            words["metrics"] = f"loss {values['loss']:.4f} acc {values['accuracy']:.4f}"
        words["health"] = self._health()
        if not math.isnan(self._pace.step_seconds):
            words["speed"] = f"{self._batch_size / self._pace.step_seconds:,.0f} img/s"
            words["left"] = f"{duration(self._pace.seconds_left(done))} left"
        text = fitting_words(words, self._room - _FEWEST_OF_BAR - 2)
        bar.update(self._task, completed=done, refresh=True, words=text)

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        now = time.perf_counter()
        self._seconds = now - self._started
        self._pace.note(self._num_batches, now)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        is_on_terminal = self._bar is not None
        self.close()
        logs = {} if logs is None else logs
        now = time.perf_counter()
        self._seconds = seconds = self._seconds or now - self._started
        self._pace.note_rest(now - self._started - seconds)
        logs["seconds"] = seconds
        logs["images_per_second"] = self._num_batches * self._batch_size / seconds
        logs |= {"memory_mib": peak_memory_mib(), **peak_gpu_memory_mib()}
        left = math.nan if is_on_terminal else self._pace.seconds_left(self._epoch_steps)
        if epoch + 1 == self._end_epoch:
            left = math.nan
        say(format_epoch(epoch, self._num_epochs, logs, self._health(), left))

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.close()

    def close(self) -> None:
        """Take what moves away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def fitting_words(words: Mapping[str, str], room: int) -> str:
    """Return what stands behind the bar, with the colour of a verdict as rich marks it up.

    Args:
        words: `steps`, `metrics`, `speed`, `health` and `left`, as far as they are known.
        room: Columns; where they are too few, the speed goes first and then the steps.
    """
    kept = {key: words[key] for key in _ORDER if words.get(key)}
    for key in _LESS_WANTED:
        if len(" ".join(kept.values())) > room:
            kept.pop(key, None)
    if "health" in kept:
        health = kept["health"]
        colour = "green" if health == "healthy" else "yellow" if "warning" in health else "bold red"
        kept["health"] = f"[{colour}]{health}[/]"
    return " ".join(kept.values())


def format_epoch(
    epoch: int,
    num_epochs: int,
    logs: dict[str, float],
    health: str = "",
    seconds_left: float = math.nan,
) -> str:
    """Return an epoch's line.

    Args:
        epoch: From 0.
        num_epochs: Of the whole run.
        logs: Of the epoch.
        health: What the live diagnosis says; empty for nothing.
        seconds_left: Of the run, NaN if it is shown elsewhere or unknown. Without it the
            line of a healthy training fits into 80 columns.
    """
    width = len(str(num_epochs))
    parts = [f"epoch {epoch + 1:{width}}/{num_epochs}"]
    parts.append(f"loss {logs['loss']:.4f} acc {logs['accuracy']:.4f}")
    if "val_loss" in logs:
        parts.append(f"val {logs['val_loss']:.4f} {logs['val_accuracy']:.4f}")
    parts.append(f"{logs['images_per_second']:,.0f} img/s")
    if health:
        parts.append(health)
    if epoch + 1 < num_epochs and not math.isnan(seconds_left):
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)
