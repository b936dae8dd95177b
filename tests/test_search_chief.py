"""The chief of a search and its workers, talking over a real port; the trials are stand-ins."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_searches import FakeTrials, load_search, wait_for

from trainer.config import Config, load_config
from trainer.config.schema import RuntimeConfig
from trainer.errors import InterruptedRun, SearchError
from trainer.search import chief as chief_module
from trainer.search import crew, distant, joining, launcher, shares
from trainer.search.chief import Chief, Event
from trainer.search.directory import SearchDir, begin
from trainer.search.distant import ChiefLost, Membership
from trainer.search.interruption import interruptible
from trainer.search.launcher import LOOPBACK, _Lead
from trainer.search.oracles import LastingOracle, open_oracle
from trainer.search.trial import TrialRequest
from trainer.search.trials import Outcome, read_trials
from trainer.search.wire import Post
from trainer.search.worker import work

CONDITIONAL = """\
    optimizer.momentum: {float: [0, 0.95], when: {optimizer.kind: sgd}}
    optimizer.learning_rate: {log_uniform: [1e-4, 1e-1]}
    optimizer.kind: {choice: [sgd, adam]}
"""


class Bench:
    """A search with a chief, and workers without beats of their own."""

    def __init__(self, folder: Path, *options: str, **more: Any) -> None:
        self.config: Config = load_search(folder, *options, **more)
        self.path = folder / "search"
        directory = begin(self.path, self.config, resume=False, restart=False)
        self.oracle: LastingOracle = open_oracle(self.config, directory)
        self.chief = Chief(self.oracle, self.path, LOOPBACK, ["trainer", "tune"])

    def member(self, worker: str, **more: Any) -> Membership:
        return Membership(self.chief.post.near_address, self.chief.post.token, worker, **more)


@pytest.fixture()
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, "max_trials: 4")
    with bench.chief:
        yield bench


@pytest.fixture()
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distant, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(distant, "LOST_SECONDS", 0.3)
    monkeypatch.setattr(chief_module, "SILENT_SECONDS", 0.3)


@contextmanager
def interrupted_by(**more: Any) -> Iterator[tuple[threading.Event, dict[str, Any]]]:
    """Stands for the main thread of a worker: what would interrupt it sets an event."""
    event = threading.Event()
    yield event, {**more, "interrupt": event.set}


def test_two_workers_finish_a_search_and_train_every_point_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "max_trials: 9")
    trials = FakeTrials()

    def serve(name: str) -> None:
        with bench.member(name) as member:
            work(member.oracle, bench.config, bench.path, name, trials)

    with bench.chief as chief:
        threads = [threading.Thread(target=serve, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        assert chief.is_done and chief.members == []
    records = read_trials(bench.path)
    assert len(records) == 9 and all(record.outcome for record in records)
    assert len(set(trials.trained)) == len(trials.trained) == 9
    assert {t.score for t in bench.oracle.trials.values()} == {
        record.outcome.score for record in records if record.outcome
    }


def test_a_point_comes_over_the_wire_exactly_and_its_conditions_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "max_trials: 6", space=CONDITIONAL)
    trials = FakeTrials()

    with bench.chief, bench.member("a") as member:
        work(member.oracle, bench.config, bench.path, "a", trials)

    chosen = [dict(t.hyperparameters.values) for t in bench.oracle.trials.values()]
    found = [dict(record.point.values) for record in read_trials(bench.path)]
    assert found == chosen
    assert any("optimizer.momentum" in values for values in found)
    for values in found:
        names = list(values)
        if "optimizer.momentum" in values:
            assert names.index("optimizer.kind") < names.index("optimizer.momentum")


def test_a_worker_without_a_sign_of_life_loses_its_trial_to_another(
    bench: Bench, hurried: None
) -> None:
    silent, other = bench.member("silent"), bench.member("other")
    trial = silent.oracle.create_trial("silent")
    wait_for(lambda: "silent" in bench.chief.silent())

    bench.chief.drop("silent")

    taken = other.oracle.create_trial("other")
    assert taken.trial_id == trial.trial_id
    assert taken.hyperparameters.values == trial.hyperparameters.values


def test_a_worker_that_was_given_up_can_neither_report_nor_get_a_trial(bench: Bench) -> None:
    late = bench.member("late")
    trial = late.oracle.create_trial("late")
    bench.chief.drop("late")

    with pytest.raises(ChiefLost):
        late.oracle.update_trial(trial.trial_id, {"val_accuracy": 0.9})
    with pytest.raises(ChiefLost):
        late.oracle.create_trial("late")

    assert not bench.oracle.trials[trial.trial_id].metrics.exists("val_accuracy")


def test_a_report_on_a_trial_of_another_worker_changes_nothing(bench: Bench) -> None:
    first, second = bench.member("first"), bench.member("second")
    trial = first.oracle.create_trial("first")
    bench.chief.drop("first")
    second.oracle.create_trial("second")
    first = bench.member("first")

    first.oracle.update_trial(trial.trial_id, {"val_accuracy": 0.9})
    trial.status = "COMPLETED"
    first.oracle.end_trial(trial)

    assert bench.oracle.ongoing_trials["second"].trial_id == trial.trial_id
    assert bench.oracle.trials[trial.trial_id].status == "RUNNING"


def test_a_worker_waits_as_long_as_a_trial_of_another_could_come_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "max_trials: 1")
    with bench.chief:
        busy, waiting = bench.member("busy"), bench.member("waiting")
        trial = busy.oracle.create_trial("busy")
        assert waiting.oracle.create_trial("waiting").status == "IDLE"

        bench.chief.drop("busy")

        assert waiting.oracle.create_trial("waiting").trial_id == trial.trial_id
        waiting.oracle.update_trial(trial.trial_id, {"val_accuracy": 0.5})
        trial.status = "COMPLETED"
        waiting.oracle.end_trial(trial)
        assert waiting.oracle.create_trial("waiting").status == "STOPPED"


def test_signs_of_life_keep_a_worker_and_its_end_gives_its_trial_back(
    bench: Bench, hurried: None
) -> None:
    with bench.member("a") as member:
        trial = member.oracle.create_trial("a")
        time.sleep(0.6)
        assert bench.chief.silent() == [] and bench.chief.members == ["a"]

    assert bench.chief.members == []
    assert bench.member("b").oracle.create_trial("b").trial_id == trial.trial_id


def test_a_worker_is_interrupted_when_the_chief_says_so(bench: Bench, hurried: None) -> None:
    with interrupted_by() as (event, more), bench.member("a", **more) as member:
        bench.chief.stop()

        assert event.wait(5) and member.stopped == "told"


def test_a_worker_that_was_given_up_is_interrupted(bench: Bench, hurried: None) -> None:
    with interrupted_by() as (event, more), bench.member("a", **more) as member:
        bench.chief.drop("a")

        assert event.wait(5) and member.stopped == "forgotten"


def test_a_worker_without_an_answer_is_interrupted(bench: Bench, hurried: None) -> None:
    with interrupted_by() as (event, more), bench.member("a", **more) as member:
        bench.chief._server.stop(grace=0).wait()

        assert event.wait(5) and member.stopped == "lost"


def test_a_worker_whose_parent_is_gone_is_interrupted(bench: Bench, hurried: None) -> None:
    with interrupted_by(parent=1) as (event, more), bench.member("a", **more) as member:
        assert event.wait(5) and member.stopped == "orphan"


def test_an_interruption_ends_the_call_under_way_in_the_main_thread() -> None:
    with pytest.raises(InterruptedRun) as caught, interruptible():
        threading.Timer(0.1, distant.interrupt_main).start()
        threading.Event().wait(20)

    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_oracle_that_fails_hangs_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(trial_id: str) -> dict[str, Any]:
        raise ArithmeticError("no such point")

    monkeypatch.setattr(bench.oracle, "populate_space", fail)
    members = [bench.member("a"), bench.member("b")]
    began = time.monotonic()

    for member in members * 2:
        with pytest.raises(ChiefLost):
            member.oracle.create_trial(member.worker)

    assert time.monotonic() - began < 5
    assert isinstance(bench.chief.error, ArithmeticError)


def test_the_launcher_ends_with_the_error_of_its_oracle(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.chief as chief:
        chief.error = ArithmeticError("no such point")
        chief.events.put(Event("failed", "a"))

        with pytest.raises(ArithmeticError):
            lead_with(bench)


def test_a_chief_listens_on_the_loopback_unless_told_otherwise(bench: Bench) -> None:
    host, port = bench.chief.post.address.split(":")

    assert host == "127.0.0.1"
    assert socket.create_connection((host, int(port)), timeout=5).close() is None
    # As much this machine as 127.0.0.1 is, and not listened on.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=5)


def test_a_port_that_is_taken_is_said(bench: Bench) -> None:
    with pytest.raises(SearchError, match=r"--listen 127\.0\.0\.1:\d+: .*another port"):
        Chief(bench.oracle, bench.path, bench.chief.post.address)


@pytest.mark.parametrize("address", ["4000", "localhost", "localhost:x", ":4000"])
def test_an_address_without_host_or_port_is_refused(address: str, bench: Bench) -> None:
    with pytest.raises(SearchError, match="HOST:PORT"):
        Chief(bench.oracle, bench.path, address)


def test_what_lets_workers_in_is_for_the_eyes_of_this_user_alone(bench: Bench) -> None:
    assert Post.path(bench.path).stat().st_mode & 0o077 == 0


def test_a_worker_with_the_folder_of_another_search_is_refused(
    bench: Bench, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    Post.new(bench.chief.post.address).write(other)

    with pytest.raises(SearchError, match=r"other: .*runs another search"):
        joining.join(bench.chief.post.near_address, other)

    assert bench.chief.members == []


def test_a_worker_that_means_another_search_is_refused_and_told_what_differs(
    bench: Bench,
) -> None:
    other = load_config(bench.path / "config.yaml", ["search.objective=val_loss"])

    with pytest.raises(SearchError, match=r"search.objective was 'val_accuracy' and is 'val_loss'"):
        joining.join(bench.chief.post.near_address, bench.path, other)


def test_a_worker_waits_for_no_chief_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "_FIRST_SECONDS", 0.2)
    monkeypatch.setattr(joining, "_TRY_SECONDS", 0.1)

    with pytest.raises(SearchError, match="no chief has written into this folder"):
        joining.join("127.0.0.1:1", tmp_path)
    Post.new("127.0.0.1:1").write(tmp_path)
    with pytest.raises(SearchError, match=r"no chief answers on 127\.0\.0\.1:1"):
        joining.join("127.0.0.1:1", tmp_path)


def test_a_worker_comes_back_to_a_chief_that_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, "max_trials: 3")
    trials, gone = FakeTrials(), threading.Event()

    def run(request: TrialRequest, command: list[str]) -> Outcome:
        if not gone.is_set():
            first._server.stop(grace=0).wait()
            gone.set()
        return trials(request)

    monkeypatch.setattr(joining, "_TRY_SECONDS", 0.1)
    monkeypatch.setattr(joining, "run_trial", run)
    monkeypatch.setattr(joining, "Membership", partial(Membership, interrupt=lambda: None))
    first = bench.chief
    first.__enter__()
    counts: list[int] = []
    join = partial(joining.join, first.post.near_address, bench.path, worker="a")
    thread = threading.Thread(target=lambda: counts.append(join()))
    thread.start()
    assert gone.wait(20)
    directory = SearchDir(bench.path)
    with Chief(open_oracle(bench.config, directory), bench.path, first.post.near_address) as second:
        thread.join(20)

        assert second.is_done
    assert counts == [3] and len(set(trials.trained)) == len(trials.trained) == 3


def test_a_worker_does_not_wait_for_a_chief_that_has_ended_the_search(bench: Bench) -> None:
    replace(bench.chief.post, is_open=False).write(bench.path)

    found = joining._come("127.0.0.1:1", bench.path, "a", None, 60.0, is_first=False)

    assert found is None


@dataclass
class StandIn:
    """A worker process of this machine that has ended."""

    name: str
    has_joined: bool = True
    has_ended: bool = True
    deaths: int = 0
    starts: int = 0
    seconds: float = 0.0
    ending: str = "SIGKILL"
    log: Path = Path("0.log")

    def start(self) -> None:
        self.starts += 1


def lead_with(bench: Bench, *crew: StandIn, listen: str | None = None) -> list[str]:
    told: list[str] = []
    hands: Any = list(crew)
    _Lead(bench.chief, hands, listen, None, told.append).see_to_the_end()
    return told


def test_what_every_trial_of_this_machine_would_meet_ends_the_search(bench: Bench) -> None:
    bench.chief.events.put(Event("left", "0", "no images", exit_code=2))

    with pytest.raises(SearchError, match=r"^no images$") as caught:
        lead_with(bench, StandIn("0"))

    assert caught.value.exit_code == 2


def test_a_machine_that_lacks_something_does_not_end_the_search_of_others(bench: Bench) -> None:
    bench.chief.events.put(Event("left", "far", "no images", exit_code=2))
    bench.chief.close()

    assert lead_with(bench, listen=LOOPBACK) == ["worker far has gone: no images"]


def test_a_worker_that_dies_again_and_again_is_given_up_and_named(bench: Bench) -> None:
    hand = StandIn("0")
    bench.member("0").oracle.create_trial("0")

    with pytest.raises(SearchError, match=r"worker 0 has ended \(SIGKILL\).*5 times.*0\.log"):
        lead_with(bench, hand)

    assert hand.starts == 4
    assert len(bench.oracle._retry_queue) == 1


def test_a_chief_alone_waits_for_no_worker_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_LONELY_SECONDS", 0.1)

    with pytest.raises(SearchError, match="there was no worker for"):
        lead_with(bench, listen=LOOPBACK)


def test_cores_are_divided_unless_the_user_has_said_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shares, "num_cores", lambda: 8)
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")

    environment = shares.environment_of(0, 3, RuntimeConfig(devices="cpu"))

    assert environment["TF_NUM_INTRAOP_THREADS"] == "2"
    assert environment["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(
    ("workers", "devices", "expected"),
    [
        (2, "auto", ["0,1", "2,3"]),
        (3, "auto", ["0", "1", "2"]),  # equal shares: scores are compared
        (8, "auto", ["0", "1", "2", "3", "0", "1", "2", "3"]),
        (2, 2, ["0,1", "2,3"]),
        (3, 2, ["0,1", "2,3", "0,1"]),
        (2, "cpu", [None, None]),
    ],
)
def test_gpus_are_divided_evenly(
    workers: int,
    devices: Any,
    expected: list[str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(shares, "nvidia_gpus", lambda: [None] * 4)

    found = [
        shares.environment_of(i, workers, RuntimeConfig(devices=devices)).get(
            "CUDA_VISIBLE_DEVICES"
        )
        for i in range(workers)
    ]

    assert found == expected


def test_only_gpus_that_the_user_has_left_visible_are_divided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")

    found = [shares.environment_of(i, 2, RuntimeConfig()) for i in range(2)]

    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["2", "5"]


def test_workers_cannot_take_an_earlier_chief_for_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_search(tmp_path)
    directory = SearchDir(tmp_path / "search")
    directory.path.mkdir()
    # In a container, and in a process that searches twice, the number is the same.
    replace(Post.new("127.0.0.1:1"), is_open=False).write(directory.path)
    seen = []
    monkeypatch.setattr(crew.Hand, "start", lambda self: seen.append(Post.read(directory.path)))

    with crew.started(directory, config, crew.Staff(2)):
        pass

    assert seen == [None, None]


def test_a_worker_waits_for_the_chief_that_its_parent_becomes(bench: Bench) -> None:
    post = bench.chief.post

    assert joining._address_of(post.pid, bench.path) is None, "this process is not its parent"
    replace(post, address="0.0.0.0:4000", pid=os.getppid()).write(bench.path)
    assert joining._address_of(os.getppid(), bench.path) == "127.0.0.1:4000"
