"""One worker process of this machine, which may have to be started more than once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from trainer.config import Config
from trainer.search.directory import SearchDir
from trainer.search.isolation import ending
from trainer.search.shares import environment_of


class Hand:
    """A worker of this machine.

    Args:
        number: Among those of this machine, from 0; also its name.
        count: How many there are, which share the machine.
        chief: The chief's address.
        directory: Of the search.
        config: Of the search.
        isolate: Whether each trial runs in a process of its own.

    Attributes:
        name: As the chief knows it.
        has_joined: Whether the process has said that it is there.
        deaths: How often it ended since it last ended a trial.
    """

    def __init__(
        self,
        number: int,
        count: int,
        chief: str,
        directory: SearchDir,
        config: Config,
        isolate: bool,
    ) -> None:
        self.name = str(number)
        self.has_joined = False
        self.deaths = 0
        self._number = number
        self._count = count
        self._chief = chief
        self._directory = directory
        self._config = config
        self._isolate = isolate
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self._directory.workers / f"{self.name}.log"

    @property
    def has_ended(self) -> bool:
        """Whether its process runs no more."""
        return self._process is None or self._process.poll() is not None

    @property
    def seconds(self) -> float:
        """Since its process was started."""
        return time.monotonic() - self._started

    @property
    def ending(self) -> str:
        """How its process ended."""
        assert self._process is not None
        return ending(self._process.wait())

    def start(self) -> None:
        """Start its process, for the first time or again."""
        self.has_joined = False
        self._started = time.monotonic()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "trainer", "tune-worker", str(self._directory.path)]
        command += ["--chief", self._chief, "--name", self.name, "--parent", str(os.getpid())]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*command, *(["--isolate"] if self._isolate else [])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment_of(self._number, self._count, self._config.runtime),
                # A Ctrl-C is for the launcher, which has the workers save their trials.
                start_new_session=True,
            )

    def kill(self) -> None:
        """End its process at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
