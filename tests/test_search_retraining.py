"""The best config is trained once more on all it may see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import run_trainer
from tiny_searches import write_search

from trainer.config import dump_config, load_config
from trainer.config.search_space import at_point
from trainer.run_dir import RunDir, read_json
from trainer.search.directory import SearchDir
from trainer.search.retraining import retrain_best


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SearchDir:
    folder = tmp_path_factory.mktemp("retrained") / "searches" / "tiny"
    folder.mkdir(parents=True)
    config = load_config(write_search(folder), ["fit.epochs=1"])
    directory = SearchDir(folder)
    directory.config.write_text(dump_config(config))
    directory.best.write_text(dump_config(at_point(config, {"model.block.kind": "plain"})))
    return directory


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
