"""A signal at an awkward moment of a training that somebody looks after."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import write_tiny_config

from trainer.checkpoint import list_checkpoints
from trainer.config import load_config
from trainer.data.splits import load_training_data
from trainer.errors import InterruptedRun
from trainer.fitting import Supervision
from trainer.run_dir import RunDir
from trainer.train import train_under

STEPS_PER_EPOCH = 9


def train_with_signals(folder: Path, *, epochs: int, signals: int) -> RunDir:
    """Train, with signals at the end of the first epoch."""
    config = load_config(write_tiny_config(folder), [f"fit.epochs={epochs}"])

    def interrupt(history: Sequence[dict[str, float]]) -> None:
        if len(history) == 1:
            for _ in range(signals):
                signal.raise_signal(signal.SIGTERM)

    run = RunDir(folder / "run")
    run.path.mkdir()
    supervision = Supervision(epochs, interrupt, lambda finding: None)
    train_under(supervision, run, config, load_training_data(config), command=["trainer"])
    return run


def test_two_signals_at_once_are_one_request_and_save_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRun, match=f"after step {STEPS_PER_EPOCH}"):
        train_with_signals(tmp_path, epochs=2, signals=2)

    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].step == STEPS_PER_EPOCH


def test_a_signal_saves_a_checkpoint_where_nobody_reads_standard_error_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `2>&1 | tee`, which a Ctrl-C ends first."""
    reader, writer = os.pipe()
    os.close(reader)
    # Unbuffered: nothing is left to fail when it is closed.
    stderr = io.TextIOWrapper(os.fdopen(writer, "wb", 0), write_through=True)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRun):
        patch.setattr(sys, "stderr", stderr)
        train_with_signals(tmp_path, epochs=2, signals=1)
    stderr.close()

    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].step == STEPS_PER_EPOCH


def test_a_signal_at_the_end_of_the_last_epoch_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRun):
        train_with_signals(tmp_path, epochs=1, signals=1)
