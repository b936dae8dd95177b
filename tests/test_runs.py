"""`trainer runs` tells how every run stands, whatever has become of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import run_trainer, write_tiny_config

from trainer.config import dump_config, load_config
from trainer.errors import RunDirectoryError
from trainer.health_events import add_event
from trainer.run_dir import RunDir, write_history, write_json
from trainer.runs import find_runs, format_runs


def make_run(folder: Path, name: str, state: str | None, epochs: int) -> RunDir:
    run = RunDir.create(folder, name)
    run.config.write_text(dump_config(load_config(write_tiny_config(folder))))
    write_history(run.history, [{"epoch": e, "val_accuracy": 0.1 * e} for e in range(epochs)])
    if state is not None:
        run.write_status(state)  # type: ignore[arg-type]
    return run


def test_a_run_tells_its_state_its_epochs_and_its_accuracies(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "one", "done", 3)
    write_json(run.evaluation, {"accuracy": 0.25})
    write_json(run.diagnosis, {"verdict": "healthy", "findings": []})

    [found] = find_runs([tmp_path / "runs"])

    assert (found.state, found.epochs, found.epochs_asked) == ("done", 3, 3)
    assert (found.accuracy, found.test_accuracy, found.health) == (0.2, 0.25, "healthy")
    assert format_runs([found]).splitlines()[1].split()[:6] == (
        ["done", "3/3", "20.00", "%", "25.00", "%"]
    )


def test_a_run_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "dead", "running", 1)
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    status = json.loads(run.status.read_text())
    write_json(run.status, {**status, "pid": int(gone.stdout)})
    alive = make_run(tmp_path / "runs", "alive", "running", 1)
    assert json.loads(alive.status.read_text())["pid"] == os.getpid()

    # The number of a process that ended, which another has now.
    reused = make_run(tmp_path / "runs", "reused", "running", 1)
    write_json(reused.status, {**json.loads(reused.status.read_text()), "process": "boot:1"})

    states = {
        found.path.name.split("-")[0]: found.state for found in find_runs([tmp_path / "runs"])
    }

    expected = {"dead": "killed", "alive": "running", "reused": "killed"}
    assert states == expected


def test_an_error_that_was_recovered_from_is_no_longer_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "mended", "running", 1)
    add_event(run, 20, "found", rule="diverging", severity="error")
    assert find_runs([tmp_path / "runs"])[0].health == "diverging"
    add_event(run, 10, "recovered", reason="diverging", learning_rate_factor=0.3)
    assert find_runs([tmp_path / "runs"])[0].health is None


def test_a_damaged_run_is_listed_with_what_is_left_of_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "torn", "failed", 2)
    run.history.write_text("epoch,val_accuracy\n0,what\n")
    run.config.write_text("model: [")
    run.evaluation.write_text("{")

    [found] = find_runs([tmp_path / "runs"])

    assert (found.state, found.epochs, found.epochs_asked) == ("failed", 0, None)


def test_what_a_training_said_of_itself_counts_until_it_is_diagnosed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "sick", "running", 1)
    events = [
        {"step": 10, "event": "appeared", "rule": "exploding", "severity": "error"},
        {"step": 20, "event": "appeared", "rule": "vanishing", "severity": "error"},
        {"step": 30, "event": "gone", "rule": "exploding"},
    ]
    write_json(run.health, {"events": events})

    [found] = find_runs([tmp_path / "runs"])

    assert found.health == "vanishing"


def test_trials_of_a_search_are_runs_and_the_search_is_none(tmp_path: Path) -> None:
    search = tmp_path / "searches" / "mine"
    make_run(search / "trials", "0000", "done", 1)
    (search / "config.yaml").write_text("name: mine\n")

    found = find_runs([tmp_path / "searches"])

    assert [each.path.parent.name for each in found] == ["trials"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="must be a folder with run directories"):
        find_runs([tmp_path / "nowhere"])


def test_the_command_line_lists_runs_as_json(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "one", "done", 3)

    answer = run_trainer("runs", tmp_path / "runs", "--json")

    assert answer.returncode == 0, answer.stderr
    assert [run["state"] for run in json.loads(answer.stdout)["runs"]] == ["done"]


def test_an_accuracy_on_training_images_is_called_that(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "one", "done", 3)
    write_history(run.history, [{"epoch": 0, "accuracy": 0.5}])

    [found] = find_runs([tmp_path / "runs"])

    assert (found.accuracy, found.accuracy_of) == (0.5, "training")
    assert "50.00 % (training)" in format_runs([found])
