"""When a trial is stopped early, and what a trial without a score is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_searches import load_search

from trainer.config import dump_config, load_config
from trainer.config.search_schema import SearchConfig
from trainer.run_dir import write_history
from trainer.search import trial as trial_module
from trainer.search.pruning import trails_the_median, worst_score
from trainer.search.trials import (
    Outcome,
    Point,
    TrialRecord,
    read_trials,
    write_outcome,
    write_trial,
)


def record(folder: Path, number: int, accuracies: list[float], ended: bool = True) -> TrialRecord:
    point = Point({"optimizer.learning_rate": number / 100 + 0.001}, 10)
    path = folder / "trials" / f"{number:04d}-{point.key}"
    path.mkdir(parents=True)
    write_trial(path, number, point, "0")
    rows = [
        {"epoch": float(e), "val_accuracy": a, "val_loss": 1 - a} for e, a in enumerate(accuracies)
    ]
    write_history(path / "history.csv", rows)
    if ended:
        write_outcome(path, Outcome("done", accuracies[-1], "", "done", 10, "healthy", 1.0))
    return read_trials(folder)[-1]


def searching(folder: Path, *options: str) -> SearchConfig:
    search = load_search(folder, *options).search
    assert search is not None
    return search


def history(accuracies: list[float]) -> list[dict[str, float]]:
    return [{"val_accuracy": a, "val_loss": 1 - a} for a in accuracies]


@pytest.mark.parametrize("objective", ["val_accuracy", "val_loss"])
def test_a_trial_that_trails_the_median_of_the_means_is_stopped(
    objective: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    curves = random.uniform(0.2, 0.8, size=(7, 10))
    others = [record(tmp_path, number, list(curve)) for number, curve in enumerate(curves)]
    search = searching(tmp_path, f"objective: {objective}")
    median = float(np.median(curves[:, :6].mean(axis=1)))

    below, above = [median - 0.01] * 6, [0.1] * 5 + [median + 0.01]

    said = trails_the_median(search, history(below), others, 10)
    assert said is not None and "7 trials" in said
    assert trails_the_median(search, history(above), others, 10) is None


def test_no_trial_is_stopped_in_its_first_half_or_for_too_few_others(tmp_path: Path) -> None:
    others = [record(tmp_path, number, [0.9] * 10) for number in range(6)]
    search = searching(tmp_path)

    assert trails_the_median(search, history([0.1] * 4), others, 10) is None
    assert trails_the_median(search, history([0.1] * 5), others, 10) is not None
    assert trails_the_median(search, history([0.1] * 5), others[:4], 10) is None


def test_trials_that_run_or_ended_earlier_do_not_count(tmp_path: Path) -> None:
    others = [record(tmp_path, number, [0.9] * 10) for number in range(4)]
    others += [record(tmp_path, 4, [0.9] * 10, ended=False), record(tmp_path, 5, [0.9] * 3)]

    assert trails_the_median(searching(tmp_path), history([0.1] * 8), others, 10) is None


def test_the_worst_score_is_finite_and_no_better_than_any_that_was_seen(tmp_path: Path) -> None:
    trials = [record(tmp_path, 0, [0.5, 0.9]), record(tmp_path, 1, [0.2, float("nan")])]

    assert worst_score(searching(tmp_path), trials) == 0.0
    assert worst_score(searching(tmp_path, "objective: val_loss"), trials) == pytest.approx(0.8)
    # Before anything was seen: a time or a loss can be of any size.
    for objective in ("val_loss", "seconds"):
        worst = worst_score(searching(tmp_path, f"objective: {objective}"), [])
        assert 1e12 < worst == np.float32(worst) < np.inf


@pytest.mark.slow
def test_a_trial_whose_gradients_are_past_help_is_stopped_within_its_epoch(
    tmp_path: Path,
) -> None:
    space = "    optimizer.learning_rate: {choice: [1e-3, 2e-3]}\n"
    path = tmp_path / "search"
    path.mkdir()
    sick = [
        "model.block={kind: plain, activation: sigmoid, normalization: none}",
        "model.stages=[{filters: 8, blocks: 12}]",
        "data.train_size=2000",
    ]
    load_search(tmp_path, space=space)
    config = load_config(tmp_path / "search.yaml", sick)
    (path / "config.yaml").write_text(dump_config(config))
    point = Point({"optimizer.learning_rate": 1e-3}, 3)

    outcome = trial_module.run_trial(trial_module.TrialRequest(path, 0, point), ["test"])

    assert (outcome.state, outcome.cause) == ("pruned", "vanishing")
    assert outcome.epochs == 0 and np.isfinite(outcome.score)
    assert "vanishing" in outcome.reason
