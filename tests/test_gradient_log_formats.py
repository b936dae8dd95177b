"""Logs of older formats are read, and go on in the new one."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from gradient_logs import HEADER, VARIABLES, make_window, write_log

from trainer.errors import RunDirectoryError
from trainer.gradient_log import (
    VARIABLES_FILE,
    WINDOWS_FILE,
    GradientLog,
    GradientLogWriter,
    LogHeader,
)
from trainer.log_frames import LogWindow
from trainer.recorded_steps import STEP_DTYPE, RecordedSteps


def write_old(directory: Path, version: int) -> list[RecordedSteps]:
    """Write three windows as format 1 (without activations) or 2 has them, byte by byte."""
    windows = [make_window(4 * index) for index in range(3)]
    data = b""
    for window in windows:
        names = [name for name in STEP_DTYPE.names if name != "replica_norm"]
        rows = [struct.pack("<q8f", *(row[name] for name in names)) for row in window.steps]
        payload = b"".join(rows) + window.summarize().tobytes()
        if version == 2:
            payload += window.summarize_activations()[:-1].tobytes()
        data += struct.pack("<4sIII", b"GLW1", 4, len(payload), zlib.crc32(payload)) + payload
    (directory / WINDOWS_FILE).write_bytes(data)
    described = [
        {"path": v.path, "shape": v.shape, "connected": v.connected} for v in HEADER.variables
    ]
    header = {
        "format_version": version,
        "variables": described,
        "clipping": {"clipnorm": 1.0},
        "every_steps": 2,
        "moments_every_steps": 2,
        "window_steps": 50,
        "num_replicas": 1,
        "has_loss": True,
    }
    if version == 2:
        header |= {
            "activations": ["stem_act", "block"],
            "activations_every_steps": 2,
            "activation_images": 16,
        }
    (directory / VARIABLES_FILE).write_text(json.dumps(header))
    return windows


def test_a_log_of_format_1_reads_as_one_without_activations(tmp_path: Path) -> None:
    windows = write_old(tmp_path, 1)
    log = GradientLog.read(tmp_path)
    assert log.problem is None
    assert log.header == LogHeader(
        VARIABLES, clipping={"clipnorm": 1.0}, every_steps=2, moments_every_steps=2
    )
    np.testing.assert_array_equal(
        log.steps["loss"], np.concatenate([w.steps["loss"] for w in windows])
    )
    np.testing.assert_array_equal(log.table[1], windows[1].summarize())
    assert log.activation("mean/max").shape == (3, 0)


def test_a_log_of_format_2_reads_as_one_without_noise_and_dead_units(tmp_path: Path) -> None:
    windows = write_old(tmp_path, 2)
    log = GradientLog.read(tmp_path)
    assert log.problem is None
    np.testing.assert_array_equal(log.steps["step"], np.arange(12))
    assert np.isnan(log.steps["replica_norm"]).all()
    np.testing.assert_array_equal(
        log.activation_table[2, :-1], windows[2].summarize_activations()[:-1]
    )
    assert np.isnan(log.activation("dead_fraction")).all()


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_of_an_old_format_goes_on_in_the_new_one_and_keeps_its_windows(
    tmp_path: Path, version: int
) -> None:
    windows = write_old(tmp_path, version)
    GradientLogWriter(tmp_path, HEADER, resume_at=8).append(LogWindow.of(make_window(8)))
    log = GradientLog.read(tmp_path)
    assert log.problem is None
    assert log.header == HEADER
    kept = np.concatenate([w.steps["raw_norm"] for w in windows[:2]])
    np.testing.assert_array_equal(log.steps["raw_norm"][:8], kept)
    np.testing.assert_array_equal(np.isnan(log.steps["replica_norm"]), [True] * 8 + [False] * 4)
    means = log.activation("mean/median")
    np.testing.assert_array_equal(np.isnan(means[:, 0]), [version == 1] * 2 + [False])
    np.testing.assert_array_equal(np.isnan(log.activation("dead_fraction")[:, 0]), [1, 1, 0])


def test_another_format_is_refused_with_all_versions(tmp_path: Path) -> None:
    write_log(tmp_path)
    path = tmp_path / VARIABLES_FILE
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "format_version": 9}))
    with pytest.raises(RunDirectoryError, match=r"of format 1, 2, 3\. Received: format_version=9"):
        GradientLog.read(tmp_path)


# ---- torn and damaged files ----
