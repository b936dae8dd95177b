"""A trial that goes on with another begins with all of it, whatever stopped it midway."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_searches import load_search

from trainer.errors import RunDirectoryError
from trainer.fitting import Supervision
from trainer.run_dir import RunDir, write_history
from trainer.search import trial as trial_module
from trainer.search.directory import begin
from trainer.search.trial import TrialRequest, run_trial
from trainer.search.trials import Point, folder_of, read_trial, write_trial

VALUES = {"optimizer.learning_rate": 1e-2}
LEFT = ("checkpoints/step-00000009.npz", "gradients/steps.bin", "history.csv", "health.json")


class Died(BaseException):
    """Stands for a process that is gone: nothing catches it."""


@pytest.fixture
def request_of_child(tmp_path: Path) -> TrialRequest:
    """A trial of three epochs whose parent has trained one."""
    config = load_search(tmp_path, "algorithm: hyperband")
    search = begin(tmp_path / "search", config, resume=False, restart=False).path
    shorter = Point(VALUES, 1)
    parent = folder_of(search, 0, shorter)
    write_trial(parent, 0, shorter, "0")
    for name in LEFT:
        (parent / name).parent.mkdir(exist_ok=True)
        (parent / name).write_text(name)
    write_history(parent / "history.csv", [{"epoch": 0.0, "val_accuracy": 0.5}])
    return TrialRequest(search, 1, Point(VALUES, 3, 1))


def files_of(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in LEFT if (folder / name).exists()}


@pytest.mark.parametrize("copies", range(len(LEFT)))
def test_a_trial_killed_while_it_copies_begins_with_all_of_its_parent(
    copies: int, request_of_child: TrialRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []

    def train_under(supervision: Supervision, run: RunDir, *more: Any, **named: Any) -> None:
        seen.append(files_of(run.path))
        raise RunDirectoryError("it has seen enough")

    count, copy2 = 0, shutil.copy2

    def copy_or_die(source: Any, target: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count > copies:
            Path(target).write_text("to")
            raise Died
        return copy2(source, target, **more)

    monkeypatch.setattr(trial_module, "train_under", train_under)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", copy_or_die)
        # What `copytree` copies with unless told.
        patch.setattr(shutil.copytree, "__defaults__", (False, None, copy_or_die, False, False))
        with pytest.raises(Died):
            run_trial(request_of_child, ["trainer"])

    with pytest.raises(RunDirectoryError, match="seen enough"):
        run_trial(request_of_child, ["trainer"])

    [parent] = request_of_child.search.glob("trials/0000-*")
    assert seen == [files_of(parent)]
    assert len(seen[0]) == len(LEFT)


def test_a_disk_that_is_full_while_it_copies_is_no_fault_of_the_trial(
    request_of_child: TrialRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copytree(source: Any, target: Any, **more: Any) -> None:
        raise shutil.Error([(str(source), str(target), "[Errno 28] No space left on device")])

    monkeypatch.setattr(shutil, "copytree", copytree)

    with pytest.raises(RunDirectoryError, match="No space left on device"):
        run_trial(request_of_child, ["trainer"])

    trial = read_trial(request_of_child.path)
    assert trial is not None and trial.outcome is None and trial.attempts == 0
