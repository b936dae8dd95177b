"""Frames of the gradient log: one window of recorded steps each, as bytes. NumPy only.

A frame is a header (magic, number of steps, size, checksum), a row for every step, one table
of variables and, if anything of the window recorded activations, one of layers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainer.recorded_steps import STEP_DTYPE, WINDOW_ACTIVATIONS, WINDOW_STATS, RecordedSteps

FORMAT_VERSION = 3
# Format 1 knows no activations: its frames are frames of format 2 without their table.
# Format 2 knows no noise of replicas and no dead units: its rows and tables are shorter.
_OLD_STEP_DTYPE = np.dtype([(name, STEP_DTYPE[name]) for name in (STEP_DTYPE.names or ())[:-1]])
LAYOUTS = {
    1: (_OLD_STEP_DTYPE, len(WINDOW_ACTIVATIONS) - 1),
    2: (_OLD_STEP_DTYPE, len(WINDOW_ACTIVATIONS) - 1),
    3: (STEP_DTYPE, len(WINDOW_ACTIVATIONS)),
}
"""Dtype of a row, and rows of the table of layers, by the version of the format."""

_FRAME = struct.Struct("<4sIII")
_MAGIC = b"GLW1"


@dataclass(frozen=True)
class LogWindow:
    """What the log holds of a window of steps.

    Attributes:
        steps: One row a recorded step, shape (steps,), dtype `STEP_DTYPE`.
        table: Shape (len(WINDOW_STATS), variables), float32.
        activation_table: Shape (len(WINDOW_ACTIVATIONS), layers), float32; NaN where
            nothing was recorded.
        has_activations: Whether anything of it was.
    """

    steps: np.ndarray
    table: np.ndarray
    activation_table: np.ndarray
    has_activations: bool = True

    @classmethod
    def of(cls, recorded: RecordedSteps) -> LogWindow:
        """Summarize consecutive recorded steps."""
        activations = recorded.summarize_activations()
        return cls(
            recorded.steps,
            recorded.summarize(),
            _absent(recorded.activations.shape[1]) if activations is None else activations,
            activations is not None,
        )

    def encode(self) -> bytes:
        """Return the frame, in the current format."""
        payload = self.steps.astype(STEP_DTYPE).tobytes() + self.table.astype("<f4").tobytes()
        if self.has_activations:
            payload += self.activation_table.astype("<f4").tobytes()
        return _FRAME.pack(_MAGIC, len(self.steps), len(payload), zlib.crc32(payload)) + payload


def read_frames(
    data: bytes, num_variables: int, num_layers: int, version: int
) -> Iterator[tuple[int, LogWindow | str]]:
    """Yield sound windows, each with the byte behind it, then at most one problem.

    Args:
        data: Content of the file.
        num_variables: Of the log's header.
        num_layers: Of the log's header.
        version: Of the format, a key of `LAYOUTS`.

    Yields:
        A position, and the window before it or what is wrong behind it.
    """
    step_dtype, num_rows = LAYOUTS[version]
    table_size, activation_size = len(WINDOW_STATS) * num_variables, num_rows * num_layers
    # With the second table or without it.
    table_bytes = (4 * table_size, 4 * (table_size + activation_size))
    position = 0
    while position < len(data):
        remaining = len(data) - position
        incomplete = f"the last {remaining} bytes are an incomplete window"
        if remaining < _FRAME.size:
            yield position, incomplete
            return
        magic, num_steps, size, checksum = _FRAME.unpack_from(data, position)
        if magic != _MAGIC or size - num_steps * step_dtype.itemsize not in table_bytes:
            yield (
                position,
                f"no window begins at byte {position}; the {remaining} bytes are left out",
            )
            return
        if remaining < _FRAME.size + size:
            yield position, incomplete
            return
        start = position + _FRAME.size
        payload = data[start : start + size]
        if zlib.crc32(payload) != checksum:
            yield position, f"the window at byte {position} does not match its checksum"
            return
        steps = np.frombuffer(payload, step_dtype, num_steps)
        values = np.frombuffer(payload, "<f4", offset=steps.nbytes)
        activations = _absent(num_layers)
        if len(values) > table_size:
            activations[:num_rows] = values[table_size:].reshape(num_rows, num_layers)
        position = start + size
        table = values[:table_size].reshape(-1, num_variables)
        window = LogWindow(_with_all_columns(steps), table, activations, len(values) > table_size)
        yield position, window


def _absent(num_layers: int) -> np.ndarray:
    return np.full((len(WINDOW_ACTIVATIONS), num_layers), np.nan, np.float32)


def _with_all_columns(steps: np.ndarray) -> np.ndarray:
    if steps.dtype == STEP_DTYPE:
        return steps
    full = np.zeros(len(steps), STEP_DTYPE)
    full["replica_norm"] = np.nan
    for name in steps.dtype.names or ():
        full[name] = steps[name]
    return full
