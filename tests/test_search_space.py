"""A space is checked before the first trial, at its own lines, and points become configs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_searches import load_search, write_search

from trainer.config import dump_config, load_config
from trainer.config.schema import Adam, Sgd
from trainer.config.search_space import at_point
from trainer.errors import ConfigError
from trainer.search.space import hyperparameters, labels_of, values_of


def problem_of(folder: Path, space: str, *options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_search(folder, *options, space=space)
    return str(caught.value).replace(f"{folder}/", "")


def line_of(folder: Path, text: str) -> int:
    lines = (folder / "search.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            "    optimizer.learning_rat: {float: [0, 1]}\n",
            "unknown key. Did you mean 'learning_rate'?",
        ),
        ("    optimizer.learning_rate: {float: [0, 1]}\n", "0.0 does not fit"),
        ("    model.block.kind: {choice: [plain, resnet]}\n", "'resnet' does not fit"),
        ("    optimizer.momentum: {float: [0, 0.9]}\n", "vary it there: `when:"),
        ("    model.stages[5].blocks: {int: [1, 2]}\n", "is a list of 2"),
        ("    fit.batch_size: {choice: [20, 2000]}\n", "2000 does not fit"),
        ("    optimizer.learning_rate: {float: [0.1, 0.01]}\n", "the first must be the smaller"),
        ("    optimizer.learning_rate: {}\n", "exactly one of choice, int, float"),
        ("    optimizer.learning_rate: {int: [1, 2], float: [1, 2]}\n", "exactly one of"),
        ("    fit.epochs: {int: [1, 3], points: 2}\n", "points belongs to float"),
        (
            "    optimizer.learning_rate: {float: [0.1, 1], when: {optimizer.kind: sgd}}\n",
            "optimizer.kind is no parameter of this search",
        ),
    ],
)
def test_a_wrong_parameter_is_one_message_at_its_line(
    space: str, message: str, tmp_path: Path
) -> None:
    text = problem_of(tmp_path, space)

    assert message in text
    line = line_of(tmp_path, space.strip().split(":")[0])
    assert text.startswith(f"search.yaml:{line}: search.space.")
    assert len(text.splitlines()) == 1


def test_a_condition_must_name_a_value_that_the_other_parameter_can_have(tmp_path: Path) -> None:
    space = (
        "    optimizer.kind: {choice: [adam, sgd]}\n"
        "    optimizer.momentum: {float: [0, 0.9], when: {optimizer.kind: rmsprop}}\n"
    )

    assert "optimizer.kind is never 'rmsprop'" in problem_of(tmp_path, space)


def test_parameters_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    space = (
        "    model.block.kind: {choice: [plain, residual], when: {optimizer.kind: sgd}}\n"
        "    optimizer.kind: {choice: [adam, sgd], when: {model.block.kind: plain}}\n"
    )

    assert "depends on itself" in problem_of(tmp_path, space)


def test_grid_search_asks_how_many_values_of_a_range_to_try(tmp_path: Path) -> None:
    space = "    optimizer.learning_rate: {float: [0.1, 1]}\n"

    assert "grid needs points" in problem_of(tmp_path, space, "algorithm: grid")


def test_an_objective_of_validation_needs_validation_images(tmp_path: Path) -> None:
    path = write_search(tmp_path)

    with pytest.raises(ConfigError, match=r"search.objective: val_accuracy needs validation"):
        load_config(path, ["data.validation_split=0"])


def test_the_direction_of_an_unknown_objective_has_to_be_said(tmp_path: Path) -> None:
    space = "    optimizer.learning_rate: {float: [0.1, 1]}\n"

    text = problem_of(tmp_path, space, "objective: first_to_last_grad")
    assert "direction must be max or min" in text
    found = load_search(
        tmp_path, "objective: first_to_last_grad", "direction: max", space=space
    ).search
    assert found is not None and found.is_maximized


def test_pruning_by_gradients_needs_a_recorder(tmp_path: Path) -> None:
    path = write_search(tmp_path)

    with pytest.raises(ConfigError, match=r"search.prune: gradients needs gradients.record"):
        load_config(path, ["gradients.record=false"])


def test_a_point_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    config = load_search(tmp_path)

    changed = at_point(
        config, {"optimizer.kind": "sgd", "optimizer.momentum": 0.5, "model.block.kind": "plain"}
    )

    # Another kind starts afresh, as it does with --set: clipnorm was Adam's.
    assert changed.optimizer == Sgd(momentum=0.5)
    assert changed.model.block.kind == "plain"
    assert changed.search is None
    unchanged = config.model_copy(update={"search": None, "optimizer": changed.optimizer})
    block = config.model.block.model_copy(update={"kind": "plain"})
    model = config.model.model_copy(update={"block": block})
    assert changed == unchanged.model_copy(update={"model": model})


def test_a_point_of_the_same_kind_keeps_what_the_file_says_beside_it(tmp_path: Path) -> None:
    changed = at_point(load_search(tmp_path), {"optimizer.kind": "adam"})

    assert changed.optimizer == Adam(learning_rate=3e-3, clipnorm=0.1)


def test_keys_that_follow_another_get_its_value(tmp_path: Path) -> None:
    space = '    model.stages[0].blocks: {int: [1, 4], also: ["model.stages[1].blocks"]}\n'

    changed = at_point(load_search(tmp_path, space=space), {"model.stages[0].blocks": 3})

    assert [stage.blocks for stage in changed.model.stages] == [3, 3]


def test_a_point_whose_values_do_not_fit_together_is_a_config_error(tmp_path: Path) -> None:
    space = "    fit.batch_size: {choice: [20, 180]}\n    data.train_size: {choice: [200, 100]}\n"
    config = load_search(tmp_path, space=space)

    with pytest.raises(ConfigError, match=r"fit.batch_size: must not be more than"):
        at_point(config, {"fit.batch_size": 180, "data.train_size": 100})


def test_values_of_any_kind_survive_keras_tuner(tmp_path: Path) -> None:
    space = (
        "    optimizer.clipnorm: {choice: [null, 1.0, 5]}\n"
        "    model.stages: {choice: [[{filters: 4, blocks: 1}], [{filters: 8, blocks: 2}]]}\n"
        "    fit.batch_size: {choice: [20, 30]}\n"
        "    optimizer.learning_rate: {choice: [1, 0.5]}\n"
    )
    search = load_search(tmp_path, space=space).search
    assert search is not None
    for key, parameter in search.space.items():
        labels = labels_of(parameter)
        assert len({type(label) for label in labels}) == 1
        for label, value in zip(labels, parameter.choice or (), strict=True):
            assert values_of(search, {key: label}) == {key: value}


def test_a_condition_holds_in_keras_tuner_too(tmp_path: Path) -> None:
    search = load_search(tmp_path).search
    assert search is not None
    hps = hyperparameters(search)

    momentum = next(each for each in hps.space if each.name == "optimizer.momentum")
    hps.values["optimizer.kind"] = "adam"
    assert not hps.is_active(momentum)
    hps.values["optimizer.kind"] = "sgd"
    assert hps.is_active(momentum)


def test_a_config_with_a_search_can_be_written_and_read_again(tmp_path: Path) -> None:
    config = load_search(tmp_path, "algorithm: hyperband", "prune: median", "max_hours: 1.5")
    path = tmp_path / "written.yaml"

    path.write_text(dump_config(config))

    assert load_config(path) == config


def test_a_config_without_a_search_does_not_speak_of_one(tmp_path: Path) -> None:
    config = at_point(load_search(tmp_path), {})

    assert "search" not in dump_config(config)


@pytest.mark.parametrize(
    "space",
    [
        "    fit.epochs: {choice: [1, 3]}\n",
        "    fit: {choice: [{epochs: 2}, {batch_size: 10}]}\n",
        "    model.stages[0].blocks: {int: [1, 2], also: [fit.epochs]}\n",
    ],
)
def test_hyperband_alone_says_how_long_a_trial_trains(space: str, tmp_path: Path) -> None:
    text = problem_of(tmp_path, space, "algorithm: hyperband")

    key = space.strip().split(":")[0]
    line = line_of(tmp_path, space.strip())
    assert text.startswith(f"search.yaml:{line}: search.space.{key}: hyperband")
    assert len(text.splitlines()) == 1
    assert load_search(tmp_path, "algorithm: random", space=space).search is not None
