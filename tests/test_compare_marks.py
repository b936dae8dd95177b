"""A comparison marks a group of runs as better only where its seeds allow."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from compared_runs import (
    PLAIN,
    RESIDUAL,
    Make,
    compared,
    maker,
    results_of,
    seeds,
)

from trainer.compare.results import VALIDATION, Interval
from trainer.run_dir import RunDir


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


@pytest.mark.parametrize("count", range(2, 9))
def test_the_interval_is_that_of_students_t(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(count).normal(0.9, 0.02, count).tolist()

    interval = Interval.of(values)

    expected = stats.t.interval(
        0.95, count - 1, loc=np.mean(values), scale=stats.sem(values, ddof=1)
    )
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-4)


def test_better_is_marked_where_intervals_lie_apart(make: Make) -> None:
    runs = seeds(make, "plain", [0.5, 0.51, 0.52]) + seeds(make, "residual", [0.9, 0.91, 0.92])

    written, page = compared(*runs)

    decision = written.results.decisions["val_accuracy"]
    assert decision.better == 1
    assert written.as_json()["better"]["val_accuracy"] == "residual"
    assert "residual is better than plain with 51.00 ± 2.48 %: it gets 91.00 ± 2.48 %" in (
        written.verdict.replace("\u00a0", " ")
    )
    strong = [a for name, a in page.elements if name == "strong" and a.get("class") == "good"]
    assert len(strong) == 2  # validation and training accuracy
    assert "91.00 ± 2.48 %*" in written.as_text()


def test_nothing_is_marked_where_intervals_overlap(make: Make) -> None:
    runs = seeds(make, "plain", [0.5, 0.9]) + seeds(make, "residual", [0.6, 0.99])

    written, page = compared(*runs)

    assert written.results.decisions["val_accuracy"].better is None
    assert "which is within what seeds differ by" in written.verdict
    assert "strong" not in {name for name, _ in page.elements}


def test_one_seed_each_marks_nothing_and_says_so(make: Make) -> None:
    runs = seeds(make, "plain", [0.1]) + seeds(make, "residual", [0.99])

    written, page = compared(*runs)

    assert set(written.as_json()["better"].values()) == {None}
    assert "one seed cannot tell whether that is more than chance" in written.verdict
    assert "one seed each cannot tell a better config from a luckier seed" in page.words


def test_one_config_with_one_seed_is_enough_to_mark_nothing(make: Make) -> None:
    runs = seeds(make, "plain", [0.1, 0.1, 0.1]) + seeds(make, "residual", [0.99])

    decision = results_of(*runs).decisions["val_accuracy"]

    assert decision.better is None
    assert decision.reason == "one seed cannot tell (residual)"


def test_a_run_repeated_with_its_seed_is_one_seed(make: Make) -> None:
    runs = [
        make("a", PLAIN, "seed=1", val_accuracy=[0.1]),
        make("b", PLAIN, "seed=1", val_accuracy=[0.1]),
        make("c", RESIDUAL, "seed=1", val_accuracy=[0.9]),
        make("d", RESIDUAL, "seed=1", val_accuracy=[0.9]),
    ]

    decision = results_of(*runs).decisions["val_accuracy"]

    assert decision.better is None
    assert [interval and interval.num_seeds for interval in decision.intervals] == [1, 1]


def test_seeds_alone_are_summed_up(make: Make) -> None:
    written, page = compared(*seeds(make, "plain", [0.4, 0.5, 0.6]))

    mean, half = 50.0, 100 * 4.303 * statistics.stdev([0.4, 0.5, 0.6]) / math.sqrt(3)
    assert written.verdict.replace("\u00a0", " ").startswith(
        f"3 runs of one config (3 seeds) get {mean:.2f} ± {half:.2f} % of the validation images"
    )
    assert "differ in nothing but their seed and name" in page.words


def test_a_test_accuracy_that_all_have_comes_first(make: Make) -> None:
    runs = [make("a", PLAIN, test_accuracy=0.7), make("b", RESIDUAL, test_accuracy=0.8)]

    written, _ = compared(*runs)

    assert "residual gets 80.00\u00a0% of the test images right, plain 70.00" in written.verdict


def test_a_test_accuracy_that_one_lacks_does_not_decide(make: Make) -> None:
    written, page = compared(make("a", PLAIN, test_accuracy=0.7), make("b", RESIDUAL))

    assert "of the validation images right" in written.verdict
    assert "test accuracy" in written.as_json()["missing"]["residual"]
    assert "trainer evaluate" in page.words


def test_other_data_are_not_held_against_each_other(make: Make) -> None:
    of_shapes = [make(f"a{seed}", f"seed={seed}", val_accuracy=[0.2]) for seed in (0, 1)]
    of_noise = [
        make(f"b{seed}", f"seed={seed}", "data.train_size=100", val_accuracy=[0.9])
        for seed in (0, 1)
    ]

    written, _ = compared(*of_shapes, *of_noise)

    decision = written.results.decisions["val_accuracy"]
    assert decision.better is None
    assert decision.reason == "the data differ (data.train_size)"
    assert written.verdict.startswith("not to be held against each other")


def test_other_classes_are_not_held_against_each_other(make: Make) -> None:
    runs = [
        make(f"{name}{seed}", f"model.block.kind={kind}", f"seed={seed}", classes=classes)
        for name, kind, classes in (("a", "plain", "ab"), ("b", "residual", "cd"))
        for seed in (0, 1)
    ]

    assert results_of(*runs).why_incomparable(VALIDATION) == "the classes differ"


def test_speed_on_another_machine_is_not_marked(make: Make) -> None:
    slow = seeds(make, "plain", [0.1, 0.1], images_per_second=10.0)
    fast = seeds(make, "residual", [0.1, 0.1], images_per_second=1000.0)
    assert results_of(*slow, *fast).decisions["images_per_second"].better == 1

    for run in fast:
        (run / "environment.json").write_text(json.dumps({"cpu": "two", "cores": 2}))
    decision = results_of(*slow, *fast).decisions["images_per_second"]

    assert decision.better is None
    assert decision.reason == "the machines differ (cpu)"
    assert "cpu" in compared(*slow, *fast)[1].words


def test_a_run_that_did_not_end_counts_for_no_mean(make: Make) -> None:
    runs = seeds(make, "plain", [0.1, 0.1]) + seeds(make, "residual", [0.9, 0.9, 0.9])
    RunDir(runs[-1]).status.write_text('{"state": "running", "pid": 999999999}')

    written, page = compared(*runs)

    interval = written.results.decisions["val_accuracy"].intervals[1]
    assert interval is not None
    assert interval.num_seeds == 2
    assert "the end of the run" in written.as_json()["missing"]["residual, seed 2"]
    assert "killed" in page.words


def test_plain_against_residual_tells_its_story_in_a_sentence(make: Make) -> None:
    plain = make("a", PLAIN, val_accuracy=[0.1, 0.1], norms=[1e-6, 1e-3, 1.0])
    residual = make("b", RESIDUAL, val_accuracy=[0.1, 0.9], norms=[1.0, 1.0, 1.0])

    written, _ = compared(plain, residual)

    assert written.verdict.replace("\u00a0", " ") == (
        "residual gets 90.00 % of the validation images right, plain 10.00 %, and one seed "
        "cannot tell whether that is more than chance; in plain the first layer's gradient is "
        "1.2e-07 of the last one's (not in order: vanishing), in residual 0.12 (in order)."
    )
