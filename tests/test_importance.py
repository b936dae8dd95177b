"""The importance of parameters, where the truth is known."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.config.search_schema import SearchConfig
from trainer.errors import MissingDependencyError
from trainer.search import importance
from trainer.search.importance import Importances, TooFewTrials
from trainer.search.trials import Outcome, Point, State, TrialRecord

SEARCH = SearchConfig.model_validate(
    {
        "space": {
            "rate": {"log_uniform": (1e-4, 1.0)},
            "kind": {"choice": ("adam", "sgd")},
            "momentum": {"float": (0.0, 0.9), "when": {"kind": "sgd"}},
            "depth": {"int": (1, 5)},
            "flag": {"boolean": True},
        }
    }
)
# Fewer draws than a page has: their percentiles are coarser.
importances = partial(importance.importances, draws=20)
Score = Callable[[Mapping[str, Any], np.random.Generator], float]


def trials(count: int, score: Score, seed: int = 0) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        values: dict[str, Any] = {
            "rate": float(10 ** rng.uniform(-4, 0)),
            "kind": str(rng.choice(["adam", "sgd"])),
            "depth": int(rng.integers(1, 6)),
            "flag": bool(rng.integers(2)),
        }
        if values["kind"] == "sgd":
            values["momentum"] = float(rng.uniform(0, 0.9))
        made.append(trial(number, values, score(values, rng)))
    return made


def trial(
    number: int, values: Mapping[str, Any], score: float, state: State = "done", epochs: int = 3
) -> TrialRecord:
    outcome = Outcome(state, score, "", state, epochs, "healthy", 1.0)
    return TrialRecord(Path(str(number)), number, Point(values, epochs), outcome, "0", 0)


def by_key(found: Importances) -> dict[str, float]:
    return {each.key: each.mean for each in found.parameters}


def told(found: Importances) -> set[str]:
    return {each.key for each in found.parameters if each.is_told_from_chance}


def test_the_shares_are_those_of_the_objective() -> None:
    # Two independent, additive parts with variances of 3 and 1, in ranks nearly the same.
    def score(values: Mapping[str, Any], rng: np.random.Generator) -> float:
        rate = math.log10(values["rate"]) / 4 + 0.5  # uniform over 1: variance 1/12
        return math.sqrt(36) * rate + 2 * (values["kind"] == "sgd")

    found = importances(SEARCH, trials(300, score))

    shares = by_key(found)
    assert shares["rate"] == pytest.approx(0.75, abs=0.08)
    assert shares["kind"] == pytest.approx(0.25, abs=0.08)
    assert abs(shares["depth"]) + abs(shares["flag"]) + abs(shares["momentum"]) < 0.02
    assert [each.key for each in found.parameters[:2]] == ["rate", "kind"]
    assert found.explained > 0.9


def test_of_pure_noise_nothing_is_told_from_chance() -> None:
    seeds = range(4)
    found = [importances(SEARCH, trials(25, lambda v, rng: rng.normal(), s)) for s in seeds]

    assert sum(len(told(each)) for each in found) <= 1  # of 20
    assert all(each.explained < 0.2 for each in found)


def test_an_interval_shrinks_with_the_trials() -> None:
    def score(values: Mapping[str, Any], rng: np.random.Generator) -> float:
        return -abs(math.log10(values["rate"]) + 2) + rng.normal() * 0.1

    few, many = (importances(SEARCH, trials(count, score)) for count in (20, 120))

    widths = [found.parameters[0].high - found.parameters[0].low for found in (few, many)]
    assert few.parameters[0].key == many.parameters[0].key == "rate"
    assert widths[1] < widths[0] / 2


def test_a_conditional_parameter_does_not_stand_for_its_condition() -> None:
    def score(values: Mapping[str, Any], rng: np.random.Generator) -> float:
        return float(values["kind"] == "sgd") + rng.normal() * 0.01

    found = importances(SEARCH, trials(60, score))

    assert told(found) == {"kind"}


def test_a_conditional_parameter_counts_where_it_is_active() -> None:
    def score(values: Mapping[str, Any], rng: np.random.Generator) -> float:
        return float(values.get("momentum", 0.45))

    assert "momentum" in told(importances(SEARCH, trials(60, score)))


def test_one_huge_loss_hides_nothing() -> None:
    def score(values: Mapping[str, Any], rng: np.random.Generator) -> float:
        return abs(math.log10(values["rate"]) + 2)

    records = trials(60, score)
    records[7] = trial(7, records[7].point.values, 1e30, state="failed")

    assert told(importances(SEARCH, records)) == {"rate"}


def test_what_more_epochs_bring_is_no_parameters_merit() -> None:
    records = [
        trial(t.number, t.point.values, float(t.number % 3), epochs=1 + t.number % 3)
        for t in trials(60, lambda v, rng: 0.0)
    ]

    assert told(importances(SEARCH, records)) == set()


def test_the_same_trials_give_the_same_answer() -> None:
    records = trials(20, lambda v, rng: v["rate"])

    assert importances(SEARCH, records) == importances(SEARCH, records)


def test_too_few_trials_are_said_to_be_too_few() -> None:
    records = trials(14, lambda v, rng: v["rate"])

    with pytest.raises(TooFewTrials, match=r"5 parameters need at least 15 .* there are 14"):
        importances(SEARCH, records)


def test_trials_that_have_not_ended_do_not_count() -> None:
    records = trials(15, lambda v, rng: v["rate"])
    going = TrialRecord(Path("x"), 15, records[0].point, None, "0", 0)
    importances(SEARCH, [*records, going])

    with pytest.raises(TooFewTrials):
        importances(SEARCH, [*records[1:], going])


def test_equal_scores_tell_nothing() -> None:
    with pytest.raises(TooFewTrials, match="same score"):
        importances(SEARCH, trials(20, lambda v, rng: 0.1))


def test_a_parameter_with_one_value_alone_is_left_out() -> None:
    records = [
        trial(t.number, {**t.point.values, "depth": 3}, t.point.values["rate"])
        for t in trials(20, lambda v, rng: 0.0)
    ]

    assert "depth" not in by_key(importances(SEARCH, records))


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)

    with pytest.raises(MissingDependencyError, match=r"needs scikit-learn .*setup_env.sh search"):
        importances(SEARCH, trials(20, lambda v, rng: v["rate"]))
