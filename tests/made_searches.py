"""Searches that nobody ran: trials through the real writers, without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiny import TINY_CONFIG

from trainer.config import load_config
from trainer.run_dir import write_history, write_json
from trainer.search.directory import SearchDir, begin, locked
from trainer.search.results import Results
from trainer.search.trials import Outcome, Point, State, folder_of, write_outcome, write_trial

SPACE = """\
    optimizer.learning_rate: {log_uniform: [1e-4, 1]}
    optimizer.kind: {choice: [adam, sgd]}
    optimizer.momentum: {float: [0, 0.9], when: {optimizer.kind: sgd}}
"""


class MadeSearch:
    """A search's folder, to which trials are added.

    Args:
        folder: In which it is made.
        *options: Lines of the `search` section.
        space: Its space.
    """

    def __init__(self, folder: Path, *options: str, space: str = SPACE) -> None:
        file = folder / "search.yaml"
        lines = "".join(f"  {option}\n" for option in options)
        file.write_text(f"{TINY_CONFIG}search:\n{lines}  space:\n{space}")
        self.config = load_config(file)
        self.path = folder / "searches" / "tiny"
        with locked(self.path):
            self.directory: SearchDir = begin(self.path, self.config, resume=False, restart=False)
        self.count = 0

    def add(
        self,
        values: Mapping[str, Any],
        score: float | None = 0.5,
        *,
        state: State = "done",
        cause: str = "done",
        reason: str = "trained to its last epoch",
        health: str = "healthy",
        curve: tuple[float, ...] | None = None,
    ) -> Path:
        """Add a trial; without a score it has not ended."""
        assert self.config.search is not None
        objective = self.config.search.objective
        number, self.count = self.count, self.count + 1
        point = Point(values, self.config.fit.epochs)
        path = folder_of(self.path, number, point)
        write_trial(path, number, point, "0", attempts=1)
        if curve is None:
            curve = () if score is None else (0.1, score)
        if curve:
            rows = [{"epoch": float(e), objective: value} for e, value in enumerate(curve)]
            write_history(path / "history.csv", rows)
        command = ["/somewhere/trainer/__main__.py", "tune", "my search.yaml"]
        write_json(path / "environment.json", {"command": command})
        if score is not None:
            outcome = Outcome(state, score, reason, cause, len(curve), health, 2.5)
            write_outcome(path, outcome)
        return path

    @property
    def results(self) -> Results:
        """What the trials came to."""
        return Results.of(self.path, self.config)
