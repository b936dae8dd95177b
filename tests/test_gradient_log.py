from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.errors import RunDirectoryError
from trainer.gradient_log import (
    VARIABLES_FILE,
    WINDOWS_FILE,
    GradientLog,
    GradientLogWriter,
    LogHeader,
    VariableInfo,
    first_to_last_ratio,
)
from trainer.log_frames import LogWindow
from trainer.recorded_steps import (
    ACTIVATIONS,
    MOMENTS,
    NORMS,
    STEP_DTYPE,
    WINDOW_ACTIVATIONS,
    WINDOW_STATS,
    RecordedSteps,
)

VARIABLES = (
    VariableInfo("conv/kernel", (3, 3, 1, 2)),
    VariableInfo("conv/bias", (2,)),
    VariableInfo("unused/kernel", (4, 4), connected=False),
)
HEADER = LogHeader(
    VARIABLES,
    clipping={"clipnorm": 1.0},
    every_steps=2,
    moments_every_steps=2,
    activations=("stem_act", "block"),
    activations_every_steps=2,
    activation_images=16,
)


def make_window(first_step: int, num_steps: int = 4, seed: int = 0) -> RecordedSteps:
    """Return made-up steps; every second one has moments and activations."""
    generator = np.random.default_rng(seed + first_step)
    steps = np.zeros(num_steps, STEP_DTYPE)
    steps["step"] = first_step + np.arange(num_steps)
    for name in STEP_DTYPE.names[1:]:
        steps[name] = generator.random(num_steps)
    norms = generator.random((num_steps, 3, len(NORMS))).astype(np.float32)
    moments = generator.random((num_steps, 3, len(MOMENTS))).astype(np.float32)
    moments[1::2] = np.nan
    activations = generator.random((num_steps, 2, len(ACTIVATIONS))).astype(np.float32)
    activations[1::2] = np.nan
    dead_fraction = generator.random(2).astype(np.float32)
    return RecordedSteps(steps, norms, moments, activations, dead_fraction)


def write_log(directory: Path, windows: int = 3) -> list[RecordedSteps]:
    writer = GradientLogWriter(directory, HEADER)
    written = [make_window(4 * index) for index in range(windows)]
    for window in written:
        writer.append(LogWindow.of(window))
    return written


def test_a_log_reads_back_as_it_was_written(tmp_path: Path) -> None:
    windows = write_log(tmp_path)
    log = GradientLog.read(tmp_path)
    assert log.header == HEADER
    assert log.problem is None
    np.testing.assert_array_equal(log.steps, np.concatenate([w.steps for w in windows]))
    np.testing.assert_array_equal(log.window_steps, [[0, 3], [4, 7], [8, 11]])
    assert log.table.shape == (3, len(WINDOW_STATS), 3)
    assert log.table.dtype == np.float32
    assert log.activation_table.shape == (3, len(WINDOW_ACTIVATIONS), 2)
    assert log.activation_table.dtype == np.float32


def test_every_statistic_of_a_window_is_that_of_its_steps(tmp_path: Path) -> None:
    (window,) = write_log(tmp_path, 1)
    log = GradientLog.read(tmp_path)
    norms = {name: window.norms[:, :, i].astype(np.float64) for i, name in enumerate(NORMS)}
    norms["update_ratio"] = norms["update_norm"] / norms["weight_norm"]
    expected: dict[str, Any] = {
        "clipped_fraction": np.mean(norms["clipped_norm"] < norms["raw_norm"], axis=0)
    }
    for name, values in norms.items():
        expected[f"{name}/min"] = np.min(values, axis=0)
        expected[f"{name}/median"] = np.median(values, axis=0)
        expected[f"{name}/max"] = np.max(values, axis=0)
    # Steps 0 and 2 are recorded in full.
    expected["raw_mean"], expected["raw_std"] = window.moments[2, :, 0], window.moments[2, :, 1]
    expected["raw_max_abs"] = window.moments[[0, 2], :, 2].max(axis=0)
    expected["raw_zero_fraction"] = window.moments[2, :, 3]
    expected["raw_nonfinite_count"] = window.moments[[0, 2], :, 4].sum(axis=0)
    assert set(expected) == set(WINDOW_STATS)
    for name in WINDOW_STATS:
        np.testing.assert_allclose(log.stat(name)[0], expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5])
def test_the_median_is_numpys_for_any_number_of_steps(num_steps: int) -> None:
    window = make_window(0, num_steps)
    median = window.summarize()[WINDOW_STATS.index("raw_norm/median")]
    np.testing.assert_allclose(median, np.median(window.norms[:, :, 0], axis=0), rtol=1e-6)


def test_the_median_of_huge_norms_does_not_overflow() -> None:
    window = make_window(0, 2)
    window.norms[:, :, 0] = 3e38
    median = window.summarize()[WINDOW_STATS.index("raw_norm/median")]
    np.testing.assert_allclose(median, 3e38, rtol=1e-6)


def test_one_non_finite_step_shows_in_every_summary_of_its_window() -> None:
    window = make_window(0)
    window.norms[2, 1, 0] = np.nan
    summary = dict(zip(WINDOW_STATS, window.summarize(), strict=True))
    for part in ("min", "median", "max"):
        assert np.isnan(summary[f"raw_norm/{part}"][1])
        assert np.isfinite(summary[f"raw_norm/{part}"][0])


