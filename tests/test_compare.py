"""A comparison says what differs between runs, in groups of those that differ in the seed alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from compared_runs import (
    PLAIN,
    RESIDUAL,
    Make,
    compared,
    figure_with,
    maker,
    results_of,
    traces_of,
)
from tiny import run_trainer, write_tiny_config

from trainer.compare import write_comparison
from trainer.compare.groups import ABSENT, config_values
from trainer.config import load_config
from trainer.errors import RunDirectoryError


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def test_runs_that_differ_only_in_seed_and_name_are_one_group(make: Make) -> None:
    runs = [
        make("a", PLAIN, "seed=1", "name=x"),
        make("b", RESIDUAL, "seed=1"),
        make("c", PLAIN, "seed=2", "name=y"),
    ]

    groups = results_of(*runs).groups

    assert [[run.path.name for run in group.runs] for group in groups] == [["a", "c"], ["b"]]
    assert [group.label for group in groups] == ["plain", "residual"]
    assert groups[0].labels == ("plain, seed 1", "plain, seed 2")


def test_names_that_tell_groups_apart_are_their_labels(make: Make) -> None:
    runs = [make("a", PLAIN, "name=plain20"), make("b", RESIDUAL, "name=resnet20")]

    assert [group.label for group in results_of(*runs).groups] == ["plain20", "resnet20"]


def test_labels_are_made_of_the_fewest_keys_that_tell_groups_apart(make: Make) -> None:
    rate = "optimizer.learning_rate={}"
    runs = [
        make("a", PLAIN, rate.format(0.1), "optimizer.clipnorm=1"),
        make("b", RESIDUAL, rate.format(0.2), "optimizer.clipnorm=2"),
        make("c", RESIDUAL, rate.format(0.3), "optimizer.clipnorm=3"),
    ]

    assert [group.label for group in results_of(*runs).groups] == [
        "plain (learning rate 0.1)",
        "residual (learning rate 0.2)",
        "residual (learning rate 0.3)",
    ]


def test_labels_are_unique_whatever_runs_are_called(make: Make) -> None:
    runs = []
    for name in "abc":
        run = make(name, norms=None)
        (run / "config.yaml").write_text("no_such_section: 1\n")
        (run.parent / f"in_{name}").mkdir()
        runs.append(run.rename(run.parent / f"in_{name}" / "run"))

    labels = [label for group in results_of(*runs).groups for label in group.labels]
    assert labels == ["run (1)", "run (2)", "run (3)"]


def test_the_diff_has_the_keys_that_differ_and_no_other(make: Make) -> None:
    runs = [
        make("a", "model.stages=[{filters: 4, blocks: 1}]", "data.augment=[]"),
        make("b", "model.stages=[{filters: 4, blocks: 2}, {filters: 8, blocks: 1}]"),
    ]

    differing = results_of(*runs).differences

    assert differing["model.stages.0.blocks"] == [1, 2]
    assert differing["model.stages.1.filters"] == [ABSENT, 8]
    assert differing["data.augment.0.kind"] == [ABSENT, "horizontal_flip"]
    assert not any(key.startswith(("optimizer", "seed", "name")) for key in differing)


def test_the_page_and_the_json_show_the_diff(make: Make) -> None:
    written, page = compared(make("a", PLAIN), make("b", RESIDUAL))

    assert written.as_json()["differences"] == {
        "model.block.kind": {"plain": "plain", "residual": "residual"}
    }
    assert "model.block.kind" in page.words
    assert "fit.batch_size" not in page.words


def test_where_cifar10_lies_makes_no_difference(tmp_path: Path) -> None:
    path = write_tiny_config(tmp_path)
    drop = ["data.augment=[]"]
    values = [
        config_values(load_config(path, ["data.source=cifar10", f"data.path={place}", *drop]))
        for place in ("here", "there")
    ]

    assert values[0] == values[1]


def test_a_run_without_log_is_compared_by_what_it_has(make: Make) -> None:
    written, page = compared(make("a", PLAIN, norms=None), make("b", RESIDUAL))

    assert "of plain no gradients are known" in written.verdict
    assert "log" in written.as_json()["missing"]["plain"]
    assert len(traces_of(figure_with(page, "validation accuracy"), "validation accuracy")) == 2
    losses = traces_of(figure_with(page, "training loss"), "training loss")
    assert [trace["x"] for trace in losses] == [[1, 2], [1, 2]]  # by epoch, both of them


def test_runs_that_ended_before_their_first_epoch_open(make: Make) -> None:
    runs = [make(kind, f"model.block.kind={kind}", val_accuracy=[], norms=None)
            for kind in ("plain", "residual")]  # fmt: skip

    written, page = compared(*runs)

    assert written.verdict.startswith("plain and residual have no accuracy in common")
    assert page.figures == []


def test_a_bare_log_and_a_config_of_another_version_can_be_compared(make: Make) -> None:
    bare = make("a") / "gradients"
    strange = make("b")
    (strange / "config.yaml").write_text("no_such_section: 1\n")

    written, page = compared(bare, strange)

    assert "is not known" in page.words
    assert figure_with(page, "update ratio")
    assert written.as_json()["differences"] == {}


def test_a_damaged_history_is_named_and_the_rest_stands(make: Make) -> None:
    damaged = make("a", PLAIN)
    (damaged / "history.csv").write_text("epoch,loss\n1,x\n")

    written, page = compared(damaged, make("b", RESIDUAL))

    assert "history.csv" in written.as_json()["missing"]["plain"]["history"]
    assert figure_with(page, "update ratio")


def test_findings_are_set_side_by_side(make: Make) -> None:
    _, page = compared(
        make("a", PLAIN, norms=[1e-6, 1e-3, 1.0]), make("b", RESIDUAL, norms=[1.0, 1.0, 1.0])
    )

    _, _, table = page.words.partition("what it says of the first that has it")
    assert table.strip().startswith("vanishingerror\u2013gradients vanish")


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_and_too_many_runs_are_refused(make: Make, count: int) -> None:
    runs = [make(f"run{index}", norms=None) for index in range(count)]

    with pytest.raises(RunDirectoryError, match=f"2 to 8 runs. Received: {count}"):
        write_comparison(runs)


def test_a_run_that_is_there_twice_is_refused(make: Make) -> None:
    run = make("a")

    with pytest.raises(RunDirectoryError, match="there twice"):
        write_comparison([run, run.parent / "." / "a"])


def test_a_folder_that_is_no_run_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="does not exist"):
        write_comparison([make("a"), tmp_path / "nowhere"])


def test_the_command_line_writes_the_page_into_the_working_directory(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a", PLAIN)
    make("b", RESIDUAL)
    monkeypatch.chdir(tmp_path)
    root = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", root)

    for_people = run_trainer("compare", "a", "b")
    for_programs = run_trainer("compare", "a", "b", "--output", "other.html", "--json")

    assert for_people.returncode == 0, for_people.stderr
    lines = for_people.stdout.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "epochs"]
    assert lines[1].split()[:3] == ["plain", "done", "2/2"]
    assert lines[-1] == "comparison.html"
    assert (tmp_path / "comparison.html").is_file()
    value = json.loads(for_programs.stdout)
    assert value["bytes"] == (tmp_path / "other.html").stat().st_size < 5e6
    assert [group["label"] for group in value["groups"]] == ["plain", "residual"]
    assert value["groups"][0]["runs"][0]["val_accuracy"] == 0.4


def test_comparing_imports_no_tensorflow(make: Make, tmp_path: Path) -> None:
    script = (
        "import sys; from trainer.compare import write_comparison; from pathlib import Path; "
        "write_comparison(sys.argv[1:3], Path(sys.argv[3])); "
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    arguments = [make("a"), make("b", RESIDUAL), tmp_path / "page.html"]
    answer = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"


def test_a_narrow_terminal_gets_the_table_turned(make: Make) -> None:
    runs = [make(f"run-with-a-long-name-{index}", f"seed={index}") for index in range(5)]
    written, _ = compared(*runs)

    wide, narrow = written.as_text(), written.as_text(80)

    assert max(map(len, wide.splitlines())) > 80
    assert max(map(len, narrow.splitlines())) <= 80
    for word in (line.split("  ")[0] for line in wide.splitlines()[1:6]):
        assert word in narrow
    assert {line.split()[0] for line in narrow.splitlines() if line} >= {"run", "state", "findings"}
