"""The oracles go on after anything, and never have a point trained twice."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_searches import GRID, SPACE, FakeTrials, Killed, load_search

from trainer.config import Config, load_config
from trainer.search.directory import SearchDir
from trainer.search.oracles import open_oracle
from trainer.search.pruning import worst_score
from trainer.search.results import write_results
from trainer.search.trial import TrialRequest
from trainer.search.trials import Outcome, read_trials
from trainer.search.worker import work

ALGORITHMS = ("random", "grid", "bayesian", "hyperband")


def search_of(folder: Path, algorithm: str, *options: str) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    space = GRID if algorithm == "grid" else SPACE
    limit = ("max_trials: 9",) if algorithm in ("random", "bayesian") else ()
    return load_search(folder, f"algorithm: {algorithm}", *limit, *options, space=space)


def go_on(config: Config, path: Path, trials: FakeTrials) -> None:
    """What a process that is started anew does."""
    work(open_oracle(config, SearchDir(path)), config, path, "0", trials)


def points(path: Path) -> list[dict[str, object]]:
    return [{**t.point.values, "epochs": t.point.epochs} for t in read_trials(path)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_that_is_killed_again_and_again_tries_what_an_undisturbed_one_tries(
    algorithm: str, tmp_path: Path
) -> None:
    config = search_of(tmp_path, algorithm)
    undisturbed, disturbed = FakeTrials(), FakeTrials()
    go_on(config, tmp_path / "undisturbed", undisturbed)

    while True:
        disturbed.kill_at = disturbed.calls + 2  # one trial, then dead in the next one
        try:
            go_on(config, tmp_path / "disturbed", disturbed)
            break
        except Killed:
            continue

    assert len(undisturbed.trained) >= 6
    if algorithm == "bayesian":  # its random restarts are no part of keras-tuner's state
        assert len(disturbed.trained) == len(undisturbed.trained)
    else:
        assert points(tmp_path / "disturbed") == points(tmp_path / "undisturbed")
    assert len(set(disturbed.trained)) == len(disturbed.trained)


def test_a_search_that_is_killed_in_its_first_trial_begins_with_the_same_point(
    tmp_path: Path,
) -> None:
    config = search_of(tmp_path, "random")
    with pytest.raises(Killed):
        go_on(config, tmp_path / "killed", FakeTrials(kill_at=1))
    state = json.loads((tmp_path / "killed/oracle/oracle.json").read_text())
    first = next(iter((tmp_path / "killed/oracle").glob("trial_*/trial.json")))
    values = json.loads(first.read_text())["hyperparameters"]["values"]

    go_on(config, tmp_path / "killed", FakeTrials())

    assert list(state["ongoing_trials"]) == ["0"]
    [trial, *_] = read_trials(tmp_path / "killed")
    assert dict(trial.point.values) == values


@pytest.mark.parametrize("algorithm", ("random", "grid", "hyperband"))
@pytest.mark.parametrize("name", ("oracle.json", "trial_*/trial.json"))
def test_a_torn_state_file_is_named_and_nothing_is_trained_twice(
    algorithm: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = search_of(tmp_path, algorithm)
    path = tmp_path / "torn"
    trials = FakeTrials(kill_at=5)
    with pytest.raises(Killed):
        go_on(config, path, trials)
    file = sorted((path / "oracle").glob(name))[0]
    file.write_bytes(file.read_bytes()[:-40])

    go_on(config, path, trials)

    assert str(file) in capsys.readouterr().err
    assert len(list(path.glob("oracle.damaged-*"))) == 1
    assert len(set(trials.trained)) == len(trials.trained)
    whole = FakeTrials()
    go_on(config, tmp_path / "whole", whole)
    assert sorted(trials.trained) == sorted(whole.trained)


def test_a_grid_is_the_whole_product_and_leaves_out_what_does_not_apply(tmp_path: Path) -> None:
    config = search_of(tmp_path, "grid")

    go_on(config, tmp_path / "grid", FakeTrials())

    rates = (1e-3, 1e-2, 1e-1)
    expected = [(rate, "adam", None) for rate in rates]
    expected += [(r, "sgd", n) for r, n in itertools.product(rates, (False, True))]
    found = [
        (
            round(float(str(p["optimizer.learning_rate"])), 9),
            p["optimizer.kind"],
            p.get("optimizer.nesterov"),
        )
        for p in points(tmp_path / "grid")
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_bayesian_search_proposes_no_point_twice_in_a_space_that_it_can_exhaust(
    tmp_path: Path,
) -> None:
    space = "    optimizer.learning_rate: {choice: [1e-3, 1e-2, 3e-2, 1e-1]}\n"
    config = load_search(tmp_path, "algorithm: bayesian", "max_trials: 20", space=space)
    trials = FakeTrials()

    go_on(config, tmp_path / "small", trials)

    assert trials.calls == 4


def test_hyperband_goes_on_with_a_point_in_place_of_beginning_it_anew(tmp_path: Path) -> None:
    config = search_of(tmp_path, "hyperband")
    trials = FakeTrials()

    go_on(config, tmp_path / "bands", trials)

    longest = [t for t in read_trials(tmp_path / "bands") if t.point.parent_epochs]
    assert longest and all(t.point.epochs == 3 and t.point.parent_epochs == 1 for t in longest)
    shorter = {t.point.key for t in read_trials(tmp_path / "bands") if t.point.epochs == 1}
    assert {t.point.parent.key for t in longest if t.point.parent} <= shorter


def test_no_trial_begins_once_the_epochs_of_the_search_are_used_up(tmp_path: Path) -> None:
    config = search_of(tmp_path, "random", "max_epochs: 7")
    from trainer.search.conducting import limit

    oracle = open_oracle(config, SearchDir(tmp_path / "limited"))
    oracle.is_over = limit(config, tmp_path / "limited", None)
    work(oracle, config, tmp_path / "limited", "0", FakeTrials())

    assert len(read_trials(tmp_path / "limited")) == 3  # of three epochs each


def test_keras_tuner_does_not_need_tensorboard_here(tmp_path: Path) -> None:
    # Its own tuners import it, and every trial fails where it is not installed.
    program = """if True:
        import sys
        sys.modules["tensorboard"] = None
        from pathlib import Path
        from tiny_searches import FakeTrials
        from test_search_oracles import go_on, search_of
        folder, trials = Path(sys.argv[1]), FakeTrials()
        go_on(search_of(folder, "random"), folder / "plain", trials)
    """

    subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )

    assert len(read_trials(tmp_path / "plain")) == 9


def test_a_grid_has_a_point_for_every_worker_at_once(tmp_path: Path) -> None:
    config = search_of(tmp_path, "grid")
    oracle = open_oracle(config, SearchDir(tmp_path / "search"))

    first = [oracle.create_trial(worker) for worker in "abcd"]

    assert [trial.status for trial in first] == ["RUNNING"] * 4
    points = [tuple(sorted(trial.hyperparameters.values.items())) for trial in first]
    assert len(set(points)) == 4


def test_the_best_of_hyperband_is_the_best_of_those_that_trained_longest(tmp_path: Path) -> None:
    config = search_of(tmp_path, "hyperband")
    directory = SearchDir(tmp_path / "bands")
    go_on(config, directory.path, FakeTrials(fall=0.1))

    best = write_results(directory, config).best

    trials = read_trials(directory.path)
    longest = [t.outcome.score for t in trials if t.outcome and t.point.epochs == 3]
    assert best is not None and best.outcome is not None
    assert best.point.epochs == 3
    assert best.outcome.score == max(longest)
    rate = load_config(directory.best).optimizer.learning_rate
    assert rate == best.point.values["optimizer.learning_rate"]


@pytest.mark.parametrize(
    "epochs",
    [
        "    fit.epochs: {choice: [1, 2]}\n",
        "    model.stages[0].blocks: {int: [1, 2], also: [fit.epochs]}\n",
    ],
)
def test_a_trial_trains_for_the_epochs_of_its_point(epochs: str, tmp_path: Path) -> None:
    space = f"    optimizer.learning_rate: {{choice: [3e-3, 1e-2]}}\n{epochs}"
    config = load_search(tmp_path, "algorithm: grid", space=space)

    go_on(config, tmp_path / "search", FakeTrials(fall=-0.001))

    trials = read_trials(tmp_path / "search")
    assert sorted(t.point.epochs for t in trials) == [1, 1, 2, 2]
    assert all(t.point.epochs in t.point.values.values() for t in trials)


def test_hyperband_stops_at_max_trials(tmp_path: Path) -> None:
    config = search_of(tmp_path, "hyperband", "max_trials: 4")

    go_on(config, tmp_path / "bands", FakeTrials())

    assert len(read_trials(tmp_path / "bands")) == 4


@pytest.mark.parametrize("algorithm", ("random", "bayesian", "hyperband"))
def test_a_trial_that_was_written_before_a_kill_and_is_in_no_queue_does_not_count(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = search_of(tmp_path, algorithm)
    whole, trials = FakeTrials(), FakeTrials()
    go_on(config, tmp_path / "whole", whole)
    oracle = open_oracle(config, SearchDir(tmp_path / "killed"))
    save = oracle.save

    def save_or_die() -> None:
        if len(oracle.start_order) == 3:
            raise Killed
        save()

    monkeypatch.setattr(oracle, "save", save_or_die)
    with pytest.raises(Killed):
        work(oracle, config, tmp_path / "killed", "0", trials)
    assert len(list((tmp_path / "killed/oracle").glob("trial_*/trial.json"))) == 3
    go_on(config, tmp_path / "killed", trials)

    assert len(trials.trained) == len(whole.trained)
    if algorithm != "bayesian":
        assert points(tmp_path / "killed") == points(tmp_path / "whole")


def test_a_first_trial_that_fails_is_the_worst_and_does_not_blind_bayesian_search(
    tmp_path: Path,
) -> None:
    space = "    optimizer.learning_rate: {log_uniform: [1e-4, 1e-1]}\n"
    config = load_search(
        tmp_path, "algorithm: bayesian", "objective: seconds", "max_trials: 6", space=space
    )
    assert config.search is not None
    search = config.search
    trials = FakeTrials()

    def run(request: TrialRequest) -> Outcome:
        outcome = trials(request)
        if request.number == 0:
            return replace(outcome, state="failed", score=worst_score(search, []))
        return replace(outcome, score=100 * outcome.score)

    oracle = open_oracle(config, SearchDir(tmp_path / "seconds"))
    work(oracle, config, tmp_path / "seconds", "0", run)

    seen = [trial.score for trial in oracle.trials.values()]
    assert len(seen) == 6
    assert seen[0] == max(seen)
    _, modelled = oracle._vectorize_trials()  # type: ignore[attr-defined]
    assert modelled[0] == max(seen[1:])
    assert list(modelled[1:]) == seen[1:]
