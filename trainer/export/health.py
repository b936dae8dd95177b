"""What the gradient log says of the run that a model comes from, in a few figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.errors import RunDirectoryError
from trainer.gradient_log import GradientLog, first_to_last_ratio
from trainer.recorded_steps import is_shorter
from trainer.run_dir import RunDir


def gradient_health(run: RunDir) -> dict[str, Any] | None:
    """Return figures of a run's gradients, None if none were recorded.

    Returns:
        `recorded_steps`; `nonfinite_steps` and `skipped_steps` of these;
        `first_to_last_ratio` and `raw_norm_median` (of all variables as one vector, before
        clipping) of the last window; `clipped_fraction` of all steps, in which clipping
        made the whole gradient shorter.
    """
    try:
        log = GradientLog.read(run.gradients)
    except RunDirectoryError:
        return None
    if not len(log.steps):
        return None
    raw, clipped = log.steps["raw_norm"], log.steps["clipped_norm"]
    first, last = log.window_steps[-1]
    in_last = (log.steps["step"] >= first) & (log.steps["step"] <= last)
    with np.errstate(invalid="ignore"):
        return {
            "recorded_steps": len(log.steps),
            "nonfinite_steps": int(np.sum(~np.isfinite(raw))),
            "skipped_steps": int(np.sum(log.steps["skipped"])),
            "clipped_fraction": float(np.mean(is_shorter(clipped, raw))),
            "raw_norm_median": float(np.median(raw[in_last])),
            "first_to_last_ratio": first_to_last_ratio(
                log.stat("raw_norm/median")[-1], log.kernels
            ),
        }
