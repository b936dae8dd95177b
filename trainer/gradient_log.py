"""The gradient log: what the training step measured, as a file. NumPy only.

A log is a folder with `variables.json` (what was measured, of which variables) and
`windows.bin`, to which one frame is appended for each window of recorded steps. A
frame holds one row for every step of its window (the whole gradient as one vector)
and one table for the window (each variable by itself). So the file grows with
windows times variables, never with parameters.

Frames carry a checksum. A reader takes all sound frames and says what is wrong with
the rest, so that the log of a killed run can always be read.

Words: *raw* is the gradient of the loss, unscaled, summed over replicas, before
clipping; *clipped* is after clipping; *update* is the weight after the step minus the
weight before it; *update ratio* is the norm of the update over that of the weight
before the step. All norms are L2.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import RunDirectoryError

FORMAT_VERSION = 1
VARIABLES_FILE = "variables.json"
WINDOWS_FILE = "windows.bin"

NORMS = ("raw_norm", "clipped_norm", "update_norm", "weight_norm")
"""Per variable and step; `weight_norm` is that of the weight before the step."""

MOMENTS = ("raw_mean", "raw_std", "raw_max_abs", "raw_zero_fraction", "raw_nonfinite_count")
"""Per variable, over its components, at steps that are recorded in full; NaN elsewhere."""

STEP_DTYPE = np.dtype(
    [
        ("step", "<i8"),
        ("loss", "<f4"),
        ("raw_norm", "<f4"),
        ("clipped_norm", "<f4"),
        ("update_norm", "<f4"),
        ("weight_norm", "<f4"),
        ("learning_rate", "<f4"),
        ("loss_scale", "<f4"),
        ("skipped", "<f4"),
    ]
)
"""One row a step. `step` counts from 0, skipped steps included; `loss` is the step's own,
data and regularizers, unscaled; the norms are those of all variables as one vector;
`skipped` is 1 where the optimizer made no update (loss scaling met an overflow)."""

WINDOW_STATS = (
    *(f"{norm}/{part}" for norm in (*NORMS, "update_ratio") for part in ("min", "median", "max")),
    "clipped_fraction",
    *MOMENTS,
)
"""One value per variable and window. `<norm>/min`, `/median` and `/max` are over the window's
steps; `clipped_fraction` is the share of steps at which clipping made the variable's
gradient shorter; of `MOMENTS`, `raw_max_abs` is the window's largest,
`raw_nonfinite_count` its sum, and the others are those of its last step recorded in full."""

_FRAME = struct.Struct("<4sIII")
_MAGIC = b"GLW1"


@dataclass(frozen=True)
class VariableInfo:
    """One recorded variable.

    Attributes:
        path: Keras path, such as `stage1_block0/conv1/kernel`.
        shape: Of the weight.
        connected: False where the loss does not depend on the variable; its raw
            gradient is recorded as zero.
    """

    path: str
    shape: tuple[int, ...]
    connected: bool = True

    @property
    def is_kernel(self) -> bool:
        """Whether this is a matrix or a convolution kernel, not a bias or a scale."""
        return len(self.shape) >= 2


@dataclass(frozen=True)
class LogHeader:
    """What `variables.json` says.

    Attributes:
        variables: In order of creation, which is the order of depth.
        clipping: `{"clipnorm": 1.0}` or alike; empty without clipping.
        every_steps: Every n-th step was recorded.
        moments_every_steps: Of those, every n-th was recorded in full.
        window_steps: Recorded steps in a full window.
        num_replicas: Replicas whose gradients were summed.
        has_loss: False where a custom train step passes no loss to the optimizer's
            `scale_loss`; the recorded loss is then NaN.
    """

    variables: tuple[VariableInfo, ...]
    clipping: dict[str, float] = field(default_factory=dict)
    every_steps: int = 1
    moments_every_steps: int = 1
    window_steps: int = 50
    num_replicas: int = 1
    has_loss: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each variable."""
        return tuple(variable.path for variable in self.variables)


