"""A folder in which `search_faults.py` runs one search, and what must hold of it afterwards."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search_fault_parts import SEARCH

from trainer.search.trials import read_trials

PATIENCE = 180.0
"""Seconds that anything may take."""


class Broken(AssertionError):
    """What should hold after a fault does not."""


@dataclass
class Lab:
    """A folder with one search.

    Attributes:
        folder: Of the fault.
        notes: What came of it, for the table.
    """

    folder: Path
    environment: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def search(self) -> Path:
        """The search's folder."""
        return self.folder / "searches" / "tiny"

    def config(self, *changes: tuple[str, str]) -> Path:
        """Write the search's config, with texts replaced."""
        text = SEARCH
        for old, new in changes:
            self.check(old in text, f"the config has {old!r}")
            text = text.replace(old, new)
        path = self.folder / "search.yaml"
        path.write_text(text)
        return path

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start the search."""
        command = [sys.executable, "-m", "trainer", "tune", "search.yaml", *options]
        with open(self.folder / "tune.log", "a", encoding="utf-8") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def finish(self, *options: str, code: int = 0) -> dict[str, Any]:
        """Run the search to its end, whose exit code must be this one."""
        process = self.start("--json", *options)
        told, _ = process.communicate(timeout=PATIENCE)
        self.expect_code(process.returncode, code)
        return dict(json.loads(told))

    def expect_code(self, found: int | None, code: int) -> None:
        """Note an exit code, which must be this one."""
        self.notes.append(f"exit {found}")
        self.check(found == code, f"the exit code is {code}, not {found}: {self.log[-2000:]}")

    @property
    def log(self) -> str:
        """All that the searches said."""
        return (self.folder / "tune.log").read_text()

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """Wait until something has happened."""
        end = time.monotonic() + PATIENCE
        while not condition():
            self.check(time.monotonic() < end, f"{what}: {self.log[-2000:]}")
            time.sleep(0.05)

    def kill_in(self, number: int, *options: str) -> None:
        """Start the search, and kill it once the trial has its first checkpoint."""
        process = self.start(*options)
        found = f"trials/{number:04d}-*/checkpoints/step-*.npz"
        self.wait_for(f"trial {number} has a checkpoint", lambda: list(self.search.glob(found)))
        process.kill()
        process.communicate(timeout=PATIENCE)

    def wait_for_checkpoint(self) -> None:
        """Wait until a trial that has not ended has a checkpoint."""

        def is_there() -> bool:
            found = self.search.glob("trials/*/checkpoints/step-*.npz")
            return any(not (path.parents[1] / "outcome.json").exists() for path in found)

        self.wait_for("a trial that has not ended has a checkpoint", is_there)

    def workers_of(self, pid: int) -> list[int]:
        """Return the processes that a launcher has started."""
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    @property
    def address(self) -> str:
        """Where a chief of this lab listens."""
        return "127.0.0.1:47115"

    def start_chief_and_two(self) -> list[subprocess.Popen[str]]:
        """Start a chief alone, and two workers that join it."""
        chief = self.start("--workers", "0", "--listen", self.address)
        return [chief, *(self.start("--chief", self.address) for _ in range(2))]

    def check(self, is_so: object, claim: str) -> None:
        """Fail the fault unless something holds."""
        if not is_so:
            raise Broken(claim)

    def check_whole(self, num_trials: int = 3, resumed: int | None = None) -> None:
        """Every trial has one outcome, and its epochs were trained once."""
        trials = read_trials(self.search)
        self.check(len(trials) == num_trials, f"{num_trials} trials, not {len(trials)}")
        for trial in trials:
            self.check(trial.outcome is not None, f"trial {trial.number} has an outcome")
            self.check(len(trial.history) == 4, f"trial {trial.number} has its four epochs")
            log = (trial.path / "trial.log").read_text()
            epochs = re.findall(r"^epoch ([0-9]+)/", log, flags=re.MULTILINE)
            self.check(
                len(set(epochs)) == 4 and len(epochs) <= 5,
                f"trial {trial.number} trains no more than one epoch twice: {epochs}",
            )
            if trial.number == resumed:
                self.check("resumed from step" in log, f"trial {trial.number} was gone on with")
                self.notes.append(f"{len(epochs)} epochs for 4")

    def values(self) -> list[dict[str, Any]]:
        """Points of the search, in order."""
        return [dict(t.point.values) for t in read_trials(self.search)]
