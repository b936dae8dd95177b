"""TensorBoard's event files of a run, for people who already watch there.

Written by the `tensorboard` package: TensorFlow's own writer is that package behind
another door, and cannot say where a training was gone on with.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import MissingDependencyError
from trainer.gradient_log import LogHeader
from trainer.log_frames import LogWindow
from trainer.recorded_steps import HISTOGRAM_BOUNDS, NORMS, WINDOW_STATS

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

    Scalars: `epoch/*` of both; `step/*`, of every recorded step; and
    `gradient_norm/VARIABLE` and `update_ratio/VARIABLE`, the medians of each window.
    Histograms: `gradient/VARIABLE`, the values of the raw gradient by powers of two, in the
    last step of each window that is recorded in full. Figures that are not finite are left out.

    Args:
        folder: In which earlier event files stay as they are.
        first_step: What TensorBoard has of this step and later ones, from a training that
            was gone on with, it forgets.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writers = {
            name: EventFileWriter(str(folder / name)) for name in ("train", "validation")
        }
        if first_step:
            for name in self._writers:
                self._add(name, first_step, session_log=SessionLog(status=SessionLog.START))

    def add_epoch(self, row: Mapping[str, float]) -> None:
        """Write a row of the history."""
        for name, prefix in (("train", ""), ("validation", "val_")):
            figures = {f"epoch/{key}": row.get(prefix + key) for key in _EPOCH_FIGURES}
            self._add_scalars(name, int(row["step"]), figures.items())
        self.flush()

    def add_window(self, header: LogHeader, window: LogWindow) -> None:
        """Write the steps of a window, and what it says of each variable."""
        for step in window.steps:
            figures = ((f"step/{key}", float(step[key])) for key in _STEP_FIGURES)
            self._add_scalars("train", int(step["step"]), figures)
        last = int(window.steps["step"][-1])
        for tag, stat in _WINDOW_FIGURES.items():
            row = window.table[WINDOW_STATS.index(stat)]
            paths = (f"{tag}/{path}" for path in header.paths)
            self._add_scalars("train", last, zip(paths, map(float, row), strict=True))
        self.flush()

    def add_histograms(self, header: LogHeader, step: int, counts: np.ndarray) -> None:
        """Write the distribution of each variable's gradient.

        Args:
            header: Of the log.
            step: At which it was recorded.
            counts: Shape (variables, bins); see `HISTOGRAM_BOUNDS`.
        """
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
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Have everything on disk, and end the threads that write."""
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

        self._writers[name].add_event(Event(wall_time=time.time(), step=step, **what))
