"""A training that diagnoses itself: what it says and when, and what it does about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import run_trainer, write_tiny_config

from trainer.checkpoint import list_checkpoints
from trainer.config import load_config
from trainer.diagnosis import Evidence, Finding
from trainer.diagnosis.registry import RULES, Rule
from trainer.diagnosis.remedies import scaled_rate
from trainer.errors import NonFiniteError, TrainerError, UnhealthyError
from trainer.gradient_log import GradientLog, LogHeader
from trainer.health_events import read_events
from trainer.live import LiveDiagnosis
from trainer.log_frames import LogWindow
from trainer.run_dir import RunDir, read_history
from trainer.train import resume, train

# Without normalization and with such steps the loss is not finite within a few steps.
NAN = (
    "model.block={normalization: none, dropout: 0}",
    "optimizer={kind: sgd, learning_rate: 1.0e+30}",
    "schedule={kind: constant}",
)
SIGMOIDS = (
    "model.block={kind: plain, activation: sigmoid, normalization: none, dropout: 0}",
    "model.stages=[{filters: 4, blocks: 5}, {filters: 8, blocks: 5, strides: 2}]",
    "optimizer={kind: sgd, learning_rate: 0.01}",
    "fit.epochs=4",
)


def started(folder: Path, overrides: Sequence[str]) -> tuple[RunDir, TrainerError | None]:
    """Train, and return the run with what ended it."""
    config = load_config(write_tiny_config(folder), overrides)
    error = None
    try:
        train(config, runs_dir=folder / "runs", command=["trainer", "train"])
    except TrainerError as caught:
        error = caught
    [path] = (folder / "runs").iterdir()
    return RunDir.open(path), error


def test_a_finding_is_said_once_and_stands_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, error = started(tmp_path, SIGMOIDS)
    assert error is None
    said = capsys.readouterr().err
    assert said.count("ERROR vanishing: gradients vanish") == 1
    [event] = [event for event in read_events(run) if event["rule"] == "vanishing"]
    assert (event["event"], event["severity"]) == ("appeared", "error")
    assert event["numbers"]["ratio"] < event["thresholds"]["ratio"]
    # Three windows must have been seen.
    windows = GradientLog.read(run.gradients).window_steps
    assert event["step"] >= windows[2, 1]


def test_what_is_gone_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Steps that are too small during a long warm-up, and then are not.
    run, error = started(
        tmp_path,
        [
            "optimizer={kind: sgd, learning_rate: 0.05, clipnorm: 1.0e-3}",
            "schedule={kind: triangular, start_fraction: 0, peak_at: 0.9}",
            "model.block.dropout=0",
            "fit.epochs=12",
            "gradients.window_steps=3",
        ],
    )
    assert error is None
    names = [(event["event"], event["rule"]) for event in read_events(run)]
    for rule in {rule for event, rule in names if event == "gone"}:
        told = [event for event, each in names if each == rule]
        assert told[:2] == ["appeared", "gone"]
    assert ("gone", "small_updates") in names, names
    assert "gone since step" in capsys.readouterr().err


def test_a_healthy_training_says_nothing(tmp_path: Path) -> None:
    run, error = started(tmp_path, ["model.block.dropout=0", "optimizer.clipnorm=null"])
    assert error is None
    assert not run.health.exists()


def test_live_off_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = started(tmp_path, [*SIGMOIDS, "gradients.live=false"])
    assert not run.health.exists()
    assert "vanishing" not in capsys.readouterr().err


def test_the_weights_are_the_same_with_the_diagnosis_and_without(tmp_path: Path) -> None:
    weights = []
    for name in ("true", "false"):
        (tmp_path / name).mkdir()
        live = [f"gradients.live={name}", "gradients.probe_images=64"]
        run, _ = started(
            tmp_path / name, live if name == "true" else [*live, "gradients.record=false"]
        )
        weights.append(keras.models.load_model(run.model, compile=False).get_weights())
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_stop_ends_at_an_error_with_exit_code_1(tmp_path: Path) -> None:
    run, error = started(tmp_path, [*SIGMOIDS, "gradients.on_error=stop"])
    assert isinstance(error, UnhealthyError)
    assert error.exit_code == 1
    assert "vanish" in str(error)
    assert run.read_status()["state"] == "failed"


def test_stop_ends_at_a_nan_with_exit_code_3(tmp_path: Path) -> None:
    _, error = started(tmp_path, [*NAN, "gradients.on_error=stop"])
    assert isinstance(error, NonFiniteError)


def test_recover_goes_back_with_smaller_steps_and_finishes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, error = started(
        tmp_path, [*NAN, "gradients={on_error: recover, recovery_factor: 3.0e-32}"]
    )
    assert error is None
    assert run.read_status()["state"] == "done"
    [event] = [event for event in read_events(run) if event["event"] == "recovered"]
    assert event["step"] == 0
    assert "not finite" in event["reason"] or "loss is" in event["reason"]
    rates = GradientLog.read(run.gradients).steps["learning_rate"]
    np.testing.assert_allclose(rates, 0.03, rtol=1e-5)
    # Small as they are, they are what the schedule asks for, and are judged.
    evidence = Evidence.of_run(run)
    np.testing.assert_array_equal(evidence.active_windows, evidence.windows)
    assert scaled_rate(evidence, 0.1).patch == {"optimizer.learning_rate": 0.003}
    assert [row["epoch"] for row in read_history(run.history)] == [0, 1, 2]
    assert "back to step 0 with 3e-32 times the learning rate" in capsys.readouterr().err


def test_recover_gives_up_after_so_many_times(tmp_path: Path) -> None:
    run, error = started(
        tmp_path,
        [*NAN, "gradients={on_error: recover, recovery_factor: 0.99, most_recoveries: 2}"],
    )
    assert isinstance(error, NonFiniteError)
    assert "gave up after going back 2 times" in str(error)
    factors = [e["learning_rate_factor"] for e in read_events(run) if e["event"] == "recovered"]
    assert factors == pytest.approx([0.99, 0.99**2])
    # What is left to resume from is healthy.
    assert [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints)] == [0]


def test_what_smaller_steps_cannot_mend_is_only_said(tmp_path: Path) -> None:
    run, error = started(tmp_path, [*SIGMOIDS, "gradients.on_error=recover"])
    assert error is None
    assert {event["event"] for event in read_events(run)} == {"appeared"}


def test_a_training_falls_back_to_its_last_healthy_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, raised = LiveDiagnosis.look, []

    def look_and_find(self: LiveDiagnosis, header: LogHeader, window: LogWindow) -> None:
        look(self, header, window)
        if window.steps["step"][-1] >= 22 and not raised:
            raised.append(True)
            raise UnhealthyError("diverging: for once")

    monkeypatch.setattr(LiveDiagnosis, "look", look_and_find)
    run, error = started(tmp_path, ["gradients.on_error=recover", "schedule={kind: constant}"])
    assert error is None
    [event] = [event for event in read_events(run) if event["event"] == "recovered"]
    assert (event["step"], event["reason"]) == (18, "diverging: for once")
    steps = GradientLog.read(run.gradients).steps
    np.testing.assert_array_equal(steps["step"], np.arange(27))
    expected = np.where(np.arange(27) < 18, 3e-3, 3e-3 * 0.3)
    np.testing.assert_allclose(steps["learning_rate"], expected, rtol=1e-5)
    assert [row["step"] for row in read_history(run.history)] == [9, 18, 27]


def test_a_resumed_training_keeps_the_rate_that_it_came_down_to(tmp_path: Path) -> None:
    overrides = [*NAN, "fit.epochs=4", "gradients={on_error: recover, recovery_factor: 3.0e-32}"]
    run, error = started(tmp_path, overrides)
    assert error is None
    # As if it had been killed in the last epoch.
    newest = list_checkpoints(run.checkpoints)[-1]
    newest.path.unlink()
    run.write_status("interrupted")
    resume(run, command=["trainer", "train", "--resume"])
    log = GradientLog.read(run.gradients)
    assert len(log.steps) == 36
    np.testing.assert_allclose(log.steps["learning_rate"], 0.03, rtol=1e-5)


def test_the_command_line_tells_the_exit_codes_apart(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path)
    options = [f"--set={each}" for each in (*SIGMOIDS, "gradients.on_error=stop")]
    answer = run_trainer("train", config, "--runs-dir", tmp_path, *options)
    assert answer.returncode == 1
    assert answer.stderr.rstrip().splitlines()[-1].startswith("error: vanishing: gradients vanish")


def test_a_finding_that_goes_to_and_fro_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[int] = []

    def now_and_then(evidence: Evidence) -> list[Finding]:
        looks.append(len(looks))
        return [Finding("mine", "error" if looks[-1] % 2 else "warning", "it is so")]

    monkeypatch.setitem(RULES, "mine", Rule("mine", 5, now_and_then))
    run, error = started(tmp_path, ["fit.epochs=4"])
    assert error is None
    assert len(looks) > 4
    events = [event for event in read_events(run) if event["rule"] == "mine"]
    assert [event["severity"] for event in events] == ["warning", "error"]
    assert capsys.readouterr().err.count("mine: it is so") == 2


def test_a_line_says_nonfinite_as_soon_as_it_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Too few windows for the live diagnosis to look.
    started(tmp_path, [*NAN, "fit.epochs=1", "gradients.on_error=warn"])

    [line] = [each for each in capsys.readouterr().err.splitlines() if each.startswith("epoch")]
    assert line.endswith("nonfinite")


def test_the_last_line_of_a_sick_training_names_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started(tmp_path, SIGMOIDS)

    lines = [each for each in capsys.readouterr().err.splitlines() if each.startswith("epoch")]
    assert "  vanishing" in lines[-1]
