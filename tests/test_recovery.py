"""What a training goes back to, whatever interrupts it, and what a resumed one remembers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from test_live import NAN, SIGMOIDS, started

from trainer import fitting
from trainer.checkpoint import list_checkpoints
from trainer.errors import InterruptedRun, NonFiniteError, RunDirectoryError, UnhealthyError
from trainer.gradient_log import GradientLog, LogHeader
from trainer.health_events import num_recoveries, read_events
from trainer.live import LiveDiagnosis
from trainer.log_frames import LogWindow
from trainer.recovery import Recovery
from trainer.run_dir import RunDir, read_history
from trainer.train import resume

RECOVER = "gradients={on_error: recover, recovery_factor: 3.0e-32}"


def before_step(
    monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[fitting.Bookkeeping], None]
) -> None:
    """Do something once, in front of a step."""
    begin, done = fitting.Bookkeeping.on_train_batch_begin, []

    def begin_and_act(self: fitting.Bookkeeping, batch: int, logs: None = None) -> None:
        if self._step == step and not done:
            done.append(True)
            act(self)
        begin(self, batch, logs)

    monkeypatch.setattr(fitting.Bookkeeping, "on_train_batch_begin", begin_and_act)


def interrupt(bookkeeping: fitting.Bookkeeping) -> None:
    signal.raise_signal(signal.SIGINT)


def finite(run: RunDir) -> bool:
    with np.load(list_checkpoints(run.checkpoints)[-1].path) as file:
        return all(np.isfinite(file[name]).all() for name in file.files if name != "description")


def test_a_signal_behind_a_nan_leaves_no_checkpoint_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The window that holds the NaN is not full yet.
    before_step(monkeypatch, 6, interrupt)
    run, error = started(tmp_path, [*NAN, RECOVER, "gradients.window_steps=50"])
    assert isinstance(error, InterruptedRun)
    assert [checkpoint.step for checkpoint in list_checkpoints(run.checkpoints)] == [0]
    assert finite(run)
    resume(run, command=["trainer", "train", "--resume"])
    assert run.read_status()["state"] == "done"
    np.testing.assert_allclose(GradientLog.read(run.gradients).steps["learning_rate"], 0.03, 1e-5)


def test_a_signal_behind_a_nan_stops_a_run_that_shall_stop_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_step(monkeypatch, 6, interrupt)
    run, error = started(tmp_path, [*NAN, "gradients.on_error=stop", "gradients.window_steps=50"])
    assert isinstance(error, NonFiniteError)
    assert not list_checkpoints(run.checkpoints)


def test_a_signal_during_a_recovery_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_back = Recovery.go_back

    def go_back_and_interrupt(self: Recovery, error: NonFiniteError) -> int:
        signal.raise_signal(signal.SIGTERM)
        return go_back(self, error)

    monkeypatch.setattr(Recovery, "go_back", go_back_and_interrupt)
    run, error = started(tmp_path, [*NAN, RECOVER])
    assert isinstance(error, InterruptedRun)
    assert run.read_status()["state"] == "interrupted"
    assert num_recoveries(run) == 1
    resume(run, command=["trainer", "train", "--resume"])
    assert run.read_status()["state"] == "done"


class Killed(BaseException):
    """Stands for a kill that no handler sees."""


@pytest.mark.parametrize("place", ["drop_checkpoints_after", "restore_latest", "add_event"])
def test_a_recovery_that_was_killed_half_way_is_done_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainer.recovery

    def kill(*arguments: object, **details: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer.recovery, place, kill)
        started(tmp_path, [*NAN, RECOVER])
    [path] = (tmp_path / "runs").iterdir()
    run = RunDir.open(path)
    run.write_status("interrupted")
    resume(run, command=["trainer", "train", "--resume"])
    assert run.read_status()["state"] == "done"
    assert num_recoveries(run) == 1
    assert [row["epoch"] for row in read_history(run.history)] == [0, 1, 2]


def test_a_damaged_healthy_checkpoint_goes_back_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, raised = LiveDiagnosis.look, []

    def look_and_find(self: LiveDiagnosis, header: LogHeader, window: LogWindow) -> None:
        look(self, header, window)
        if window.steps["step"][-1] >= 22 and not raised:
            raised.append(True)
            [run] = (tmp_path / "runs").iterdir()
            list_checkpoints(run / "checkpoints")[-1].path.write_bytes(b"torn")
            raise UnhealthyError("diverging: for once")

    monkeypatch.setattr(LiveDiagnosis, "look", look_and_find)
    run, error = started(tmp_path, ["gradients.on_error=recover", "schedule={kind: constant}"])
    assert error is None
    [event] = [event for event in read_events(run) if event["event"] == "recovered"]
    assert event["step"] == 9
    steps = GradientLog.read(run.gradients).steps
    np.testing.assert_array_equal(steps["step"], np.arange(27))
    expected = np.where(np.arange(27) < 9, 3e-3, 3e-3 * 0.3)
    np.testing.assert_allclose(steps["learning_rate"], expected, rtol=1e-5)
    assert [row["step"] for row in read_history(run.history)] == [9, 18, 27]


def test_an_illness_that_smaller_steps_cannot_mend_does_not_cost_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The gradient vanishes from the start on, and then there is a NaN.
    def break_once(bookkeeping: fitting.Bookkeeping) -> None:
        weight = bookkeeping.model.trainable_variables[0]
        weight.assign(keras.ops.full(weight.shape, np.nan))

    before_step(monkeypatch, 31, break_once)
    run, error = started(tmp_path, [*SIGMOIDS, "gradients.on_error=recover"])
    assert error is None
    events = read_events(run)
    assert "vanishing" in [event.get("rule") for event in events]
    [recovered] = [event for event in events if event["event"] == "recovered"]
    assert recovered["step"] == 27


@pytest.mark.parametrize(
    "overrides",
    [
        # Nothing of each touches what the others do, and a training takes its time.
        ["runtime.steps_per_execution=3", "gradients.live=false"],
        ["optimizer={kind: sgd, learning_rate: 1.0e+30, ema_momentum: 0.9}"],
        ["data={early_crops: {size: 24, epochs: 1}}", "gradients.probe_images=0"],
        ["gradients.window_steps=50", "gradients.every_steps=2"],
    ],
    ids=["execution", "average", "crops", "windows"],
)
def test_recovery_fits_every_other_option(overrides: list[str], tmp_path: Path) -> None:
    run, error = started(tmp_path, [*NAN, RECOVER, "fit.epochs=2", *overrides])
    assert error is None
    assert num_recoveries(run) == 1
    assert [row["step"] for row in read_history(run.history)] == [9, 18]
    model = keras.models.load_model(run.model, compile=False)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_a_resumed_training_remembers_how_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At the end of its cosine a training makes steps that are too small for a beginning.
    options = [
        "optimizer={kind: sgd, learning_rate: 0.003}",
        "schedule={kind: cosine}",
        "model.block.dropout=0",
        "fit.epochs=12",
    ]
    with monkeypatch.context() as patch:
        before_step(patch, 99, interrupt)
        run, error = started(tmp_path, options)
    assert isinstance(error, InterruptedRun)
    seen = []
    look = LiveDiagnosis.look

    def look_and_note(self: LiveDiagnosis, header: LogHeader, window: LogWindow) -> None:
        look(self, header, window)
        seen.append([int(each.steps["step"][0]) for each in self._windows])

    monkeypatch.setattr(LiveDiagnosis, "look", look_and_note)
    resume(run, command=["trainer", "train", "--resume"])
    assert seen[0][0] == 0
    assert seen[0][-1] == 99
    assert len(seen[0]) == 14
    # Nothing of what the first part said is said again, and nothing more.
    rules = [event["rule"] for event in read_events(run) if event["step"] >= 99]
    assert "small_updates" not in rules
    assert "plateau" not in rules


def test_a_damaged_health_file_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for content in ("{}", '{"events": [1]}', "{"):
        run.health.write_text(content)
        with pytest.raises(RunDirectoryError, match=r"health\.json: this artifact is damaged"):
            read_events(run)
