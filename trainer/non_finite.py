"""Where a loss or a gradient is first not finite, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.gradient_log import LogHeader
from trainer.recorded_steps import ACTIVATIONS, RecordedSteps


def describe_non_finite(window: RecordedSteps, header: LogHeader) -> str | None:
    """Say where a window's first loss or gradient is not finite, or None.

    Steps that loss scaling skipped are in order: that is how it finds its scale.
    """
    steps = window.steps
    is_bad_loss = ~np.isfinite(steps["loss"]) & header.has_loss
    is_bad = is_bad_loss | (~np.isfinite(steps["raw_norm"]) & (steps["skipped"] != 1))
    if not is_bad.any():
        return None
    index = int(np.argmax(is_bad))
    row = steps[index]
    bad_gradients = ~np.isfinite(window.norms[index, :, 0])
    what = []
    if is_bad_loss[index]:
        what.append(f"the loss is {row['loss']}")
    if bad_gradients.any():
        what.append(f"the gradient of {_first_of(header.paths, bad_gradients)} is not finite")
    return (
        f"step {row['step']}: {' and '.join(what)}{_forward_pass(window, index, header)} "
        f"(learning rate {row['learning_rate']:.3g}). "
        "Try a lower learning rate, a warm-up, or clipping (optimizer.global_clipnorm: 1.0)"
    )


def _forward_pass(window: RecordedSteps, index: int, header: LogHeader) -> str:
    """Whether the outputs of layers were finite at a step; nothing if that is not known."""
    if not window.has_activations[index]:
        return ""
    counts = window.activations[index, :, ACTIVATIONS.index("nonfinite_count")]
    if not (counts > 0).any():
        return "; the recorded layers' outputs are all finite"
    return f"; already the output of {_first_of(header.activations, counts > 0)} is not"


def _first_of(names: Sequence[str], is_bad: np.ndarray) -> str:
    more = f" and {is_bad.sum() - 1} more" if is_bad.sum() > 1 else ""
    return f"{names[int(np.argmax(is_bad))]}{more}"
