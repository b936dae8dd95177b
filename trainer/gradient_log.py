"""The gradient log: what the training step measured, as a file. NumPy only.

A log is a folder with `variables.json` (what was measured, of which variables and
layers) and `windows.bin`, to which one frame is appended for each window of recorded
steps. A frame holds one row for every step of its window (the whole gradient as one
vector), one table for the window (each variable by itself) and, if the window has a step
whose activations were recorded, a second table (each layer's activations). So the file
grows with windows times variables, never with parameters.

Frames carry a checksum. A reader takes all sound frames and says what is wrong with
the rest, so that the log of a killed run can always be read. `recorded_steps` says what
each figure is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import RunDirectoryError
from trainer.log_frames import FORMAT_VERSION, LAYOUTS, LogWindow, read_frames
from trainer.recorded_steps import STEP_DTYPE, WINDOW_ACTIVATIONS, WINDOW_STATS
from trainer.run_dir import write_atomically, write_text

VARIABLES_FILE = "variables.json"
WINDOWS_FILE = "windows.bin"

# Last parts of the paths of weights that scale and shift, of whatever shape: a GRU and
# attention have biases with two axes.
_NOT_KERNELS = ("bias", "beta", "gamma", "alpha")


@dataclass(frozen=True)
class VariableInfo:
    """One recorded variable.

    Attributes:
        path: Keras path, such as `stage1_block0/conv1/kernel`.
        shape: Of the weight.
        connected: False where the loss does not depend on the variable; its raw
            gradient is recorded as zero.
        l1: Of its regularizer, `l1 * sum(|w|) + l2 * sum(w^2)`.
        l2: The same.
        alike: Whether all filters of a kernel (or columns of a matrix) were equal, and not
            zero, when the recording began.
        summands_in_bfloat16: Numbers of each example that its gradient adds up in bfloat16
            itself, see `bias_sums`; 0 where sums keep their digits.
    """

    path: str
    shape: tuple[int, ...]
    connected: bool = True
    l1: float = 0.0
    l2: float = 0.0
    alike: bool = False
    summands_in_bfloat16: int = 0

    @property
    def is_kernel(self) -> bool:
        """Whether this is a matrix or a convolution kernel, not a bias or a scale."""
        return len(self.shape) >= 2 and not self.path.endswith(_NOT_KERNELS)

    @property
    def is_embedding(self) -> bool:
        """Whether rows of this table are picked, and no input is multiplied with it."""
        return self.path.rsplit("/", 1)[-1] == "embeddings"


@dataclass(frozen=True)
class LogHeader:
    """What `variables.json` says.

    Attributes:
        variables: In order of creation.
        clipping: `{"clipnorm": 1.0}` or alike; empty without clipping.
        every_steps: Every n-th step was recorded.
        moments_every_steps: Of those, every n-th was recorded in full.
        window_steps: Recorded steps in a full window.
        num_replicas: Replicas whose gradients were summed.
        has_loss: False where a custom train step passes no loss to the optimizer's
            `scale_loss`; the recorded loss is then NaN.
        activations: Path of each layer whose output was measured, in the model's order.
        activations_every_steps: Activations of every n-th recorded step; 0 is never.
        activation_images: Activations are those of so many images of each replica's
            share of the batch; None is the whole batch.
        probe_images: Images that dead units are looked for in at the end of each window.
        frozen: Kernels of the model that are not trained.
        outputs: Those of `activations` whose own activation makes what the model returns.
        order: Indices of the variables in the order in which the forward pass uses them;
            empty if that is not known.
        batch_norms: Indices of the scales and offsets of batch normalizations.
    """

    variables: tuple[VariableInfo, ...]
    clipping: dict[str, float] = field(default_factory=dict)
    every_steps: int = 1
    moments_every_steps: int = 1
    window_steps: int = 50
    num_replicas: int = 1
    has_loss: bool = True
    activations: tuple[str, ...] = ()
    activations_every_steps: int = 0
    activation_images: int | None = None
    probe_images: int = 0
    frozen: tuple[VariableInfo, ...] = ()
    outputs: tuple[str, ...] = ()
    order: tuple[int, ...] = ()
    batch_norms: tuple[int, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Path of each variable."""
        return tuple(variable.path for variable in self.variables)

    @property
    def kernels(self) -> np.ndarray:
        """Indices of the kernels among the variables, first layer first."""
        order = self.order or range(len(self.variables))
        return np.array([i for i in order if self.variables[i].is_kernel], np.int64)

    def read_frames(self, data: bytes, version: int) -> Iterator[tuple[int, LogWindow | str]]:
        """Read the windows of a log with this header, see `log_frames.read_frames`."""
        return read_frames(data, len(self.variables), len(self.activations), version)


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
        try:
            directory.mkdir(parents=True, exist_ok=True)
            keep = self._end_before(resume_at, directory, header)
            with open(self._path, "ab") as file:
                file.truncate(keep)
        except OSError as error:
            raise RunDirectoryError(
                f"{self._path}: cannot be written ({error.strerror or error})"
            ) from error
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(header)}, indent=1)
        write_text(directory / VARIABLES_FILE, text + "\n")

    def _end_before(self, step: int, directory: Path, header: LogHeader) -> int:
        """Return where the frames of earlier steps end, in bytes."""
        keep = 0
        if step and self._path.exists():
            _renew_format(directory)
            for end, window in header.read_frames(self._path.read_bytes(), FORMAT_VERSION):
                if isinstance(window, str) or window.steps["step"][-1] >= step:
                    break
                keep = end
        return keep

    def append(self, window: LogWindow) -> None:
        """Write one window."""
        # One write and no open handle in between: a kill leaves at most one torn frame.
        try:
            with open(self._path, "ab") as file:
                file.write(window.encode())
        except OSError as error:
            raise RunDirectoryError(
                f"{self._path}: cannot be written ({error.strerror or error}); the windows before "
                "can be read"
            ) from error


