"""Runs and searches have one process at a time, and their locks tell everyone whether they do."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny import train_tiny
from tiny_searches import write_search

from trainer import run_dir
from trainer.config import load_config
from trainer.errors import RunDirectoryError, SearchError
from trainer.fitting import Fitting
from trainer.locks import is_locked, locked
from trainer.run_dir import RunDir, write_json
from trainer.search import directory
from trainer.train import resume

HOST = re.escape(socket.gethostname())
HOLD = """
import sys
from pathlib import Path
from trainer.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


FORK = """
import os, sys
from pathlib import Path
from trainer.locks import locked
with locked(Path(sys.argv[1])):
    if os.fork():
        sys.stdin.read()
    else:
        print("held", flush=True)
        sys.stdin.read()
        os._exit(0)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_tiny(tmp_path_factory.mktemp("run"), "fit.epochs=1")


@pytest.fixture
def stopped(trained: RunDir, tmp_path: Path) -> RunDir:
    """As a killed run is: it says that it is running, and its process is gone."""
    run = RunDir(Path(shutil.copytree(trained.path, tmp_path / "run")))
    run.model.unlink()
    run.write_status("running")
    return run


@contextmanager
def held_elsewhere(path: Path, script: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the folder; yields that one."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_a_run_is_running_while_its_lock_is_held_and_killed_after(stopped: RunDir) -> None:
    # Of this very process, which lives: the number of one on another machine may.
    assert json.loads(stopped.status.read_text())["pid"] == os.getpid()
    assert stopped.read_status()["state"] == "killed"

    # And none of this machine has this one.
    status = json.loads(stopped.status.read_text())
    write_json(stopped.status, {**status, "pid": 999_999_999, "process": "elsewhere:1"})
    with held_elsewhere(stopped.path):
        assert stopped.read_status()["state"] == "running"
    assert stopped.read_status()["state"] == "killed"


def test_a_run_that_another_process_takes_up_is_not_resumed(stopped: RunDir) -> None:
    with held_elsewhere(stopped.path) as other:
        # As long as the other one loads its data, the status is the old one.
        stopped.write_status("interrupted")
        before = stopped.status.read_bytes()
        with pytest.raises(RunDirectoryError, match=rf"pid {other.pid} on {HOST}\)"):
            resume(stopped, command=["trainer"])
        assert stopped.status.read_bytes() == before


def test_a_run_that_ends_while_it_is_looked_at_is_not_called_killed(
    stopped: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(_path: Path) -> bool:
        stopped.write_status("done")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(run_dir, "is_locked", ends)
        assert stopped.read_status()["state"] == "done"
        # Nor is it resumed by one who saw it killed before it had the lock.
        patch.setattr(RunDir, "read_status", lambda _run: {"state": "killed"})
        with pytest.raises(RunDirectoryError, match="this one is done"):
            resume(stopped, command=["trainer"])


def test_a_lock_ends_with_its_process_and_not_with_what_that_has_forked(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path, FORK) as process:
        assert is_locked(tmp_path)
        process.kill()
        process.wait()
        # Its child lives until nobody can write to it any more.
        assert is_locked(tmp_path) is False


def test_without_locks_a_run_of_another_machine_is_what_it_says(
    stopped: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_dir, "is_locked", lambda _path: None)
    status = {**json.loads(stopped.status.read_text()), "pid": 999_999_999}
    write_json(stopped.status, status)
    assert stopped.read_status()["state"] == "killed"
    write_json(stopped.status, {**status, "host": "elsewhere"})
    assert stopped.read_status()["state"] == "running"
    with pytest.raises(RunDirectoryError, match=r"still runs \(pid 999999999 on elsewhere\)"):
        resume(stopped, command=["trainer"])


def test_a_training_holds_its_run(
    stopped: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool | None, str]] = []

    def look(fitting: Fitting, _step: int) -> None:
        run = fitting.run
        seen.append((is_locked(run.path), run.read_status()["state"]))

    monkeypatch.setattr(Fitting, "fit_from", look)
    train_tiny(tmp_path / "new", "fit.epochs=1")
    resume(stopped, command=["trainer"])
    assert seen == [(True, "running")] * 2
    assert is_locked(stopped.path) is False


def test_where_there_are_no_locks_a_run_trains_and_a_search_does_not(
    stopped: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_file: object, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SearchError, match="has no locks"), directory.locked(tmp_path / "search"):
        pass
    # The process alone tells, and this one lives.
    assert stopped.read_status()["state"] == "running"
    with pytest.raises(RunDirectoryError, match=rf"still runs \(pid {os.getpid()} on "):
        resume(stopped, command=["trainer"])
    stopped.write_status("interrupted")
    assert resume(stopped, command=["trainer"]).read_status()["state"] == "done"


def test_a_lock_is_waited_for_as_long_as_a_reader_has_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    with open(tmp_path / ".lock") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        # This one has the reader's lock until it ends.
        began = time.monotonic()
        sleeper = subprocess.Popen(["sleep", "0.3"], pass_fds=[reader.fileno()])
    with sleeper:
        assert is_locked(tmp_path) is False
        with locked(tmp_path, patience=30):
            assert time.monotonic() - began > 0.25
            assert is_locked(tmp_path)


@pytest.fixture
def search(tmp_path: Path) -> Path:
    """A search with one trial, of which nothing but the names matters here."""
    path = tmp_path / "search"
    for name in ("oracle/state", "trials/0001-abc/.lock", "config.yaml"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("")
    return path


def test_a_search_is_put_aside_when_the_last_of_its_workers_has_ended(
    search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_search(tmp_path))
    monkeypatch.setattr(directory, "ENDING_SECONDS", 0.1)
    with held_elsewhere(search / "trials/0001-abc") as other:
        with pytest.raises(SearchError, match=rf"this trial is being run .*pid {other.pid} "):
            directory.begin(search, config, resume=False, restart=True)
        assert (search / "oracle/state").exists()
    (search / "retrained/best").mkdir(parents=True)
    with (
        held_elsewhere(search / "retrained/best"),
        pytest.raises(SearchError, match="this retraining is being run"),
    ):
        directory.begin(search, config, resume=False, restart=True)
    directory.begin(search, config, resume=False, restart=True)
    [old] = tmp_path.glob("search.until-*")
    assert (old / "trials/0001-abc").is_dir() and not (search / "trials").exists()


def test_a_search_that_was_put_aside_half_way_is_put_aside_again(
    search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_search(tmp_path))
    move = shutil.move

    def stop_at_trials(source: str, target: Path) -> None:
        if source.endswith("trials"):
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(directory.shutil, "move", stop_at_trials)
        directory.begin(search, config, resume=False, restart=True)
    with pytest.raises(SearchError, match="there is a search already"):
        directory.begin(search, config, resume=False, restart=False)
    directory.begin(search, config, resume=False, restart=True)
    assert {each.name for each in search.iterdir()} == {"config.yaml"}
