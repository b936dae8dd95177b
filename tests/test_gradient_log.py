"""A gradient log reads back as it was written, and is summed up rightly."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradient_logs import HEADER, VARIABLES, make_window, write_log

from trainer.gradient_log import (
    WINDOWS_FILE,
    GradientLog,
    GradientLogWriter,
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
)


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
