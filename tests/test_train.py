"""A whole run: what it leaves behind, and that nothing is lost when it is stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import environment, run_trainer, train_tiny, trainer_command, write_tiny_config

from trainer.checkpoint import list_checkpoints
from trainer.config import load_config
from trainer.errors import NonFiniteError, RunDirectoryError
from trainer.gradient_log import GradientLog
from trainer.run_dir import RunDir, read_history, read_json
from trainer.train import resume, train

EPOCHS = ("fit.epochs=20",)
STEPS_PER_EPOCH = 9  # 180 training images in batches of 20


def weights_of(run: RunDir) -> list[np.ndarray]:
    return keras.models.load_model(run.model, compile=False).get_weights()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_tiny(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_tiny(tmp_path_factory.mktemp("long"), *EPOCHS)


def test_a_run_directory_holds_every_artifact(run: RunDir) -> None:
    names = {path.name for path in run.path.iterdir()}

    assert names == {
        "config.yaml",
        "environment.json",
        "data.json",
        "train_digests.npy",
        "history.csv",
        "gradients",
        "checkpoints",
        "model.keras",
        "status.json",
        ".lock",
    }
    assert run.read_status()["state"] == "done"
    assert read_json(run.environment)["command"] == ["trainer", "train"]
    assert read_json(run.data)["synthetic"] is True


def test_the_history_has_a_row_for_each_epoch(run: RunDir) -> None:
    rows = read_history(run.history)

    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["step"] for row in rows] == [9, 18, 27]
    for key in ("loss", "accuracy", "val_loss", "val_accuracy", "first_to_last_grad"):
        assert np.isfinite([row[key] for row in rows]).all()


def test_the_gradient_log_covers_every_step_of_the_run(run: RunDir) -> None:
    log = GradientLog.read(run.gradients)

    assert log.problem is None
    assert log.steps["step"].tolist() == list(range(27))
    assert log.header.clipping == {"clipnorm": 0.1}
    assert log.header.paths[0] == "stem_conv/kernel"
    # Epochs end windows too, so that a checkpoint never cuts one.
    assert log.window_steps[:3].tolist() == [[0, 3], [4, 7], [8, 8]]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    run: RunDir, tmp_path: Path
) -> None:
    again = train_tiny(tmp_path, "gradients.record=false")
    other = train_tiny(tmp_path, "seed=4")

    # Recording is off in one of them: it changes nothing.
    assert all(map(np.array_equal, weights_of(run), weights_of(again)))
    assert not np.array_equal(weights_of(run)[0], weights_of(other)[0])


def test_training_from_the_written_config_repeats_the_run(run: RunDir, tmp_path: Path) -> None:
    again = train(load_config(run.config), runs_dir=tmp_path, command=["trainer"])

    assert all(map(np.array_equal, weights_of(run), weights_of(again)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_to_bit_identical_weights(
    number: signal.Signals, long_run: RunDir, tmp_path: Path
) -> None:
    config = write_tiny_config(tmp_path)
    arguments = trainer_command("train", config, "--set", *EPOCHS, "--runs-dir", tmp_path / "runs")
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch  2/"):
                process.send_signal(number)
                break
        rest = process.stderr.read()

    (path,) = (tmp_path / "runs").iterdir()
    stopped = RunDir.open(path)
    expected = -9 if number == signal.SIGKILL else 128 + number
    assert process.returncode == expected
    if number == signal.SIGKILL:
        assert stopped.read_status()["state"] == "killed"
    else:
        assert stopped.read_status()["state"] == "interrupted"
        assert f"trainer train --resume {path}" in rest
    assert not stopped.model.exists()
    assert list_checkpoints(stopped.checkpoints)

    resume(stopped, command=["trainer"])

    assert all(map(np.array_equal, weights_of(long_run), weights_of(stopped)))
    log = GradientLog.read(stopped.gradients)
    whole = GradientLog.read(long_run.gradients)
    assert np.array_equal(log.steps["step"], whole.steps["step"])
    assert np.array_equal(log.steps["raw_norm"], whole.steps["raw_norm"])
    assert [row["epoch"] for row in read_history(stopped.history)] == list(range(20))


def test_an_average_of_the_weights_survives_a_stop_inside_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    average = ("optimizer.ema_momentum=0.9", "fit.checkpoint_every_epochs=2")
    whole = train_tiny(tmp_path, *average)
    stopped = stop_at_step(13, tmp_path / "stopped", monkeypatch, *average)

    resume(stopped, command=["trainer"])

    assert all(map(np.array_equal, weights_of(whole), weights_of(stopped)))


def test_early_crops_survive_a_stop_inside_an_early_epoch(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early_crops = "data.early_crops={size: 24, epochs: 2}"
    whole = train_tiny(tmp_path, early_crops)
    stopped = stop_at_step(13, tmp_path / "stopped", monkeypatch, early_crops)

    resume(stopped, command=["trainer"])

    assert all(map(np.array_equal, weights_of(whole), weights_of(stopped)))
    assert not np.array_equal(weights_of(whole)[0], weights_of(run)[0])


def stop_at_step(
    step: int, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> RunDir:
    """Train in this process and send it a signal before a given step."""
    from trainer import fitting
    from trainer.errors import InterruptedRun

    folder.mkdir()
    original = fitting.Bookkeeping.on_train_batch_begin

    def begin(self: fitting.Bookkeeping, batch: int, logs: None = None) -> None:
        if self._step == step:
            signal.raise_signal(signal.SIGINT)
        original(self, batch, logs)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRun) as caught:
        patch.setattr(fitting.Bookkeeping, "on_train_batch_begin", begin)
        train_tiny(folder, *overrides)
    assert caught.value.exit_code == 130
    (path,) = (folder / "runs").iterdir()
    return RunDir(path)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train_tiny(tmp_path)
    stopped = stop_at_step(20, tmp_path / "stopped", monkeypatch)
    newest = list_checkpoints(stopped.checkpoints)[-1]
    assert newest.step == 20
    newest.path.write_bytes(newest.path.read_bytes()[:1000])

    resume(stopped, command=["trainer"])

    assert f"{newest.path}: this checkpoint is damaged" in capsys.readouterr().err
    assert all(map(np.array_equal, weights_of(whole), weights_of(stopped)))


def test_a_checkpoint_of_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = stop_at_step(5, tmp_path / "stopped", monkeypatch)
    text = stopped.config.read_text().replace("- filters: 8", "- filters: 16")
    stopped.config.write_text(text)

    with pytest.raises(RunDirectoryError, match="this checkpoint is of another model"):
        resume(stopped, command=["trainer"])


def test_a_finished_run_is_not_resumed(run: RunDir) -> None:
    with pytest.raises(RunDirectoryError, match=r"only a stopped run can be resumed.*is done"):
        resume(run, command=["trainer"])


def test_training_stops_on_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    overrides = (
        "gradients.on_error=stop",
        "optimizer={kind: sgd, learning_rate: 1e30}",
        "schedule={kind: constant}",
    )

    with pytest.raises(NonFiniteError, match=r"step \d+: .*is not finite") as caught:
        train_tiny(tmp_path, *overrides)

    assert caught.value.exit_code == 3
    (path,) = (tmp_path / "runs").iterdir()
    status = RunDir(path).read_status()
    assert status["state"] == "failed"
    assert status["reason"] == str(caught.value)
    assert not np.isfinite(GradientLog.read(path / "gradients").steps["raw_norm"][-1])


def test_training_goes_on_with_one_warning_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ("optimizer={kind: sgd, learning_rate: 1e30}", "schedule={kind: constant}")

    run = train_tiny(tmp_path, *overrides)

    assert run.read_status()["state"] == "done"
    assert capsys.readouterr().err.count("is not finite") == 1


def test_steps_per_execution_must_divide_the_epoch(tmp_path: Path) -> None:
    from trainer.errors import ConfigError

    with pytest.raises(ConfigError, match="steps_per_execution=4, 9 steps an epoch"):
        train_tiny(tmp_path, "runtime.steps_per_execution=4")


def test_several_steps_per_execution_train_the_same_weights(run: RunDir, tmp_path: Path) -> None:
    other = train_tiny(tmp_path, "runtime.steps_per_execution=3")

    assert all(map(np.array_equal, weights_of(run), weights_of(other)))
    assert GradientLog.read(other.gradients).steps["step"].tolist() == list(range(27))


def test_a_run_without_validation_trains(tmp_path: Path) -> None:
    run = train_tiny(
        tmp_path, "data.validation_split=0", "fit.epochs=1", "schedule.warmup_epochs=0"
    )

    assert "val_loss" not in read_history(run.history)[0]


def test_the_command_line_trains_and_evaluates(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    trained = run_trainer("train", config, "--runs-dir", tmp_path / "runs", "--json")
    assert trained.returncode == 0, trained.stderr
    answer = json.loads(trained.stdout)
    assert answer["status"] == "done"
    assert (repr(answer["epoch"]), repr(answer["step"])) == ("2", "27")
    assert "SYNTHETIC" in trained.stderr
    assert trained.stderr.splitlines()[0].startswith("runtime: 1 CPU")

    evaluated = run_trainer("evaluate", answer["run"], "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads(evaluated.stdout)
    assert figures["num_images"] == 53
    assert sum(map(sum, figures["confusion"])) == 53
    assert read_json(RunDir(Path(answer["run"])).evaluation)["accuracy"] == figures["accuracy"]


def test_a_killed_run_without_model_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.evaluate import evaluate

    stopped = stop_at_step(5, tmp_path / "stopped", monkeypatch)

    with pytest.raises(RunDirectoryError, match=r"it is interrupted\. .*train --resume"):
        evaluate(stopped)


def test_a_damaged_model_file_is_named(run: RunDir, tmp_path: Path) -> None:
    from trainer.evaluate import evaluate

    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run.path, copy.path)
    copy.model.write_bytes(b"not a model")

    with pytest.raises(RunDirectoryError, match=r"model\.keras: the model cannot be loaded"):
        evaluate(copy)
