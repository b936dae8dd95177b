"""The worker processes of this machine, each of which may have to be started more than once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.config import Config
from trainer.search.directory import SearchDir
from trainer.search.interruption import ending
from trainer.search.shares import environment_of
from trainer.search.wire import Post


@dataclass(frozen=True)
class Staff:
    """Who trains the trials of a search.

    Attributes:
        workers: Processes to start on this machine. One, without `listen`, is this process.
        listen: `HOST:PORT` for workers that come by themselves; None for the loopback.
        isolate: Whether each trial runs in a process of its own.
    """

    workers: int = 1
    listen: str | None = None
    isolate: bool = False

    @property
    def is_alone(self) -> bool:
        """Whether this process does all by itself."""
        return self.workers == 1 and self.listen is None


ALONE = Staff()


@contextmanager
def started(directory: SearchDir, config: Config, staff: Staff) -> Iterator[list[Hand]]:
    """Start the workers of this machine, and leave none behind.

    They import TensorFlow, which takes seconds, and then wait for the chief that this process
    becomes meanwhile.
    """
    hands = (
        []
        if staff.is_alone
        else [
            Hand(number, staff.workers, directory, config, staff.isolate)
            for number in range(staff.workers)
        ]
    )
    if hands:
        # Or they could take an earlier chief's for that of this one.
        Post.path(directory.path).unlink(missing_ok=True)
    try:
        for hand in hands:
            hand.start()
        yield hands
    finally:
        for hand in hands:
            hand.kill()


class Hand:
    """A worker of this machine.

    Args:
        number: Among those of this machine, from 0; also its name.
        count: How many there are, which share the machine.
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
        directory: SearchDir,
        config: Config,
        isolate: bool,
    ) -> None:
        self.name = str(number)
        self.has_joined = False
        self.deaths = 0
        self._number = number
        self._count = count
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
        command += ["--name", self.name, "--parent", str(os.getpid())]
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