@dataclass(frozen=True)
class RecordedSteps:
    """What the recorder holds of consecutive recorded steps, as it comes from the graph.

    Attributes:
        steps: Shape (steps,), dtype `STEP_DTYPE`.
        norms: Shape (steps, variables, len(NORMS)), float32.
        moments: Shape (steps, variables, len(MOMENTS)), float32; NaN at steps that
            were not recorded in full.
    """

    steps: np.ndarray
    norms: np.ndarray
    moments: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def summarize(self) -> np.ndarray:
        """Return the window's table, shape (len(WINDOW_STATS), variables), float32."""
        raw, clipped, update, weight = np.moveaxis(self.norms.astype(np.float64), -1, 0)
        # A weight of zeros (a bias at its start) has no ratio: NaN, or 0 while it stays.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(weight > 0, update / weight, np.where(update > 0, np.nan, 0.0))
        rows = [
            summary
            for series in (raw, clipped, update, weight, ratio)
            for summary in (series.min(axis=0), _median(series), series.max(axis=0))
        ]
        rows.append(np.mean(clipped < raw, axis=0))
        full = self.moments[~np.isnan(self.moments[:, 0, -1])]
        if len(full):
            rows += list(full[-1, :, :2].T)
            rows += [full[:, :, 2].max(axis=0), full[-1, :, 3], full[:, :, 4].sum(axis=0)]
        else:
            rows += [np.full(raw.shape[1], np.nan)] * len(MOMENTS)
        with np.errstate(over="ignore"):
            return np.stack(rows).astype("<f4")


def _median(series: np.ndarray) -> np.ndarray:
    """Median over steps, NaN where any step is, without NumPy's warning for it."""
    with np.errstate(invalid="ignore"):
        middle = np.sort(series, axis=0)
        lower, upper = middle[(len(middle) - 1) // 2], middle[len(middle) // 2]
        # Halves first: the sum of two large norms could overflow.
        return np.where(np.isnan(series).any(axis=0), np.nan, lower / 2 + upper / 2)


class GradientLogWriter:
    """Append windows to a log.

    Args:
        directory: The log's folder; made if missing.
        header: Written at once.
        resume_at: First step that will be written. Frames of later steps, left by a
            run that was killed after its last checkpoint, are cut off; 0 starts afresh.
    """

    def __init__(self, directory: Path, header: LogHeader, resume_at: int = 0) -> None:
        self._path = directory / WINDOWS_FILE
        directory.mkdir(parents=True, exist_ok=True)
        keep = 0
        if resume_at and self._path.exists():
            for frame in _read_frames(self._path.read_bytes(), len(header.variables)):
                if frame.problem or frame.steps["step"][-1] >= resume_at:
                    break
                keep = frame.end
        with open(self._path, "ab") as file:
            file.truncate(keep)
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(header)}, indent=1)
        (directory / VARIABLES_FILE).write_text(text + "\n", encoding="utf-8")

    def append(self, window: RecordedSteps) -> None:
        """Write one window; nothing is written for an empty one."""
        if not len(window):
            return
        payload = window.steps.astype(STEP_DTYPE).tobytes() + window.summarize().tobytes()
        frame = _FRAME.pack(_MAGIC, len(window), len(payload), zlib.crc32(payload)) + payload
        # One write and no open handle in between: a kill leaves at most one torn frame.
        with open(self._path, "ab") as file:
            file.write(frame)


