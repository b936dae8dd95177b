"""What the benchmarks share: contestants that take turns, and ratios of them.

Absolute times drift on a shared machine, so nothing is measured alone. Each contestant is
a process that builds, compiles and warms up once and then waits, idle, for its turns:
round 1 is A B C, round 2 is B C A, and so on. Contestants are compared within a round.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from trainer.config import Config, load_config

SCRIPTS = Path(__file__).resolve().parent
# One step in ten records every statistic: the warm-up reaches the second.
_WARM_UP_STEPS = 12
_SETTLE_SECONDS = 0.1


def _each_stage(key: str, *values: int) -> list[str]:
    return [f"model.stages.{index}.{key}={value}" for index, value in enumerate(values)]


NETWORKS: dict[str, Sequence[str]] = {
    "plain20": ["model.block.kind=plain"],
    "resnet20": [],
    "resnet56": _each_stage("blocks", 9, 9, 9),
    "resnet20-wide": ["model.stem.filters=64", *_each_stage("filters", 64, 128, 256)],
}
"""Overrides over `configs/base_cifar10.yaml`: trained with SGD, which PyTorch has, too."""


class LeftOutError(Exception):
    """A contestant cannot take part; the message says why."""


@dataclass(frozen=True)
class Turn:
    """What one turn took.

    Attributes:
        steps: Training steps.
        wall_seconds: From the first step to the device being done with the last.
        cpu_seconds: User and system time of all threads, waiting between turns included.
        peak_mib: Largest resident set of the process so far.
    """

    steps: int
    wall_seconds: float
    cpu_seconds: float
    peak_mib: float

    @property
    def step_seconds(self) -> float:
        """Wall seconds of one step."""
        return self.wall_seconds / self.steps


@dataclass
class Contestant:
    """One process that trains when it is its turn.

    Attributes:
        name: In the tables.
        command: Starts a program that speaks as `turns.Turns` does.
        spec: What it is to train.
        facts: What it said of itself: device and versions.
        startup_seconds: From the start of the process to the end of the first step.
        fit_seconds: From the call of `fit` to the end of the first step.
        first_step_seconds: The first step alone: tracing, compiling, training.
        turns: Those that count.
        results: What it said at its end.
    """

    name: str
    command: list[str]
    spec: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    startup_seconds: float = math.nan
    fit_seconds: float = math.nan
    first_step_seconds: float = math.nan
    turns: list[Turn] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None
    _errors: IO[str] | None = None

    def start(self) -> None:
        """Start the process and take the first step.

        Raises:
            LeftOutError: If the contestant says that it cannot take part.
            RuntimeError: If its process fails.
        """
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        started = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                # The first GPU alone: not every contestant would use several.
                env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "CUDA_VISIBLE_DEVICES": gpu},
            )
        except OSError as error:
            raise LeftOutError(f"its program does not start: {error}") from error
        self.facts = self._ask(json.dumps(self.spec))
        until_fit = time.perf_counter() - started
        if "left_out" in self.facts:
            raise LeftOutError(self.facts["left_out"])
        self.first_step_seconds = self.take_turn(1).wall_seconds
        self.startup_seconds = until_fit + self.first_step_seconds
        self.fit_seconds = self.facts.pop("fit_seconds") + self.first_step_seconds

    def take_turn(self, steps: int) -> Turn:
        """Train some steps while everyone else waits."""
        # 0 would end the process, and it would never come to fewer.
        if steps < 1:
            raise ValueError(f"a turn has at least 1 step. Received: steps={steps}")
        return Turn(**self._ask(str(steps)))

    def finish(self) -> None:
        """Take the results and end the process."""
        self.results = self._ask("0")
        if self._process is not None:
            self._process.wait(60)

    def stop(self) -> None:
        """End the process, whatever it does; harmless before `start` and after `finish`."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._errors is not None:
            self._errors.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process and self._process.stdin and self._process.stdout and self._errors
        with suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            self._errors.seek(0)
            tail = "\n".join(self._errors.read().splitlines()[-15:])
            raise RuntimeError(f"the process of {self.name} ended early:\n{tail}")
        return json.loads(reply)


