"""The best config is trained once more on all it may see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import run_trainer
from tiny_searches import write_search

from trainer.config import dump_config, load_config
from trainer.config.search_space import at_point
from trainer.errors import SearchError
from trainer.run_dir import RunDir, read_json
from trainer.search.directory import SearchDir, begin
from trainer.search.retraining import retrain_best
from trainer.search.trials import Outcome, Point, folder_of, write_outcome, write_trial


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchDir:
    folder = tmp_path_factory.mktemp("retrained") / "searches" / "tiny"
    folder.mkdir(parents=True)
    config = load_config(write_search(folder), ["fit.epochs=1"])
    directory = SearchDir(folder)
    directory.config.write_text(dump_config(config))
    # Of an earlier start: since then there are trials, and a kill.
    directory.best.write_text(dump_config(at_point(config, {"model.block.kind": "residual"})))
    for number, kind in enumerate(("residual", "plain")):
        add(directory, number, kind)
    return directory


def add(directory: SearchDir, number: int, kind: str) -> None:
    point = Point({"model.block.kind": kind}, 1)
    path = folder_of(directory.path, number, point)
    write_trial(path, number, point, "0")
    write_outcome(path, Outcome("done", number / 2, "trained", "done", 1, "healthy", 1.0))


def test_it_trains_on_validation_images_too_and_asks_the_test_set(search: SearchDir) -> None:
    run, evaluation = retrain_best(search, ["fit.epochs=2"], ["trainer", "tune"])

    config = load_config(run.config)
    assert config.model.block.kind == "plain" and config.fit.epochs == 2
    assert read_json(run.data)["num_train"] == 200
    assert read_json(run.data)["num_validation"] == 0
    assert evaluation.num_images == 53


def test_it_trains_the_same_config_once(search: SearchDir) -> None:
    first, one = retrain_best(search, ["fit.epochs=1"], ["trainer", "tune"])
    again, other = retrain_best(search, ["fit.epochs=1"], ["trainer", "tune"])

    assert again == first and other == one


def test_the_command_line_retrains_and_evaluates(search: SearchDir) -> None:
    answer = run_trainer(
        "tune",
        search.path / "search.yaml",
        "--searches-dir",
        search.path.parent,
        "--retrain-best",
        "--set",
        "fit.epochs=1",
        "--json",
    )

    assert answer.returncode == 0, answer.stderr
    value = json.loads(answer.stdout)
    assert RunDir(Path(value["run"])).evaluation.is_file()
    assert 0 <= value["accuracy"] <= 1


def test_a_search_without_a_best_config_cannot_retrain_it(search: SearchDir) -> None:
    answer = run_trainer(
        "tune", search.path / "search.yaml", "--searches-dir", search.path, "--retrain-best"
    )

    assert answer.returncode == 2
    assert "trainer tune CONFIG" in answer.stderr


def test_a_search_without_a_score_cannot_either(tmp_path: Path) -> None:
    config = load_config(write_search(tmp_path))
    directory = begin(tmp_path / "search", config, resume=False, restart=False)

    with pytest.raises(SearchError, match="no trial has a score yet"):
        retrain_best(directory, [], ["trainer", "tune"])