@dataclass(frozen=True)
class GradientLog:
    """A log that was read.

    Attributes:
        header: What was recorded.
        steps: One row a recorded step, shape (steps,), dtype `STEP_DTYPE`.
        window_steps: First and last step of each window, shape (windows, 2), int64.
        table: Shape (windows, len(WINDOW_STATS), variables), float32.
        problem: What is wrong with the end of the file, or None.
    """

    header: LogHeader
    steps: np.ndarray
    window_steps: np.ndarray
    table: np.ndarray
    problem: str | None = None

    @classmethod
    def read(cls, directory: Path | str) -> GradientLog:
        """Read a log, of a run that still goes on or was killed too.

        Raises:
            RunDirectoryError: If there is no log, or its header is damaged.
        """
        directory = Path(directory)
        header = _read_header(directory / VARIABLES_FILE)
        windows_path = directory / WINDOWS_FILE
        data = windows_path.read_bytes() if windows_path.exists() else b""
        frames: list[_Frame] = []
        problem = None
        for frame in _read_frames(data, len(header.variables)):
            if frame.problem:
                problem = f"{windows_path}: {frame.problem}"
                break
            frames.append(frame)
        num_variables = len(header.variables)
        return cls(
            header=header,
            steps=np.concatenate([np.empty(0, STEP_DTYPE), *(f.steps for f in frames)]),
            window_steps=np.array(
                [(f.steps["step"][0], f.steps["step"][-1]) for f in frames], np.int64
            ).reshape(-1, 2),
            table=np.array([f.table for f in frames], np.float32).reshape(
                -1, len(WINDOW_STATS), num_variables
            ),
            problem=problem,
        )

    def stat(self, name: str) -> np.ndarray:
        """Return one of `WINDOW_STATS` for all windows, shape (windows, variables), float32.

        Raises:
            KeyError: If there is no such statistic.
        """
        if name not in WINDOW_STATS:
            raise KeyError(f"no statistic {name!r}; there are {', '.join(WINDOW_STATS)}")
        return self.table[:, WINDOW_STATS.index(name), :]

    @property
    def kernels(self) -> np.ndarray:
        """Indices of the kernels among the variables, first layer first."""
        return np.flatnonzero([variable.is_kernel for variable in self.header.variables])


def first_to_last_ratio(raw_norm: np.ndarray, kernels: np.ndarray) -> float:
    """Return the health figure: raw norm of the first kernel over that of the last.

    Near 1 the signal reaches the first layer as strongly as the last; below 1e-3 it
    vanishes on the way (AUTOTRAINER, Zhang et al. 2021), far above 1 it explodes.

    Args:
        raw_norm: Shape (..., variables); the median over all but the last axis is taken.
        kernels: Indices of the kernels, first layer first.

    Returns:
        The ratio; NaN without two kernels, without data, or if both norms are 0.
    """
    if len(kernels) < 2 or not raw_norm.size:
        return float("nan")
    norms = np.median(raw_norm.reshape(-1, raw_norm.shape[-1]).astype(np.float64), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(norms[kernels[0]] / norms[kernels[-1]])


@dataclass(frozen=True)
class _Frame:
    end: int
    steps: np.ndarray
    table: np.ndarray
    problem: str | None = None


def _read_header(path: Path) -> LogHeader:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format_version")
        variables = tuple(
            VariableInfo(v["path"], tuple(v["shape"]), v["connected"])
            for v in values.pop("variables")
        )
        if version != FORMAT_VERSION:
            raise RunDirectoryError(
                f"{path}: this version reads gradient logs of format {FORMAT_VERSION}. "
                f"Received: format_version={version}"
            )
        return LogHeader(variables=variables, **values)
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{path.parent}: no gradient log here (no {path.name}). Was the run made with "
            "gradients.record: false, or killed before its first window?"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(f"{path}: the gradient log's header is damaged ({error})") from None


def _read_frames(data: bytes, num_variables: int) -> Iterator[_Frame]:
    """Yield sound frames, then at most one that says what is wrong."""
    table_shape = (len(WINDOW_STATS), num_variables)
    table_bytes = 4 * table_shape[0] * table_shape[1]
    position = 0
    while position < len(data):
        remaining = len(data) - position
        problem = None
        num_steps = size = checksum = 0
        if remaining < _FRAME.size:
            problem = f"the last {remaining} bytes are an incomplete window"
        else:
            magic, num_steps, size, checksum = _FRAME.unpack_from(data, position)
            if magic != _MAGIC or size != num_steps * STEP_DTYPE.itemsize + table_bytes:
                problem = f"no window begins at byte {position}; the {remaining} bytes are left out"
            elif remaining < _FRAME.size + size:
                problem = f"the last {remaining} bytes are an incomplete window"
        start = position + _FRAME.size
        payload = data[start : start + size]
        if problem is None and zlib.crc32(payload) != checksum:
            problem = f"the window at byte {position} does not match its checksum"
        if problem is not None:
            yield _Frame(position, np.empty(0, STEP_DTYPE), np.empty(table_shape), problem)
            return
        steps = np.frombuffer(payload, STEP_DTYPE, num_steps)
        table = np.frombuffer(payload, "<f4", offset=num_steps * STEP_DTYPE.itemsize)
        position = start + size
        yield _Frame(position, steps, table.reshape(table_shape))
