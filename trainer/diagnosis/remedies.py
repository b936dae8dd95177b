"""Remedies that several rules propose."""

from __future__ import annotations

import numpy as np

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import Remedy


def scaled_rate(evidence: Evidence, factor: float) -> Remedy:
    """Return the learning rate times `factor`, as the peak of the config's schedule.

    It is that of the last steps: what recoveries have left of the config's.
    """
    if evidence.config is None:
        peak = float(np.max(evidence.gradients.steps["learning_rate"]))
    else:
        left = evidence.recoveries[-1][1] if evidence.recoveries else 1.0
        peak = evidence.config.optimizer.learning_rate * left
    why = "takes smaller steps" if factor < 1 else "takes larger steps"
    return Remedy(why, {"optimizer.learning_rate": float(f"{peak * factor:.2g}")})
