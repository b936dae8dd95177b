"""Run a trial in a process of its own: what it takes of memory is gone when it ends.

It also keeps the search alive where a trial takes its process with it: the kernel kills what
uses too much memory, and a crash in native code cannot be caught.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer import errors
from trainer.errors import InterruptedRun, SearchError, TrainerError
from trainer.search.interruption import ending, interruptible, watch_parent
from trainer.search.trial import (
    MOST_ATTEMPTS,
    OutOfTime,
    TrialRequest,
    give_up,
    known_outcome,
    run_trial,
)
from trainer.search.trials import Outcome, Point, read_trial

# A crash in native code leaves its trace in the trial's log.
_COMMAND = (sys.executable, "-X", "faulthandler", "-m", "trainer", "tune-trial")
# A step, or the validation at the end of an epoch, is waited for.
_STOP_SECONDS = 120.0


def run_isolated(request: TrialRequest, command: Sequence[str]) -> Outcome:
    """Do what `run_trial` does, in a process of its own.

    A trial whose process dies is begun again, from its last checkpoint. One that dies
    several times in a row without a new checkpoint has failed.

    Raises:
        InterruptedRun, OutOfTime, TrainerError: As `run_trial` does.
    """
    while True:
        outcome = known_outcome(request)
        if outcome is not None:
            return outcome
        before = _trial_file(request)
        code, told = _run(request, command)
        if told:
            raise _error(told)
        begun = read_trial(request.path)
        if begun is None or _trial_file(request) == before:
            raise SearchError(
                f"{request.path}: the process that was to run this trial ended before it began "
                f"({ending(code)}). Its last words are in {_log(request)}"
            )
        if begun.outcome is None and begun.attempts >= MOST_ATTEMPTS:
            return give_up(request, _how_it_died(code))


def run_child() -> None:
    """Run the trial that standard input describes; the other side of `run_isolated`.

    An error is told on standard output.
    """
    asked = json.load(sys.stdin)
    request = TrialRequest(
        search=Path(asked["search"]),
        number=asked["number"],
        point=Point(**asked["point"]),
        worker=asked["worker"],
        deadline=asked["deadline"],
    )
    try:
        with interruptible(is_managed=True):
            watch_parent(asked["parent"])
            run_trial(request, asked["command"])
    except TrainerError as error:
        told: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
        if isinstance(error, InterruptedRun):
            told["signal"] = error.signal_number
        print(json.dumps(told))
        sys.exit(error.exit_code)


def _run(request: TrialRequest, command: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """Return how a child ended, and the error that it told."""
    asked = {
        "search": str(request.search),
        "number": request.number,
        "point": asdict(request.point),
        "worker": request.worker,
        "deadline": request.deadline,
        "command": list(command),
        "parent": os.getpid(),
    }
    request.path.mkdir(parents=True, exist_ok=True)
    with open(_log(request), "ab") as stderr:
        child = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # A Ctrl-C is for us, and we pass it on, once.
            start_new_session=True,
        )
    with child:
        try:
            out, _ = child.communicate(json.dumps(asked))
        except BaseException:
            _stop(child)
            raise
    last = (out.strip().splitlines() or [""])[-1]
    return child.returncode, json.loads(last) if last.startswith('{"error"') else {}


def _stop(child: subprocess.Popen[str]) -> None:
    """Have a child save a checkpoint and end."""
    try:
        child.terminate()
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also if a second signal came while we waited.
        child.kill()
        child.wait()


def _error(told: dict[str, Any]) -> TrainerError:
    name, message = told["error"], told["message"]
    if name == "InterruptedRun":
        return InterruptedRun(told["signal"], message)
    if name == "OutOfTime":
        return OutOfTime(message)
    kind = getattr(errors, name, SearchError)
    error: TrainerError = kind(message)
    return error


def _how_it_died(code: int) -> str:
    hint = ""
    if code == -signal.SIGKILL:
        hint = (
            ": most likely the system had no memory left. A smaller model or fit.batch_size, or "
            "fewer --workers, need less"
        )
    return f"its process died {MOST_ATTEMPTS} times in a row, at last of {ending(code)}{hint}"


def _log(request: TrialRequest) -> Path:
    return request.path / "trial.log"


def _trial_file(request: TrialRequest) -> bytes:
    path = request.path / "trial.json"
    return path.read_bytes() if path.exists() else b""