def keras_contestant(name: str, config: Config, **spec: Any) -> Contestant:
    """Return a contestant of `keras_contestant.py`, which documents the spec."""
    command = [sys.executable, str(SCRIPTS / "keras_contestant.py")]
    return Contestant(name, command, {"config": config.model_dump(mode="json"), **spec})


def load_network(name: str, overrides: Sequence[str]) -> Config:
    """Return one of `NETWORKS` with overrides laid over it."""
    return load_shipped("base_cifar10.yaml", [*NETWORKS[name], *overrides])


def load_shipped(file: str, overrides: Sequence[str]) -> Config:
    """Return a shipped config with overrides laid over it."""
    return load_config(SCRIPTS.parent / "configs" / file, overrides)


def compete(
    contestants: Sequence[Contestant],
    rounds: int,
    steps: int | None = None,
    *,
    multiple: int = 10,
    turn_seconds: float = 2.5,
) -> list[Contestant]:
    """Let the contestants take turns and return those that took part, in their order.

    Args:
        contestants: Not yet started.
        rounds: Turns of each.
        steps: Of a turn; None is what lasts about `turn_seconds`.
        multiple: See `choose_steps`.
        turn_seconds: See `steps`.
    """
    present = []
    try:
        for contestant in contestants:
            say(f"  {contestant.name}: building and warming up")
            try:
                contestant.start()
            except LeftOutError as error:
                say(f"  {contestant.name} is left out: {error}")
                continue
            present.append(contestant)
        warm = [contestant.take_turn(_WARM_UP_STEPS) for contestant in present]
        if warm:
            median = statistics.median(turn.step_seconds for turn in warm)
            steps = steps or choose_steps(median, turn_seconds, multiple)
            say(f"  {rounds} rounds of {steps} steps, about {steps * median:.1f} s a turn")
        for number in range(rounds):
            for contestant in rotated(present, number):
                time.sleep(_SETTLE_SECONDS)
                contestant.turns.append(contestant.take_turn(steps or 1))
        for contestant in present:
            contestant.finish()
    finally:
        for contestant in contestants:
            contestant.stop()
    return present


def choose_steps(step_seconds: float, turn_seconds: float, multiple: int) -> int:
    """Return how many steps a turn has.

    Args:
        step_seconds: Of a usual contestant.
        turn_seconds: About what a turn should last.
        multiple: Whole multiples of it are taken where a turn is that long: what comes
            round every so many steps is then in every turn.
    """
    steps = turn_seconds / step_seconds
    return max(1, math.ceil(steps) if steps < multiple else math.ceil(steps / multiple) * multiple)


def rotated(items: Sequence[Any], number: int) -> list[Any]:
    """Return the order of a round: each round, another one begins."""
    shift = number % len(items) if items else 0
    return [*items[shift:], *items[:shift]]


def median_of(contestant: Contestant, value: Callable[[Turn], float]) -> float:
    """Return the median of a figure over the turns."""
    return statistics.median(map(value, contestant.turns))


def ratios(
    first: Contestant, second: Contestant, value: Callable[[Turn], float]
) -> tuple[float, float, float]:
    """Return median, smallest and largest of first over second, round by round."""
    pairs = zip(first.turns, second.turns, strict=True)
    found = [value(ours) / value(theirs) for ours, theirs in pairs]
    return statistics.median(found), min(found), max(found)


def total_ratio(
    first: Contestant, second: Contestant, value: Callable[[Turn], float], resamples: int = 2000
) -> tuple[float, float, float]:
    """Return the sum of first over that of second, and its 95 % interval.

    The interval is a bootstrap over rounds (Efron 1979): drawn with replacement, both
    contestants of a round together, because they have its disturbance in common.
    """
    pairs = [(value(a), value(b)) for a, b in zip(first.turns, second.turns, strict=True)]

    def ratio(chosen: Sequence[tuple[float, float]]) -> float:
        return sum(ours for ours, _ in chosen) / sum(theirs for _, theirs in chosen)

    generator = random.Random(0)
    drawn = sorted(ratio(generator.choices(pairs, k=len(pairs))) for _ in range(resamples))
    cut = round(0.025 * resamples)
    return ratio(pairs), drawn[cut], drawn[-1 - cut]


def say(message: str) -> None:
    """Print a line of progress."""
    print(message, file=sys.stderr, flush=True)
