"""When a trial is not worth its remaining epochs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from trainer.config.search_schema import SearchConfig
from trainer.search.trials import TrialRecord

PAST_HELP = (
    "nonfinite",
    "vanishing",
    "exploding",
    "dead",
    "saturated",
    "initialization",
    "symmetry",
    "stuck",
    "diverging",
)
"""Rules whose findings of severity error end a trial with `prune: gradients`: those about the
gradients and the signal, which more epochs of the same do not mend. Faults of the data are
the same for every trial, and a flat loss or too large a step may pass with the schedule."""

BEYOND_ALL = 2.0**100
"""Larger than any loss or time. A power of two is the same number on the wire, which has single
precision."""

_FEWEST_TRIALS = 5
"""That have come as far; the median of fewer says little."""

_FIRST_SHARE = 0.5
"""Of its epochs that a trial may trail: normalization and warm-up take the first ones, and large
learning rates pay late. The best trial of `configs/tune_resnet.yaml` has the lowest accuracy
of all after one epoch of four."""


def trails_the_median(
    search: SearchConfig,
    history: Sequence[dict[str, float]],
    others: Sequence[TrialRecord],
    num_epochs: int,
) -> str | None:
    """Say in what a trial trails the others, or None.

    The median stopping rule (Golovin et al. 2017, Google Vizier): after an epoch, the best
    objective of this trial against the median, over the others that came as far, of the mean
    of theirs up to that epoch. A trial of which it was said once counts as others do.

    Args:
        search: Whose objective is compared.
        history: Rows of this trial.
        others: The trials of the search; those without an outcome do not count.
        num_epochs: That the trial would train.
    """
    epochs = len(history)
    if epochs < _FIRST_SHARE * num_epochs:
        return None
    own = [row[search.objective] for row in history if is_finite(row, search.objective)]
    if not own:
        return None
    means = []
    for record in others:
        values = [
            row[search.objective]
            for row in record.history[:epochs]
            if is_finite(row, search.objective)
        ]
        if record.outcome is not None and len(values) == epochs:
            means.append(statistics.fmean(values))
    if len(means) < _FEWEST_TRIALS:
        return None
    median = statistics.median(means)
    best = max(own) if search.is_maximized else min(own)
    if best >= median if search.is_maximized else best <= median:
        return None
    return (
        f"{search.objective} {best:.4g} at best after {epochs} epochs, "
        f"where the median of {len(means)} trials was {median:.4g}"
    )


def is_finite(row: dict[str, float], objective: str) -> bool:
    """Whether an epoch has a finite objective."""
    return math.isfinite(row.get(objective, math.nan))


def is_scored(search: SearchConfig, trial: TrialRecord) -> bool:
    """Whether a trial has a score of its own, and not one that the oracle alone may see.

    One that was stopped early has none if its last epoch had no finite objective, or if no
    epoch had ended yet.
    """
    if trial.outcome is None or trial.outcome.state == "failed":
        return False
    if trial.outcome.state == "done":
        return True
    return bool(trial.history) and is_finite(trial.history[-1], search.objective)


def worst_score(search: SearchConfig, trials: Sequence[TrialRecord]) -> float:
    """Return the finite score of a trial that has none of its own.

    Everything that is recorded is at least 0, which is the worst of what is maximized. Of
    what is minimized it is the largest value that any epoch of the search had: a larger
    one would flatten all differences for an oracle that models them. As long as there is
    none it is `BEYOND_ALL`, because any number that could be measured could be the best.
    """
    if search.is_maximized:
        return 0.0
    seen = [
        row[search.objective]
        for record in trials
        for row in record.history
        if is_finite(row, search.objective)
    ]
    return max(seen, default=BEYOND_ALL)
