"""How much each parameter matters to the score, and how sure that is.

A random forest learns the score's rank from the values. A parameter's importance is how much
worse the forest predicts trials that it has not seen when that parameter's values are shuffled
among them (permutation importance, Breiman 2001). All of it is done many times, each time with
trials drawn anew with replacement, the others being those not seen: how far the answers lie
apart is how far this search can tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.config.search_schema import SearchConfig
from trainer.errors import MissingDependencyError
from trainer.search.scales import places_of
from trainer.search.trials import TrialRecord

TRIALS_PER_PARAMETER = 3
_FEWEST_TRIALS = 8
_TREES = 16
_SHUFFLES = 4
_OUTER = (5, 95)
"""Percentiles of the draws between which the importance is said to lie."""


@dataclass(frozen=True)
class Importance:
    """What shuffling one parameter costs the forest.

    Attributes:
        key: The parameter.
        mean: Of all draws: half the rise of the squared error in units of the variance of the
            ranks. For a forest that predicts well it is the share of that variance in which
            the parameter has a part, alone or with others (the total effect of Sobol 2001);
            0 is nothing, and below 0 is chance.
        low: 5th percentile of the draws.
        high: 95th percentile of the draws.
    """

    key: str
    mean: float
    low: float
    high: float

    @property
    def is_told_from_chance(self) -> bool:
        """Whether nearly every draw finds that it matters."""
        return self.low > 0


@dataclass(frozen=True)
class Importances:
    """Of all parameters that were varied.

    Attributes:
        parameters: The most important first.
        explained: Share of the variance of the ranks that the forest predicts for trials that
            it has not seen; 0 or less: nothing.
        trials: How many there are of it.
    """

    parameters: Sequence[Importance]
    explained: float
    trials: int


class TooFewTrials(Exception):
    """Nothing can be told; the message says why."""


def importances(
    search: SearchConfig, trials: Sequence[TrialRecord], *, draws: int = 50
) -> Importances:
    """Return how much each parameter matters.

    Trials without an outcome do not count; a failed one counts with its worst score. A
    parameter that a trial does not have, because of its `when`, gets a value of another trial
    there, anew in each draw: so it cannot stand for its condition.

    Args:
        search: With the space.
        trials: Of that search.
        draws: How often trials are drawn anew, each for a 40th of a second or more.

    Raises:
        TooFewTrials: If there are too few, or nothing differs between them.
        MissingDependencyError: If scikit-learn is not there.
    """
    ended = [t for t in trials if t.outcome is not None]
    columns = _columns(search, ended)
    keys = [key for key in columns if key != _EPOCHS]
    needed = max(_FEWEST_TRIALS, TRIALS_PER_PARAMETER * len(keys))
    if not keys:
        raise TooFewTrials("no parameter has had two values yet")
    if len(ended) < needed:
        raise TooFewTrials(
            f"{len(keys)} parameters need at least {needed} ended trials to tell, "
            f"and there are {len(ended)}"
        )
    ranks = _ranks([t.outcome.score for t in ended if t.outcome])
    if ranks.min() == ranks.max():
        raise TooFewTrials("all trials have the same score")
    rises, explained = _draw_all(columns, ranks, draws)
    found = [
        Importance(key, float(column.mean()), *map(float, np.percentile(column, _OUTER)))
        for key, column in zip(columns, rises.T, strict=True)
        if key != _EPOCHS
    ]
    found.sort(key=lambda each: -each.mean)
    return Importances(found, explained, len(ended))


# Under hyperband trials have different budgets, which must explain what they explain.
_EPOCHS = "epochs"


def _columns(search: SearchConfig, trials: Sequence[TrialRecord]) -> dict[str, np.ndarray]:
    """Return positions of the parameters that differ, (trials,), float64; NaN where inactive."""
    columns: dict[str, np.ndarray] = {}
    for key, parameter in search.space.items():
        places = places_of(key, parameter, trials)
        columns[key] = np.array([np.nan if each is None else each for each in places])
    columns[_EPOCHS] = np.array([float(t.point.epochs) for t in trials])
    return {
        key: column
        for key, column in columns.items()
        if len(np.unique(column[~np.isnan(column)])) > 1
    }


def _ranks(scores: Sequence[float]) -> np.ndarray:
    """Return ranks from 0 to 1, the same for the same score: one huge loss must not be all."""
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle = last - (counts + 1) / 2
    return middle[inverse] / max(len(scores) - 1, 1) if len(values) > 1 else np.zeros(len(scores))


def _draw_all(
    columns: Mapping[str, np.ndarray], ranks: np.ndarray, draws: int
) -> tuple[np.ndarray, float]:
    """Return half the relative rise of the error, (draws, columns), and the share explained."""
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError as error:
        raise MissingDependencyError(
            f"the importance of parameters needs scikit-learn ({error}). "
            "Run: scripts/setup_env.sh search"
        ) from None
    rng = np.random.default_rng(0)
    count = len(ranks)
    rises, errors = [], []
    for draw in range(draws):
        values = np.stack([_filled(column, rng) for column in columns.values()], axis=1)
        seen = rng.integers(count, size=count)
        unseen = np.setdiff1d(np.arange(count), seen)
        if len(unseen) < 2 or len(np.unique(ranks[seen])) < 2:
            continue
        forest = RandomForestRegressor(_TREES, random_state=draw).fit(values[seen], ranks[seen])
        # Shuffled among all trials: those not seen are few.
        tables = [values[unseen]]
        for column in range(values.shape[1]):
            for _ in range(_SHUFFLES):
                shuffled = values[unseen].copy()
                shuffled[:, column] = rng.permutation(values[:, column])[: len(unseen)]
                tables.append(shuffled)
        predicted = forest.predict(np.concatenate(tables)).reshape(len(tables), len(unseen))
        before, *shuffled_errors = ((predicted - ranks[unseen]) ** 2).mean(axis=1)
        rises.append(np.reshape(shuffled_errors, (-1, _SHUFFLES)).mean(axis=1) - before)
        errors.append(before)
    variance = ranks.var()
    return np.array(rises) / (2 * variance), float(1 - np.mean(errors) / variance)


def _filled(column: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    is_missing = np.isnan(column)
    filled = column.copy()
    filled[is_missing] = rng.choice(column[~is_missing], size=is_missing.sum())
    return filled
