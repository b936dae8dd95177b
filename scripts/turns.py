"""The contestant's end of a benchmark: wait for a turn, train, report, wait again.

`benchmarking.py` holds the other end. Only the standard library is used, so that any
interpreter can be a contestant. One JSON object a line: the spec comes first, then the
number of steps of each turn, 0 for the end; back go the facts before training, the
measurements of each turn, and the results at the end.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

NEEDS_TORCH = (
    "its interpreter cannot import torch. Install it there (pip install '.[benchmark]'; the CPU "
    "build is enough), or name one that has it: --torch-python PATH"
)


class TurnsOver(Exception):
    """Raised in `Turns.before_step` when no further turn will come."""


class Turns:
    """Reads what to train, and stops the training between turns.

    Attributes:
        spec: What the benchmark asks of this contestant.
    """

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w", buffering=1)
        # What a library prints must not get between the replies.
        os.dup2(2, 1)
        self.spec: dict[str, Any] = json.loads(sys.stdin.readline())
        self._steps = 0
        self._left = 0
        self._facts: dict[str, Any] | None = None
        self._started = 0.0
        self._cpu_seconds = 0.0

    def decline(self, reason: str) -> NoReturn:
        """Say why this contestant cannot take part, and leave."""
        self._reply(left_out=reason)
        sys.exit(0)

    def ready(self, **facts: Any) -> None:
        """Note the facts (versions, device); call it directly before training starts."""
        self._facts = facts
        self._started = time.perf_counter()

    def before_step(self, synchronize: Callable[[], object]) -> None:
        """Call it before each step; it returns when the step may be taken.

        Args:
            synchronize: Called at the end of a turn; waits until the device is done.

        Raises:
            TurnsOver: Instead of a further step.
        """
        if self._left == 0:
            synchronize()
            self._report()
            self._steps = self._left = int(sys.stdin.readline() or 0)
            if self._steps == 0:
                raise TurnsOver
            self._started = time.perf_counter()
        self._left -= 1

    def leave(self, **results: Any) -> None:
        """Report what was found over all turns."""
        self._reply(**results)

    def _report(self) -> None:
        wall_seconds = time.perf_counter() - self._started
        if self._facts is not None:
            self._reply(fit_seconds=wall_seconds, **self._facts)
            self._facts = None
            return
        # Since the end of the turn before: batches that were prepared between turns count.
        cpu_seconds, before = time.process_time(), self._cpu_seconds
        self._cpu_seconds = cpu_seconds
        self._reply(
            steps=self._steps,
            wall_seconds=wall_seconds,
            cpu_seconds=cpu_seconds - before,
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )

    def _reply(self, **values: Any) -> None:
        self._replies.write(json.dumps(values) + "\n")
