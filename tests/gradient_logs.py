"""Made-up gradient logs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.gradient_log import GradientLogWriter, LogHeader, VariableInfo
from trainer.log_frames import LogWindow
from trainer.recorded_steps import ACTIVATIONS, MOMENTS, NORMS, STEP_DTYPE, RecordedSteps

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
