"""A search with worker processes, from the command line, and what kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import environment, trainer_command
from tiny_searches import wait_for, write_search
from typer.testing import CliRunner

from trainer import cli
from trainer.config import load_config
from trainer.errors import SearchError
from trainer.run_dir import is_alive
from trainer.search.crew import Staff
from trainer.search.directory import locked
from trainer.search.results import Results
from trainer.search.searching import search
from trainer.search.trials import read_trial
from trainer.search.wire import Post

SPACE = "    optimizer.learning_rate: {choice: [3e-3, 1e-2]}\n"
OPTIONS = ("algorithm: grid", "prune: gradients")
EPOCHS = 8


@dataclass
class Story:
    """What happened to one search.

    Attributes:
        told: By the launcher, before it was killed.
        worker_seconds: From its death until each of its workers was gone.
        results: After `--resume`.
    """

    told: str
    worker_seconds: list[float]
    results: Results


def logs(path: Path) -> dict[str, str]:
    return {log.parent.name: log.read_text() for log in path.glob("trials/*/trial.log")}


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def seconds_until_gone(pids: list[int]) -> list[float]:
    began = time.monotonic()
    seconds = []
    for pid in pids:
        wait_for(lambda pid=pid: not is_alive(pid))
        seconds.append(time.monotonic() - began)
    return seconds


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Two workers, of which one is killed in its trial; later the launcher is killed too."""
    folder = tmp_path_factory.mktemp("story")
    config = write_search(folder, *OPTIONS, space=SPACE)
    path = folder / "searches" / "tiny"
    arguments = ("--workers", "2", "--searches-dir", path.parent, "--set", f"fit.epochs={EPOCHS}")
    command = trainer_command("tune", config, *arguments)
    with (
        open(folder / "told.txt", "w") as told,
        subprocess.Popen(command, stderr=told, env=environment()) as process,
    ):
        try:
            wait_for(lambda: list(path.glob("trials/*/checkpoints/step-*.npz")), seconds=120)
            running = read_trial(next(path.glob("trials/*/checkpoints")).parent)
            assert running is not None
            pids = children_of(process.pid)
            os.kill(pids[int(running.worker)], signal.SIGKILL)
            wait_for(lambda: "resumed from" in (running.path / "trial.log").read_text())
            workers = children_of(process.pid)
        finally:
            process.kill()
    seconds = seconds_until_gone(workers)
    results = search(
        load_config(config, [f"fit.epochs={EPOCHS}"]),
        path,
        resume=True,
        restart=False,
        command=["trainer", "tune"],
    )
    return Story((folder / "told.txt").read_text(), seconds, results)


def test_the_launcher_says_which_worker_died_and_that_its_trial_goes_on(story: Story) -> None:
    assert "has ended (SIGKILL); trial" in story.told
    assert "It is started again" in story.told


def test_workers_end_within_seconds_of_their_launcher(story: Story) -> None:
    assert len(story.worker_seconds) == 2
    assert max(story.worker_seconds) < 30


def test_every_trial_ends_once_and_trains_every_epoch_once(story: Story) -> None:
    trials = story.results.trials

    assert len(trials) == 2
    assert len({trial.point.key for trial in trials}) == 2
    for trial in trials:
        assert trial.outcome is not None and trial.outcome.state == "done"
        assert [row["epoch"] for row in trial.history] == list(range(EPOCHS))


def test_a_trial_of_a_dead_process_goes_on_from_its_checkpoint(story: Story) -> None:
    texts = logs(story.results.path)

    resumed = [line for text in texts.values() for line in text.splitlines() if "resumed" in line]
    # Once by another worker, and at least once after all were killed.
    assert len(resumed) >= 2
    assert "resumed from step 0" not in resumed


def test_each_worker_has_a_log(story: Story) -> None:
    names = {path.name for path in (story.results.path / "workers").iterdir()}

    assert names == {"0.log", "1.log"}


def test_what_the_data_lack_ends_a_search_of_workers_with_that_error(tmp_path: Path) -> None:
    path = write_search(tmp_path, *OPTIONS, space=SPACE)
    nowhere = f"{{source: directory, path: {tmp_path / 'nowhere'}, image_size: [8, 8]}}"
    text = path.read_text()
    path.write_text(text.replace("data: {source: shapes, ", f"data: {nowhere}  # "))
    config = load_config(path)
    staff = Staff(1, "127.0.0.1:0")

    with pytest.raises(SearchError, match="nowhere") as caught:
        search(
            config, tmp_path / "s", resume=False, restart=False, command=["trainer"], staff=staff
        )

    assert caught.value.exit_code == 2
    post = Post.read(tmp_path / "s")
    assert post is not None and not post.is_open
    with locked(tmp_path / "s"):
        pass


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--chief", "127.0.0.1:1", "--workers", "2"], "--chief joins a search"),
        (["--chief", "127.0.0.1:1", "--resume"], "--chief joins a search"),
        (["--workers", "0"], "--workers 0 needs --listen"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str], rule: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(cli.app, ["tune", str(write_search(tmp_path)), *options])

    assert result.exit_code == 2
    assert rule in " ".join(result.output.replace("│", " ").split())