def test_a_weight_of_zeros_has_no_ratio_unless_it_stays() -> None:
    window = make_window(0)
    window.norms[:, 0, 3] = 0
    window.norms[:, 1, 2:] = 0
    ratio = window.summarize()[WINDOW_STATS.index("update_ratio/max")]
    assert np.isnan(ratio[0])
    assert ratio[1] == 0


def test_a_window_without_full_steps_has_no_moments() -> None:
    window = make_window(0)
    window.moments[:] = np.nan
    summary = dict(zip(WINDOW_STATS, window.summarize(), strict=True))
    for name in MOMENTS:
        assert np.isnan(summary[name]).all()
    assert np.isfinite(summary["raw_norm/median"]).all()


def test_an_unknown_statistic_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    write_log(tmp_path)
    with pytest.raises(KeyError, match=r"no statistic 'norm'; there are raw_norm/min, "):
        GradientLog.read(tmp_path).stat("norm")


# ---- activations ----


def test_activations_are_summarized_over_the_steps_that_recorded_them(tmp_path: Path) -> None:
    windows = write_log(tmp_path)
    log = GradientLog.read(tmp_path)
    for index, window in enumerate(windows):
        for position, name in enumerate(ACTIVATIONS):
            values = window.activations[[0, 2], :, position].astype(np.float64)
            for part in ("min", "median", "max"):
                expected = getattr(np, part)(values, axis=0)
                found = log.activation(f"{name}/{part}")[index]
                np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_window_without_activations_is_nan_and_smaller(tmp_path: Path) -> None:
    writer = GradientLogWriter(tmp_path, HEADER)
    sizes = [0]
    for index in range(3):
        window = make_window(4 * index)
        if index == 1:
            window.activations[:] = np.nan
            window = replace(window, dead_fraction=None)
        writer.append(LogWindow.of(window))
        sizes.append((tmp_path / WINDOWS_FILE).stat().st_size)
    first, second, third = np.diff(sizes)
    assert first == third == second + 4 * len(WINDOW_ACTIVATIONS) * 2
    log = GradientLog.read(tmp_path)
    assert log.problem is None
    has_values = np.isfinite(log.activation_table).all(axis=(1, 2))
    np.testing.assert_array_equal(has_values, [True, False, True])
    assert np.isnan(log.activation("mean/median")[1]).all()


def test_a_layer_without_bounds_and_one_never_seen_are_nan_and_hide_no_other() -> None:
    window = make_window(0)
    saturated = ACTIVATIONS.index("saturated_fraction")
    window.activations[:, 0, saturated] = np.nan
    window.activations[:, 1] = np.nan
    table = window.summarize_activations()
    assert table is not None
    summary = dict(zip(WINDOW_ACTIVATIONS, table, strict=True))
    assert np.isfinite(summary["mean/median"][0]) and np.isnan(summary["mean/median"][1])
    assert np.isnan(summary["saturated_fraction/max"][0])


def test_an_unknown_statistic_of_activations_is_refused_with_the_known_ones(
    tmp_path: Path,
) -> None:
    write_log(tmp_path)
    with pytest.raises(KeyError, match=r"no statistic of activations 'std'; there are mean/min, "):
        GradientLog.read(tmp_path).activation("std")


# ---- other versions ----


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


def test_a_window_costs_bytes_by_steps_and_variables_and_not_by_parameters(
    tmp_path: Path,
) -> None:
    sizes = []
    for side in (2, 2000):
        directory = tmp_path / str(side)
        variables = tuple(VariableInfo(v.path, (side, side)) for v in VARIABLES)
        writer = GradientLogWriter(directory, replace(HEADER, variables=variables))
        writer.append(LogWindow.of(make_window(0)))
        sizes.append((directory / WINDOWS_FILE).stat().st_size)
    assert sizes[0] == sizes[1]
    values = len(WINDOW_STATS) * len(VARIABLES) + len(WINDOW_ACTIVATIONS) * len(HEADER.activations)
    assert sizes[0] <= 16 + 4 * STEP_DTYPE.itemsize + 4 * values


def test_reading_a_log_imports_no_tensorflow(tmp_path: Path) -> None:
    write_log(tmp_path)
    code = (
        "import sys; from trainer.gradient_log import GradientLog\n"
        f"assert len(GradientLog.read({str(tmp_path)!r}).steps) == 12\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- the health figure ----


def test_the_health_figure_is_the_first_kernel_over_the_last() -> None:
    norms = np.array([[[2.0, 9.0, 4.0], [4.0, 9.0, 8.0], [100.0, 9.0, 16.0]]])
    assert first_to_last_ratio(norms, np.array([0, 2])) == 4 / 8


def test_the_health_figure_survives_gradients_too_small_for_a_float32_quotient() -> None:
    norms = np.array([[1e-40, 1e-3]], np.float32)
    assert first_to_last_ratio(norms, np.array([0, 1])) == pytest.approx(1e-37, rel=1e-3)


@pytest.mark.parametrize(
    ("norms", "kernels"),
    [(np.zeros((0, 2)), [0, 1]), (np.ones((3, 2)), [1]), (np.zeros((3, 2)), [0, 1])],
    ids=["no steps", "one kernel", "zeros"],
)
def test_the_health_figure_is_nan_where_it_means_nothing(
    norms: np.ndarray, kernels: list[int]
) -> None:
    assert np.isnan(first_to_last_ratio(norms, np.array(kernels)))
