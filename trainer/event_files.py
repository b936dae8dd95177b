"""TensorBoard's event files of a run, for people who already watch there.

Written by the `tensorboard` package: TensorFlow's own writer is that package behind
another door, and cannot say where a training was gone on with.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import MissingDependencyError, RunDirectoryError
from trainer.gradient_log import LogHeader
from trainer.log_frames import LogWindow
from trainer.recorded_steps import HISTOGRAM_BOUNDS, NORMS, WINDOW_STATS, RecordedSteps

_EPOCH_FIGURES = ("loss", "accuracy")
_STEP_FIGURES = ("loss", "learning_rate", *NORMS)
_WINDOW_FIGURES = {"gradient_norm": "raw_norm/median", "update_ratio": "update_ratio/median"}


def require_tensorboard() -> None:
    """Refuse early what could not be written later.

    Raises:
        MissingDependencyError: If the package is not there.
    """
    if find_spec("tensorboard") is None:
        raise MissingDependencyError(
            "fit.tensorboard: true needs the package tensorboard. "
            "Run: scripts/setup_env.sh tensorboard, or leave the key out"
        )


class EventFiles:
    """Event files of one training, below `train` and `validation` in a folder.

    Scalars: `epoch/*` of both, at the epoch's last step; `step/*`, of every recorded step;
    and `gradient_norm/VARIABLE` and `update_ratio/VARIABLE`, the medians of each window.
    Histograms: `gradient/VARIABLE`, the values of the raw gradient by powers of two, in the
    last step of each window that is recorded in full. Figures that are not finite are left
    out.

    Args:
        folder: In which earlier event files stay as they are.
        first_step: What TensorBoard has of this step and later ones, from a training that
            was gone on with, it forgets.

    Raises:
        RunDirectoryError: If a file cannot be written; from every method.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self._folder = folder
        self._first_step = first_step
        self._writers: dict[str, Any] = {}

    def add_epoch(self, row: Mapping[str, float]) -> None:
        """Write a row of the history, whose `step` is the number of steps done."""
        for name, prefix in (("train", ""), ("validation", "val_")):
            figures = {f"epoch/{key}": row.get(prefix + key) for key in _EPOCH_FIGURES}
            self._add_scalars(name, int(row["step"]) - 1, figures.items())
        self.flush()

    def add_window(self, header: LogHeader, window: LogWindow, recorded: RecordedSteps) -> None:
        """Write the steps of a window, and what it says of each variable."""
        for step in window.steps:
            figures = ((f"step/{key}", float(step[key])) for key in _STEP_FIGURES)
            self._add_scalars("train", int(step["step"]), figures)
        last = int(window.steps["step"][-1])
        for tag, stat in _WINDOW_FIGURES.items():
            row = window.table[WINDOW_STATS.index(stat)]
            paths = (f"{tag}/{path}" for path in header.paths)
            self._add_scalars("train", last, zip(paths, map(float, row), strict=True))
        if recorded.histograms is not None:
            (counted,) = np.nonzero(~np.isnan(recorded.histograms).any(axis=(1, 2)))
            if counted.size:
                step = int(recorded.steps["step"][counted[-1]])
                self._add_histograms(header, step, recorded.histograms[counted[-1]])
        self.flush()

    def _add_histograms(self, header: LogHeader, step: int, counts: np.ndarray) -> None:
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

        values = []
        for path, row in zip(header.paths, counts.astype(np.float64), strict=True):
            (filled,) = np.nonzero(row)
            if not filled.size:
                continue
            first, last = filled[0], filled[-1]
            bounds = HISTOGRAM_BOUNDS[first : last + 2]
            middles = (bounds[:-1] + bounds[1:]) / 2
            kept = row[first : last + 1]
            histogram = HistogramProto(
                min=bounds[0],
                max=bounds[-1],
                num=kept.sum(),
                sum=(kept * middles).sum(),
                sum_squares=(kept * middles**2).sum(),
                bucket_limit=bounds[1:],
                bucket=kept,
            )
            values.append(Summary.Value(tag=f"gradient/{path}", histo=histogram))
        self._add("train", step, summary=Summary(value=values))

    def flush(self) -> None:
        """Have everything on disk."""
        with self._writing():
            for writer in self._writers.values():
                writer.flush()

    def close(self) -> None:
        """Have everything on disk, and end the threads that write."""
        with self._writing():
            for writer in self._writers.values():
                writer.close()

    def _add_scalars(
        self, name: str, step: int, figures: Iterable[tuple[str, float | None]]
    ) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in figures
            if value is not None and np.isfinite(value)
        ]
        if values:
            self._add(name, step, summary=Summary(value=values))

    def _add(self, name: str, step: int, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        with self._writing():
            writer = self._writers.get(name) or self._open(name)
            writer.add_event(Event(wall_time=time.time(), step=step, **what))

    def _open(self, name: str) -> Any:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = self._writers[name] = EventFileWriter(str(self._folder / name))
        start = SessionLog(status=SessionLog.START)
        writer.add_event(Event(wall_time=time.time(), step=self._first_step, session_log=start))
        return writer

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # TensorFlow's file system raises its own, which are no `OSError`.
        except Exception as error:
            raise RunDirectoryError(
                f"{self._folder}: event files cannot be written ({error}). Make room, or leave "
                "out fit.tensorboard"
            ) from error
