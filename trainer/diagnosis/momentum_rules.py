"""What momentum makes of the gradients: steps that are mostly of old ones."""

from __future__ import annotations

import numpy as np

from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import CannotJudge, Finding, Remedy
from trainer.diagnosis.registry import rule
from trainer.diagnosis.remedies import scaled_rate
from trainer.diagnosis.signal_rules import PERSISTENT

# A momentum of 0.9 never adds up to more: 1 / (1 - 0.9).
_MOST_STEPS = 10.0
_HARDLY_FALLEN = 0.95


@rule("momentum", rank=4)
def momentum(evidence: Evidence) -> list[Finding]:
    """Steps that go on in the direction of gradients which have long changed.

    Formula: norm of the update over learning rate times norm of the clipped gradient, of all
    variables together; median over a window. It is how many of its own gradients long a step
    of SGD is: 1 without momentum, 1 / sqrt(1 - m^2) for gradients that are noise, which is 2.3
    at m = 0.9, and 1 / (1 - m) at most where they do not change. Once a gradient was large,
    momentum near 1 carries it on for 1 / (1 - m) steps.
    Threshold: above 10 in 60 % of the windows, the most that 0.9 can make of a gradient that
    does not change. An error if also the smallest median loss of a window is above 0.95 of the
    first one.
    Source: Polyak 1964; the bounds are those of the geometric series.
    Wrong when: momentum near 1 is wanted, and gradients hardly change from step to step.
    """
    if evidence.config is None:
        raise CannotJudge("the optimizer is not known without a config")
    if evidence.config.optimizer.kind != "sgd":
        return []
    windows = evidence.windows
    own = evidence.of_windows("clipped_norm", windows)
    rate = evidence.of_windows("learning_rate", windows)
    with np.errstate(divide="ignore", invalid="ignore"):
        length = evidence.of_windows("update_norm", windows) / (rate * own)
    known = np.isfinite(length)
    fired = known & (length > _MOST_STEPS)
    if not known.any() or fired.sum() < PERSISTENT * known.sum():
        return []
    value = float(np.median(length[fired]))
    return [
        Finding(
            "momentum",
            "error" if _has_hardly_fallen(evidence) else "warning",
            f"steps are made of old gradients: each is {value:.3g} times as long as the learning "
            "rate makes of its own",
            (),
            evidence.steps_of(windows[fired]),
            {"update_over_gradient": value},
            {"update_over_gradient": _MOST_STEPS},
            int(fired.sum()),
            int(known.sum()),
            (
                Remedy("forgets old gradients sooner", {"optimizer.momentum": 0.9}),
                scaled_rate(evidence, 0.1),
            ),
        )
    ]


def _has_hardly_fallen(evidence: Evidence) -> bool:
    losses = evidence.of_windows("loss", np.arange(len(evidence.gradients.window_steps)))
    losses = losses[np.isfinite(losses)]
    return bool(losses.size and losses.min() > _HARDLY_FALLEN * losses[0])
