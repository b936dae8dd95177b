"""Run directories made by the writers that a training uses, in no time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import dump_config, load_config
from trainer.gradient_log import GradientLogWriter, LogHeader, VariableInfo
from trainer.log_frames import LogWindow
from trainer.recorded_steps import MOMENTS, NORMS, STEP_DTYPE, RecordedSteps
from trainer.run_dir import RunDir, write_history, write_json, write_text

STEPS_OF_AN_EPOCH = 8
UPDATE_RATIO = 1e-3


def make_run(
    folder: Path,
    *overrides: str,
    val_accuracy: Sequence[float] = (0.3, 0.4),
    norms: Sequence[float] | None = (1.0, 1.0, 1.0),
    paths: Sequence[str] | None = None,
    test_accuracy: float | None = None,
    state: Any = "done",
    cpu: str = "one",
    classes: Sequence[str] = ("a", "b"),
    images_per_second: float = 100.0,
) -> Path:
    """Write a run.

    Args:
        folder: To be made, with the tiny config beside it.
        *overrides: Of the config.
        val_accuracy: By epoch.
        norms: Raw norm of each kernel, first layer first; None records nothing.
        paths: Of the kernels.
        test_accuracy: Of an evaluation, None without one.
        state: Of the run.
        cpu: Of the machine.
        classes: Names.
        images_per_second: In every epoch.
    """
    run = RunDir(folder)
    folder.mkdir(parents=True)
    epochs = f"fit.epochs={max(len(val_accuracy), 1)}"
    write_text(
        run.config, dump_config(load_config(folder.parent / "tiny.yaml", [epochs, *overrides]))
    )
    run.write_status(state)
    write_json(run.environment, {"command": ["trainer"], "cpu": cpu, "cores": 2})
    write_json(run.data, {"class_names": list(classes), "num_train": 160})
    rows: list[dict[str, float]] = [
        {
            "epoch": index,
            "step": STEPS_OF_AN_EPOCH * (index + 1),
            "loss": 2.0 - value,
            "accuracy": value + 0.05,
            "val_loss": 2.1 - value,
            "val_accuracy": value,
            "learning_rate": 0.1,
            "seconds": 10.0,
            "images_per_second": images_per_second,
        }
        for index, value in enumerate(val_accuracy)
    ]
    if rows:
        write_history(run.history, rows)
    if test_accuracy is not None:
        write_json(run.evaluation, {"accuracy": test_accuracy, "loss": 1.0})
    if norms is not None:
        _write_log(run.gradients, norms, paths, max(len(val_accuracy), 1))
    return folder


def _write_log(
    folder: Path, norms: Sequence[float], paths: Sequence[str] | None, num_epochs: int
) -> None:
    """Write windows of four steps, in which the norm of the first kernel halves each time."""
    names = paths or [f"layer{index}" for index in range(len(norms))]
    header = LogHeader(tuple(VariableInfo(f"{name}/kernel", (2, 2)) for name in names))
    writer = GradientLogWriter(folder, header)
    for window in range(num_epochs * STEPS_OF_AN_EPOCH // 4):
        steps = np.zeros(4, STEP_DTYPE)
        steps["step"] = 4 * window + np.arange(4)
        steps["loss"], steps["raw_norm"], steps["learning_rate"] = 1.5, 1.0, 0.1
        table = np.ones((4, len(names), len(NORMS)), np.float32)
        table[:, :, :2] = np.array(norms)[:, None]
        table[:, 0, :2] *= 0.5**window
        table[:, :, 2] = UPDATE_RATIO
        moments = np.zeros((4, len(names), len(MOMENTS)), np.float32)
        writer.append(LogWindow.of(RecordedSteps(steps, table, moments)))
