"""A trial in a process of its own can die of anything, and the search goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import environment
from tiny_searches import load_search, wait_for

from trainer.errors import DataError, InterruptedRun, SearchError
from trainer.run_dir import is_alive, read_json
from trainer.search import isolation
from trainer.search.crew import Staff
from trainer.search.directory import SearchDir, begin
from trainer.search.isolation import run_isolated
from trainer.search.searching import search
from trainer.search.trial import OutOfTime, TrialRequest
from trainer.search.trials import Point, read_trial

RATES = "    optimizer.learning_rate: {choice: [1e-2, 3e-3]}\n"
# The trial with the larger rate does what exhausted memory does.
DIES_OF_ITS_RATE = """
import os, signal
from trainer.search import isolation, trial
train_under = trial.train_under
def train_or_die(supervision, run, config, data, **more):
    if config.optimizer.learning_rate == 1e-2:
        os.kill(os.getpid(), signal.SIGKILL)
    train_under(supervision, run, config, data, **more)
trial.train_under = train_or_die
isolation.run_child()
"""
BEGINS = """
import json, os, signal, sys
from pathlib import Path
from trainer.run_dir import read_json
from trainer.search.trials import Point, write_trial
asked = json.load(sys.stdin)
[path] = Path(asked["search"]).glob("trials/*")
known = path / "trial.json"
attempts = read_json(known)["attempts"] if known.exists() else 0
write_trial(path, 0, Point(**asked["point"]), "0", attempts=attempts + 1)
"""
PARENT = """
import os, subprocess, sys
asked = sys.argv[1].replace('"PARENT"', str(os.getpid()))
command = [sys.executable, "-m", "trainer", "tune-trial"]
child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
print(child.pid, flush=True)
child.communicate(asked)
"""


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-c", program)


def request_in(folder: Path, epochs: int = 1) -> TrialRequest:
    config = load_search(folder, "algorithm: grid", space=RATES)
    directory: SearchDir = begin(folder / "search", config, resume=False, restart=False)
    return TrialRequest(directory.path, 0, Point({"optimizer.learning_rate": 3e-3}, epochs))


def test_a_trial_that_is_killed_gets_an_outcome_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "_COMMAND", python(DIES_OF_ITS_RATE))
    monkeypatch.setattr(isolation, "MOST_ATTEMPTS", 1)
    config = load_search(tmp_path, "algorithm: grid", "objective: val_loss", space=RATES)
    config = config.model_copy(update={"fit": config.fit.model_copy(update={"epochs": 1})})

    results = search(
        config,
        tmp_path / "search",
        resume=False,
        restart=False,
        command=["trainer", "tune"],
        staff=Staff(isolate=True),
    )

    killed, done = (trial.outcome for trial in results.trials)
    assert killed is not None and (killed.state, killed.cause) == ("failed", "killed")
    assert "SIGKILL" in killed.reason and "memory" in killed.reason
    assert done is not None and done.state == "done"
    assert results.best is results.trials[1]


def test_a_trial_that_kills_its_process_is_begun_again_twice_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_in(tmp_path)
    monkeypatch.setattr(isolation, "_COMMAND", python(f"{BEGINS}os.kill(os.getpid(), 11)"))

    outcome = run_isolated(request, ["trainer", "tune"])

    assert outcome.cause == "killed"
    assert "3 times in a row, at last of SIGSEGV" in outcome.reason
    assert "memory" not in outcome.reason
    trial = read_trial(request.path)
    assert trial is not None and trial.outcome == outcome


def test_a_process_that_cannot_even_begin_ends_the_search_and_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_in(tmp_path)
    monkeypatch.setattr(isolation, "_COMMAND", python("import no_such_module"))

    with pytest.raises(SearchError, match=r"exit code 1.*trial\.log"):
        run_isolated(request, ["trainer", "tune"])

    assert "no_such_module" in (request.path / "trial.log").read_text()


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"error": "DataError", "message": "no images"}, DataError),
        ({"error": "OutOfTime", "message": "no time"}, OutOfTime),
        ({"error": "InterruptedRun", "message": "stop", "signal": 15}, InterruptedRun),
        ({"error": "NoSuchError", "message": "odd"}, SearchError),
    ],
)
def test_an_error_that_ends_a_search_comes_out_of_the_process(
    told: dict[str, object],
    kind: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = f"import sys; print('noise'); print('''{json.dumps(told)}'''); sys.exit(2)"
    monkeypatch.setattr(isolation, "_COMMAND", python(program))

    with pytest.raises(kind, match=str(told["message"])):
        run_isolated(request_in(tmp_path), ["trainer", "tune"])


def test_a_trial_stops_with_a_checkpoint_when_the_process_that_began_it_is_gone(
    tmp_path: Path,
) -> None:
    request = request_in(tmp_path, epochs=2000)
    asked = {
        "search": str(request.search),
        "number": 0,
        "point": {"values": dict(request.point.values), "epochs": 2000, "parent_epochs": 0},
        "worker": "0",
        "deadline": None,
        "command": ["trainer"],
        "parent": "PARENT",
    }
    with open(tmp_path / "noise", "w") as noise:
        parent = subprocess.Popen(
            [*python(PARENT), json.dumps(asked)],
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            env=environment(),
        )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    wait_for(lambda: list(request.path.glob("checkpoints/step-*.npz")))
    parent.kill()
    parent.wait()
    parent.stdout.close()

    wait_for(lambda: not is_alive(child), seconds=20)

    told = read_json(request.path / "trial.json")
    status = read_json(request.path / "status.json")
    assert (told["attempts"], status["state"]) == (0, "interrupted")
    assert "after step" in status["reason"]


def test_an_interruption_is_passed_on_to_the_process_of_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = (
        "signal.signal(15, lambda *_: (open(path / 'saved', 'w').close(), os._exit(143)))\n"
        "os.kill(asked['parent'], 15)\n"
        "signal.pause()"
    )
    monkeypatch.setattr(isolation, "_COMMAND", python(f"{BEGINS}{waits}"))
    request = request_in(tmp_path)

    with pytest.raises(InterruptedRun), isolation.interruptible():
        run_isolated(request, ["trainer", "tune"])

    assert (request.path / "saved").exists()