@dataclass(frozen=True)
class GradientLog:
    """A log that was read.

    Attributes:
        header: What was recorded.
        steps: One row a recorded step, shape (steps,), dtype `STEP_DTYPE`.
        window_steps: First and last step of each window, shape (windows, 2), int64.
        table: Shape (windows, len(WINDOW_STATS), variables), float32.
        activation_table: Shape (windows, len(WINDOW_ACTIVATIONS), layers), float32; NaN
            in windows without a step whose activations were recorded.
        problem: What is wrong with the end of the file, or None.
    """

    header: LogHeader
    steps: np.ndarray
    window_steps: np.ndarray
    table: np.ndarray
    activation_table: np.ndarray
    problem: str | None = None

    @classmethod
    def read(cls, directory: Path | str) -> GradientLog:
        """Read a log, of a run that still goes on or was killed too.

        Raises:
            RunDirectoryError: If there is no log, or its header is damaged.
        """
        header, frames = _read_frames(Path(directory))
        windows = [frame for frame in frames if isinstance(frame, LogWindow)]
        problems = [frame for frame in frames if isinstance(frame, str)]
        problem = f"{Path(directory) / WINDOWS_FILE}: {problems[0]}" if problems else None
        return cls.of(header, windows, problem)

    @classmethod
    def of(
        cls, header: LogHeader, windows: Sequence[LogWindow], problem: str | None = None
    ) -> GradientLog:
        """Return the log of some windows, in their order."""
        no_table = np.empty((0, len(WINDOW_STATS), len(header.variables)), np.float32)
        no_layers = np.empty((0, len(WINDOW_ACTIVATIONS), len(header.activations)), np.float32)
        return cls(
            header=header,
            steps=np.concatenate([np.empty(0, STEP_DTYPE), *(w.steps for w in windows)]),
            window_steps=np.array(
                [(w.steps["step"][0], w.steps["step"][-1]) for w in windows], np.int64
            ).reshape(-1, 2),
            table=np.stack([w.table for w in windows]) if windows else no_table,
            activation_table=(
                np.stack([w.activation_table for w in windows]) if windows else no_layers
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

    def activation(self, name: str) -> np.ndarray:
        """Return one of `WINDOW_ACTIVATIONS` for all windows.

        Returns:
            Shape (windows, layers), float32, layers as `header.activations` names them.

        Raises:
            KeyError: If there is no such statistic.
        """
        if name not in WINDOW_ACTIVATIONS:
            raise KeyError(
                f"no statistic of activations {name!r}; there are {', '.join(WINDOW_ACTIVATIONS)}"
            )
        return self.activation_table[:, WINDOW_ACTIVATIONS.index(name), :]

    @property
    def kernels(self) -> np.ndarray:
        """Indices of the kernels among the variables, first layer first."""
        return self.header.kernels


def read_windows(directory: Path) -> list[LogWindow]:
    """Return the sound windows of a log.

    Raises:
        RunDirectoryError: If there is no log, or its header is damaged.
    """
    return [frame for frame in _read_frames(directory)[1] if isinstance(frame, LogWindow)]


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


def _read_frames(directory: Path) -> tuple[LogHeader, list[LogWindow | str]]:
    """Return the header of a log, its sound windows and what is wrong behind them."""
    header, version = _read_header(directory / VARIABLES_FILE)
    path = directory / WINDOWS_FILE
    data = path.read_bytes() if path.exists() else b""
    return header, [frame for _, frame in header.read_frames(data, version)]


def _renew_format(directory: Path) -> None:
    """Write the sound frames of an older log in the current format."""
    header, version = _read_header(directory / VARIABLES_FILE)
    if version == FORMAT_VERSION:
        return
    path = directory / WINDOWS_FILE
    windows = (window for _, window in header.read_frames(path.read_bytes(), version))
    data = b"".join(window.encode() for window in windows if not isinstance(window, str))
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def _read_header(path: Path) -> tuple[LogHeader, int]:
    """Return the header, and the version of the format that the log has."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format_version")
        if version not in LAYOUTS:
            raise RunDirectoryError(
                f"{path}: this version reads gradient logs of format "
                f"{', '.join(map(str, LAYOUTS))}. Received: format_version={version}"
            )
        for name, described in (
            ("variables", values.pop("variables")),
            ("frozen", values.pop("frozen", ())),
        ):
            values[name] = tuple(
                VariableInfo(**{**v, "shape": tuple(v["shape"])}) for v in described
            )
        for name in ("activations", "outputs", "order", "batch_norms"):
            values[name] = tuple(values.get(name, ()))
        return LogHeader(**values), version
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{path.parent}: no gradient log here (no {path.name}). Was the run made with "
            "gradients.record: false, or killed before its first window?"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(f"{path}: the gradient log's header is damaged ({error})") from None
