"""A whole search: its trials are runs, and none of them can take the others with it."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import environment, run_trainer, trainer_command
from tiny_searches import wait_for, write_search

from trainer.config import load_config
from trainer.diagnosis import Finding
from trainer.diagnosis.evidence import Evidence
from trainer.errors import (
    DataError,
    FruitlessSearchError,
    RunDirectoryError,
    SearchError,
)
from trainer.fitting import Supervision
from trainer.run_dir import RunDir, read_history, write_history
from trainer.search import trial as trial_module
from trainer.search.directory import locked
from trainer.search.results import Results
from trainer.search.searching import search
from trainer.search.trials import read_trials
from trainer.train import train

RATES = "    optimizer.learning_rate: {choice: [3e-3, 1e-2, 1e+30]}\n"
TWO = "    optimizer.learning_rate: {choice: [3e-3, 1e-2]}\n"
ONE_EPOCH = "fit.epochs=1"


def run_search(folder: Path, *options: str, space: str = RATES, **more: Any) -> Results:
    path = write_search(folder, "algorithm: grid", *options, space=space)
    config = load_config(path, [ONE_EPOCH, "optimizer.clipnorm=null", "optimizer.kind=sgd"])
    arguments = {"resume": False, "restart": False, **more}
    return search(config, folder / "search", command=["trainer", "tune"], **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_search(tmp_path_factory.mktemp("finished"))


def test_a_trial_is_a_run_with_its_history_its_log_and_its_diagnosis(finished: Results) -> None:
    trial = finished.trials[0]

    assert Evidence.at(trial.path).log is not None
    assert load_config(trial.run.config).optimizer.learning_rate == 3e-3
    assert len(read_history(trial.run.history)) == 1
    # Its nine steps are too few to call it healthy.
    assert json.loads(trial.run.diagnosis.read_text())["verdict"] == "could not judge"
    assert trial.outcome is not None and trial.outcome.health == "unknown"


def test_a_score_is_the_objective_of_the_last_epoch(finished: Results) -> None:
    for trial in finished.scored:
        assert trial.outcome is not None
        assert trial.outcome.score == read_history(trial.run.history)[-1]["val_accuracy"]


def test_a_trial_that_is_not_finite_has_the_worst_score_and_says_why(finished: Results) -> None:
    outcome = finished.trials[2].outcome

    assert outcome is not None
    assert (outcome.state, outcome.cause, outcome.score) == ("failed", "nonfinite", 0.0)
    assert "not finite" in outcome.reason or "nonfinite" in outcome.reason
    assert finished.trials[2] not in finished.scored


def test_the_best_config_trains_to_the_score_of_its_trial(finished: Results) -> None:
    best = finished.best
    assert best is not None and best.outcome is not None

    config = load_config(finished.path / "best.yaml")
    run = train(config, runs_dir=finished.path.parent / "again", command=["trainer", "train"])

    assert config.search is None
    assert read_history(run.history)[-1]["val_accuracy"] == best.outcome.score


def test_the_table_has_a_row_for_each_trial(finished: Results) -> None:
    with open(finished.path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    assert [row["optimizer.learning_rate"] for row in rows] == ["0.003", "0.01", "1e+30"]
    assert [row["cause"] for row in rows] == ["done", "done", "nonfinite"]


def test_a_search_that_is_there_is_not_touched_unless_it_is_said_how(finished: Results) -> None:
    folder = finished.path.parent

    with pytest.raises(SearchError, match=r"--resume(.|\n)*--restart"):
        run_search(folder)


def test_a_search_that_is_done_has_nothing_left_to_resume(
    finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "train_under", None)  # any training would fail

    again = run_search(finished.path.parent, resume=True)

    assert again.trials == finished.trials


@pytest.mark.parametrize(
    ("options", "space", "named"),
    [
        ((), TWO, "search.space.optimizer.learning_rate"),
        (("objective: val_loss",), RATES, "search.objective was 'val_accuracy' and is 'val_loss'"),
    ],
)
def test_a_search_that_is_changed_is_refused_and_named(
    options: tuple[str, ...], space: str, named: str, finished: Results
) -> None:
    with pytest.raises(SearchError) as caught:
        run_search(finished.path.parent, *options, space=space, resume=True)

    assert named in str(caught.value)


def test_how_far_a_search_goes_may_change(finished: Results) -> None:
    again = run_search(finished.path.parent, "max_epochs: 100", resume=True)

    assert len(again.trials) == 3


def failing(error: Exception) -> Callable[..., None]:
    def train_under(*arguments: Any, **more: Any) -> None:
        raise error

    return train_under


def test_a_search_whose_every_trial_fails_says_so_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "train_under", failing(ValueError("a bug\nat length")))

    with pytest.raises(FruitlessSearchError, match="every trial failed: ValueError: a bug") as e:
        run_search(tmp_path)

    assert e.value.exit_code == 1
    trials = read_trials(tmp_path / "search")
    assert len(trials) == 3
    for trial in trials:
        assert trial.outcome is not None and math.isfinite(trial.outcome.score)
        assert "at length" in (trial.path / "traceback.txt").read_text()


def test_a_trial_that_runs_out_of_memory_does_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "train_under", failing(MemoryError("no more")))

    with pytest.raises(FruitlessSearchError):
        run_search(tmp_path)

    causes = {t.outcome.cause for t in read_trials(tmp_path / "search") if t.outcome}
    assert causes == {"memory"}


@pytest.mark.parametrize(
    "error",
    [
        DataError("no images"),
        RunDirectoryError("x: cannot be written (No space left on device)"),
        OSError(28, "No space left on device"),
    ],
)
def test_what_every_trial_would_meet_ends_the_search_and_counts_for_no_trial(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "train_under", failing(error))

    with pytest.raises((DataError, RunDirectoryError)) as caught:
        run_search(tmp_path)

    assert caught.value.exit_code == 2
    trials = read_trials(tmp_path / "search")
    assert [trial.outcome for trial in trials] == [None]


@pytest.mark.parametrize("error", [DataError("no images"), OSError(28, "No space left")])
def test_a_trial_is_not_given_up_for_what_every_trial_would_meet(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "train_under", failing(error))

    for _ in range(trial_module.MOST_ATTEMPTS + 2):
        with pytest.raises((DataError, RunDirectoryError)):
            run_search(tmp_path, resume=(tmp_path / "search").exists())

    trials = read_trials(tmp_path / "search")
    assert [(trial.outcome, trial.attempts) for trial in trials] == [(None, 0)]


def test_what_has_ended_before_such_an_error_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_one(supervision: Supervision, run: RunDir, *arguments: Any, **more: Any) -> None:
        if read_trials(tmp_path / "search")[1:]:
            raise DataError("no images")
        write_history(run.history, [{"epoch": 0.0, "val_accuracy": 0.5}])

    monkeypatch.setattr(trial_module, "train_under", train_one)

    with pytest.raises(DataError, match="no images"):
        run_search(tmp_path)

    assert load_config(tmp_path / "search" / "best.yaml").optimizer.learning_rate == 3e-3
    assert "0.003" in (tmp_path / "search" / "trials.csv").read_text()


def test_a_search_whose_trials_all_stop_before_an_epoch_has_no_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(supervision: Supervision, *arguments: Any, **more: Any) -> None:
        supervision.on_finding(Finding("vanishing", "error", "the gradients vanish"))

    monkeypatch.setattr(trial_module, "train_under", stop)

    with pytest.raises(FruitlessSearchError, match="no trial has a score of its own: vanishing"):
        run_search(tmp_path)

    causes = {t.outcome.cause for t in read_trials(tmp_path / "search") if t.outcome}
    assert causes == {"vanishing"}
    assert not (tmp_path / "search" / "best.yaml").exists()


def test_an_objective_that_no_trial_has_ends_the_search_after_one(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"test_accuracy is no column(.|\n)*val_accuracy") as e:
        run_search(tmp_path, "objective: test_accuracy", space=TWO)

    assert e.value.exit_code == 2
    trials = read_trials(tmp_path / "search")
    assert [(trial.outcome, trial.attempts) for trial in trials] == [(None, 0)]


def test_a_trial_whose_process_always_dies_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(BaseException):
        pass

    def die(*arguments: Any, **more: Any) -> None:
        raise Dead

    monkeypatch.setattr(trial_module, "train_under", die)
    for _ in range(3):
        with pytest.raises(Dead):
            run_search(tmp_path, space=TWO, resume=(tmp_path / "search").exists())

    with pytest.raises(Dead):  # of the second trial
        run_search(tmp_path, space=TWO, resume=True)

    first, second = read_trials(tmp_path / "search")
    assert first.outcome is not None and first.outcome.cause == "killed"
    assert second.outcome is None


def test_a_search_out_of_time_stops_its_trial_at_an_epoch_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_search(tmp_path, "algorithm: grid", "max_hours: 1e-9", space=TWO)
    config = load_config(path, ["fit.epochs=2", "fit.checkpoint_every_epochs=2"])
    common = {"restart": False, "command": ["trainer", "tune"]}
    # The first trial has begun when the time is up.
    monkeypatch.setattr("trainer.search.conducting.limit", lambda *_: lambda: False)
    search(config, tmp_path / "search", resume=False, **common)
    [trial] = read_trials(tmp_path / "search")
    assert trial.outcome is None and len(trial.history) == 1

    config = load_config(
        path, ["fit.epochs=2", "fit.checkpoint_every_epochs=2", "search.max_hours=null"]
    )
    results = search(config, tmp_path / "search", resume=True, **common)

    assert [len(t.history) for t in results.trials] == [2, 2]
    log = (results.trials[0].path / "trial.log").read_text()
    assert "resumed from step 9" in log


def test_a_search_that_runs_cannot_be_started_a_second_time(tmp_path: Path) -> None:
    with locked(tmp_path / "search"), pytest.raises(SearchError, match=rf"pid {os.getpid()}\b"):
        run_search(tmp_path)


def test_restart_puts_the_old_search_aside_whole(tmp_path: Path) -> None:
    old = tmp_path / "search"
    old.mkdir()
    (old / "config.yaml").write_text("model: {}\n")
    (old / "trials").mkdir()
    (old / "trials" / "kept").write_text("it")

    run_search(tmp_path, "max_trials: 1", restart=True)

    [aside] = tmp_path.glob("search.until-*")
    assert (aside / "trials" / "kept").read_text() == "it"
    assert len(read_trials(old)) == 1


def test_a_search_that_is_interrupted_and_killed_goes_on_from_its_checkpoints(
    tmp_path: Path,
) -> None:
    config = write_search(tmp_path, "algorithm: grid", "prune: gradients", space=TWO)
    # So many that a trial has not ended before its first checkpoint is seen, on a busy machine too.
    arguments = ("tune", config, "--searches-dir", tmp_path / "s", "--set", "fit.epochs=30")
    trials = tmp_path / "s" / "tiny" / "trials"

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            trainer_command(*arguments, *more),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    process = start()
    wait_for(lambda: list(trials.glob("0000-*/checkpoints/step-*.npz")))
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in told

    process = start("--resume")
    wait_for(lambda: list(trials.glob("0001-*/checkpoints/step-*.npz")))
    process.kill()
    process.communicate(timeout=60)

    answer = run_trainer(*arguments, "--resume", "--json")
    assert answer.returncode == 0, answer.stderr
    value = json.loads(answer.stdout)
    assert [t["outcome"]["state"] for t in value["trials"]] == ["done", "done"]
    assert all("resumed from step" in log.read_text() for log in trials.glob("*/trial.log"))


def test_a_config_without_a_search_is_sent_to_one_that_has(tmp_path: Path) -> None:
    from tiny import write_tiny_config

    answer = run_trainer("tune", write_tiny_config(tmp_path))

    assert answer.returncode == 2
    assert "has no `search` section" in answer.stderr
