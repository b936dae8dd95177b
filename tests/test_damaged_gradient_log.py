"""Whatever happened to a log, what is sound of it is read, and the rest is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradient_logs import HEADER, VARIABLES, make_window, write_log

from trainer.errors import RunDirectoryError
from trainer.gradient_log import VARIABLES_FILE, WINDOWS_FILE, GradientLog, GradientLogWriter
from trainer.log_frames import LogWindow
from trainer.recorded_steps import WINDOW_STATS


def test_a_header_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path)
    write = Path.write_text

    def full_disk(self: Path, text: str, **options: Any) -> int:
        write(self, text[:100], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(RunDirectoryError, match="No space left on device"):
        GradientLogWriter(tmp_path, replace(HEADER, clipping={}), resume_at=12)
    assert GradientLog.read(tmp_path).header == HEADER


def test_cut_at_any_byte_the_earlier_windows_stay_readable(tmp_path: Path) -> None:
    windows = write_log(tmp_path)
    path = tmp_path / WINDOWS_FILE
    data = path.read_bytes()
    frame = len(data) // 3
    for size in range(2 * frame, 3 * frame):
        path.write_bytes(data[:size])
        log = GradientLog.read(tmp_path)
        np.testing.assert_array_equal(log.steps, np.concatenate([w.steps for w in windows[:2]]))
        assert len(log.table) == 2
        left = size - 2 * frame
        if left:
            assert log.problem == f"{path}: the last {left} bytes are an incomplete window"
        else:
            assert log.problem is None


def test_a_flipped_bit_at_any_byte_is_found(tmp_path: Path) -> None:
    windows = write_log(tmp_path)
    path = tmp_path / WINDOWS_FILE
    data = path.read_bytes()
    frame = len(data) // 3
    for position in range(frame, 2 * frame):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        log = GradientLog.read(tmp_path)
        assert log.problem is not None, position
        assert str(path) in log.problem
        # What follows a damaged window is left out: its steps could not be placed.
        np.testing.assert_array_equal(log.steps, windows[0].steps)


def test_a_damaged_checksum_names_the_place(tmp_path: Path) -> None:
    write_log(tmp_path)
    path = tmp_path / WINDOWS_FILE
    data = bytearray(path.read_bytes())
    frame = len(data) // 3
    data[frame + 100] ^= 1
    path.write_bytes(data)
    message = f"{path}: the window at byte {frame} does not match its checksum"
    assert GradientLog.read(tmp_path).problem == message


def test_a_file_of_something_else_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    write_log(tmp_path)
    path = tmp_path / WINDOWS_FILE
    path.write_bytes(b"PK\x03\x04" + bytes(300))
    log = GradientLog.read(tmp_path)
    assert log.problem == f"{path}: no window begins at byte 0; the 304 bytes are left out"
    assert len(log.steps) == 0
    assert log.table.shape == (0, len(WINDOW_STATS), 3)


def test_a_log_before_its_first_window_is_empty_and_sound(tmp_path: Path) -> None:
    GradientLogWriter(tmp_path, HEADER)
    log = GradientLog.read(tmp_path)
    assert log.problem is None
    assert len(log.steps) == 0
    assert log.window_steps.shape == (0, 2)


def test_a_log_whose_windows_file_is_gone_is_empty(tmp_path: Path) -> None:
    write_log(tmp_path)
    (tmp_path / WINDOWS_FILE).unlink()
    assert len(GradientLog.read(tmp_path).steps) == 0


def test_a_missing_header_says_what_may_have_happened(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no gradient log here \(no variables\.json\)"):
        GradientLog.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format_version": 1}', '{"format_version": 1, "variables": [{}]}'],
)
def test_a_damaged_header_is_named(tmp_path: Path, text: str) -> None:
    write_log(tmp_path)
    (tmp_path / VARIABLES_FILE).write_text(text)
    with pytest.raises(RunDirectoryError, match=r"variables\.json: the gradient log's header"):
        GradientLog.read(tmp_path)


def test_a_header_cut_at_any_byte_is_named(tmp_path: Path) -> None:
    write_log(tmp_path, 1)
    path = tmp_path / VARIABLES_FILE
    text = path.read_text().rstrip("\n")
    for size in range(len(text)):
        path.write_text(text[:size])
        with pytest.raises(RunDirectoryError, match="header is damaged"):
            GradientLog.read(tmp_path)


# ---- resuming ----


@pytest.mark.parametrize(
    ("resume_at", "kept"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (11, 2), (12, 3), (99, 3)]
)
def test_resuming_cuts_off_every_window_with_a_step_that_comes_again(
    tmp_path: Path, resume_at: int, kept: int
) -> None:
    windows = write_log(tmp_path)
    writer = GradientLogWriter(tmp_path, HEADER, resume_at)
    added = make_window(resume_at, seed=9)
    writer.append(LogWindow.of(added))
    log = GradientLog.read(tmp_path)
    assert log.problem is None
    expected = [window.steps for window in windows[:kept]] + [added.steps]
    np.testing.assert_array_equal(log.steps, np.concatenate(expected))


def test_resuming_cuts_off_a_torn_window(tmp_path: Path) -> None:
    windows = write_log(tmp_path)
    path = tmp_path / WINDOWS_FILE
    path.write_bytes(path.read_bytes()[:-5])
    GradientLogWriter(tmp_path, HEADER, resume_at=8).append(LogWindow.of(make_window(8)))
    log = GradientLog.read(tmp_path)
    assert log.problem is None
    np.testing.assert_array_equal(log.steps[:8], np.concatenate([w.steps for w in windows[:2]]))
    assert len(log.steps) == 12


def test_a_new_log_replaces_the_old_one_and_its_header(tmp_path: Path) -> None:
    write_log(tmp_path)
    other = replace(HEADER, variables=VARIABLES[:1], clipping={})
    GradientLogWriter(tmp_path, other)
    log = GradientLog.read(tmp_path)
    assert log.header == other
    assert len(log.steps) == 0


# ---- size and floor ----
