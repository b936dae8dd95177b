"""A search whose trials take seconds, and one whose trials take no time at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tiny import TINY_CONFIG

from trainer.config import Config, load_config
from trainer.run_dir import write_history
from trainer.search.trial import TrialRequest
from trainer.search.trials import Outcome, read_outcome, write_outcome, write_trial

SPACE = """\
    optimizer.learning_rate: {log_uniform: [1e-4, 1e-1]}
    optimizer.kind: {choice: [adam, sgd]}
    optimizer.momentum: {float: [0, 0.95], when: {optimizer.kind: sgd}}
    model.block.kind: {choice: [plain, residual]}
"""
GRID = """\
    optimizer.learning_rate: {log_uniform: [1e-3, 1e-1], points: 3}
    optimizer.kind: {choice: [adam, sgd]}
    optimizer.nesterov: {boolean: true, when: {optimizer.kind: sgd}}
"""


def write_search(folder: Path, *options: str, space: str = SPACE) -> Path:
    """Write a config with a search; each option is a line of its `search` section."""
    path = folder / "search.yaml"
    lines = "".join(f"  {option}\n" for option in options)
    path.write_text(f"{TINY_CONFIG}search:\n{lines}  space:\n{space}")
    return path


def load_search(folder: Path, *options: str, space: str = SPACE) -> Config:
    return load_config(write_search(folder, *options, space=space))


class Killed(Exception):
    """Stands for a process that is gone."""


class FakeTrials:
    """Runs trials without training: the score is a function of the learning rate alone.

    Args:
        kill_at: The number of the call that is killed, before anything of it is on disk.
        fall: What each epoch takes from the score.
    """

    def __init__(self, kill_at: int | None = None, fall: float = 0.0) -> None:
        self.kill_at = kill_at
        self.fall = fall
        self.calls = 0
        self.trained: list[tuple[str, int]] = []

    def __call__(self, request: TrialRequest) -> Outcome:
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed
        known = read_outcome(request.path)
        if known is not None:
            return known
        path, point = request.path, request.point
        path.mkdir(parents=True)
        score = 1 / (1 + abs(float(point.values["optimizer.learning_rate"]) - 0.01))
        score -= self.fall * point.epochs
        rows = [{"epoch": float(e), "val_accuracy": score} for e in range(point.epochs)]
        write_history(path / "history.csv", rows)
        write_trial(path, request.number, point, request.worker)
        outcome = Outcome("done", score, "trained", "done", point.epochs, "healthy", 0.0)
        write_outcome(path, outcome)
        self.trained.append((point.key, point.epochs - point.parent_epochs))
        return outcome


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
