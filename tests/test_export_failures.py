"""Exports that fail: what is said, and that the older version is as it was."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
from exported_runs import call, contents, train_tiny
from tiny import environment, trainer_command

from trainer.export import exporting
from trainer.export.exporting import export
from trainer.export.serving_model import build_serving_model
from trainer.run_dir import RunDir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_tiny(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def copied(run: RunDir, tmp_path: Path) -> RunDir:
    """A copy that a test may change."""
    path = tmp_path / "copied"
    shutil.copytree(run.path, path)
    return RunDir(path)


@pytest.fixture
def older(copied: RunDir) -> dict[str, bytes]:
    """Give the copied run an older version; return every file of all versions."""
    (copied.saved_model / "1").mkdir(parents=True)
    (copied.saved_model / "1" / "saved_model.pb").write_bytes(b"as it was")
    return contents(copied.saved_model)


def break_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the SavedModel be written of another model than the one that is asked."""

    def build_another(model: keras.Model, *arguments: Any) -> keras.Model:
        another = keras.models.clone_model(model)
        another.set_weights([1.5 * weights for weights in model.get_weights()])
        return build_serving_model(another, *arguments)

    monkeypatch.setattr(exporting, "build_serving_model", build_another)


def test_an_export_that_fails_its_proof_leaves_nothing(
    copied: RunDir, older: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    break_weights(monkeypatch)
    assert call("export", copied.path, monkeypatch=monkeypatch) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert "serving_default: the exported model does not answer like the trained one" in line
    assert "probabilities differ by up to" in line
    assert contents(copied.saved_model) == older
    assert [path.name for path in copied.saved_model.iterdir()] == ["1"]


def test_a_first_export_that_fails_leaves_no_folder(
    copied: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_weights(monkeypatch)
    before = contents(copied.path)
    assert call("export", copied.path, "--json", monkeypatch=monkeypatch) == 1
    assert not copied.saved_model.exists()
    assert contents(copied.path) == before


def half_written(error: BaseException) -> Callable[..., None]:
    def write(directory: Path, *arguments: Any) -> None:
        (directory / "saved_model.pb").write_bytes(b"half")
        raise error

    return write


def test_a_full_disk_is_one_message_and_the_older_version_is_untouched(
    copied: RunDir, older: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    full = half_written(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    monkeypatch.setattr(exporting, "write_saved_model", full)
    assert call("export", copied.path, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {copied.saved_model}: the export cannot be written")
    assert "No space left on device" in error
    assert contents(copied.saved_model) == older


def test_files_that_cannot_grow_are_one_message_and_no_traceback(
    copied: RunDir, older: dict[str, bytes]
) -> None:
    """What TensorFlow itself makes of a disk that takes no more."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    done = subprocess.run(
        trainer_command("export", copied.path),
        capture_output=True,
        text=True,
        # Files of compiled Python code could not be written either.
        env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert contents(copied.saved_model) == older


def start_export(run: RunDir, stage: str) -> subprocess.Popen[str]:
    """Start an export and return when it says that a stage begins."""
    process = subprocess.Popen(
        trainer_command("export", run.path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # The signal goes to the exporting process, not to the one that it started.
        start_new_session=True,
        # A shell has what runs in its background ignore it, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(stage):
            return process
    raise AssertionError("".join(said))


def test_an_interrupted_export_leaves_nothing(copied: RunDir, older: dict[str, bytes]) -> None:
    process = start_export(copied, "proving ")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGINT), error
    assert "Traceback" not in error
    assert contents(copied.saved_model) == older
    assert [path.name for path in copied.saved_model.iterdir()] == ["1"]


def test_what_a_killed_export_left_is_removed_by_the_next(
    copied: RunDir, older: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start_export(copied, "proving serving_default")
    process.kill()
    process.communicate(timeout=60)
    assert set(older) < set(contents(copied.saved_model)), "nothing was left to remove"
    monkeypatch.setattr(exporting, "write_saved_model", half_written(OSError("full")))
    assert call("export", copied.path, monkeypatch=monkeypatch) == 2
    assert contents(copied.saved_model) == older


def test_an_interruption_inside_tensorflow_is_passed_on(
    copied: RunDir, older: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "write_saved_model", half_written(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export(copied)
    assert contents(copied.saved_model) == older


def test_a_run_without_a_model_is_told_how_to_get_one(
    copied: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    copied.model.unlink()
    assert call("export", copied.path, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {copied.model}: the run has no trained model")
    assert f"trainer train {copied.config}" in error
    assert not copied.saved_model.exists()


def test_a_damaged_model_is_an_error(
    copied: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    copied.model.write_bytes(copied.model.read_bytes()[:500])
    assert call("export", copied.path, monkeypatch=monkeypatch) == 2
    assert "the model cannot be loaded" in capsys.readouterr().err.splitlines()[-1]


def test_missing_images_are_an_error_before_anything_is_written(
    copied: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    config = copied.config.read_text()
    text = config.replace("source: shapes", "source: directory").replace(
        "path: null", f"path: {copied.path / 'gone'}"
    )
    copied.config.write_text(text.replace("image_size: null", "image_size: [32, 32]"))
    assert call("export", copied.path, monkeypatch=monkeypatch) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not copied.saved_model.exists()


def test_what_is_no_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert call("export", tmp_path, "--json", monkeypatch=monkeypatch) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 2
    assert "no run directory" in answer["error"]
