"""The chief as its workers see it: its oracle, and a place among those that it knows."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple

import grpc  # type: ignore[import-untyped]
from keras_tuner import HyperParameters
from keras_tuner.engine.trial import Trial
from keras_tuner.src.distribute.oracle_client import OracleClient
from keras_tuner.src.protos import get_service_grpc

from trainer.errors import InterruptedRun
from trainer.search.interruption import has_lost, interrupt_main
from trainer.search.trial import OutOfTime
from trainer.search.wire import (
    BEAT_SECONDS,
    LOST_SECONDS,
    SERVICE,
    TOKEN_KEY,
    WORKER_KEY,
    decode,
    encode,
)

_CALL_SECONDS = 5.0
# Of a call that may have to wait for others and for an oracle that thinks. Whether the chief
# lives is told by the beats.
_TRIAL_CALL_SECONDS = 600.0
_UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_CHANNEL = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000))


class ChiefLost(Exception):
    """The chief does not answer, or does not know this worker any more."""


class Membership:
    """A worker's place in a search, from `with` to its end.

    Within it, signs of life are sent from a thread of its own. When the chief is lost, has
    given this worker up, or says so, that thread interrupts the main one.

    Args:
        address: Of the chief.
        token: That it wrote into the folder of the search.
        worker: A name that no other worker has.
        parent: The process that started this one, if it shall not outlive it.
        interrupt: Ends what the worker does.

    Attributes:
        stopped: Why the worker was interrupted from here: `told` to stop, an `orphan`,
            `lost` the chief, or `forgotten` by it. None if it was not.
        command: The command line of the chief.
        deadline: As `time.time()` of this machine; see `TrialRequest`.

    Raises:
        ChiefLost: If there is no chief at this address.
        grpc.RpcError: If it does not let this worker in.
    """

    def __init__(
        self,
        address: str,
        token: str,
        worker: str,
        parent: int | None = None,
        interrupt: Callable[[], None] = interrupt_main,
    ) -> None:
        self.worker = worker
        self.stopped: str | None = None
        self._parent = parent
        self._interrupt = interrupt
        self._is_over = threading.Event()
        self._channel = grpc.insecure_channel(address, options=_CHANNEL)
        passed = grpc.intercept_channel(self._channel, _Pass(token, worker))
        self.oracle = DistantOracle(passed, worker)
        self._ask = {
            name: passed.unary_unary(
                f"/{SERVICE}/{name}", request_serializer=encode, response_deserializer=decode
            )
            for name in ("Join", "Beat", "Leave")
        }
        try:
            welcome = self._ask["Join"]({}, timeout=_CALL_SECONDS)
        except grpc.RpcError:
            self._channel.close()
            raise
        self.command: list[str] = welcome["command"]
        left = welcome["seconds_left"]
        self.deadline = None if left is None else time.time() + left
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Membership:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()
        is_out_of_time = isinstance(error, OutOfTime)
        farewell: dict[str, Any] = {"is_out_of_time": is_out_of_time, "reason": "", "exit_code": 0}
        if isinstance(error, InterruptedRun):
            farewell["reason"] = f"interrupted by {signal.Signals(error.signal_number).name}"
        elif error is not None and not is_out_of_time:
            farewell["reason"] = str(error) or type(error).__name__
            farewell["exit_code"] = getattr(error, "exit_code", 0)
        with suppress(grpc.RpcError):
            self._ask["Leave"](farewell, timeout=_CALL_SECONDS)
        self._channel.close()

    def _beat(self) -> None:
        answered = time.monotonic()
        while not self._is_over.wait(BEAT_SECONDS):
            if has_lost(self._parent):
                return self._stop("orphan")
            try:
                answer = self._ask["Beat"]({}, timeout=_CALL_SECONDS)
                answered = time.monotonic()
            except grpc.RpcError as error:
                if error.code() not in _UNANSWERED:
                    return self._stop("forgotten")
                if time.monotonic() - answered > LOST_SECONDS:
                    return self._stop("lost")
                continue
            if answer["stop"]:
                return self._stop("told")
        return None

    def _stop(self, why: str) -> None:
        self.stopped = why
        self._interrupt()


class DistantOracle(OracleClient):
    """keras-tuner's client, which loses a chief instead of waiting an hour for it."""

    def __init__(self, channel: grpc.Channel, worker: str) -> None:
        # Not theirs, which takes the address from the environment.
        self.stub = get_service_grpc().OracleStub(channel)
        self.tuner_id = worker
        self.multi_worker = False
        self.should_report = True

    def create_trial(self, tuner_id: str) -> Trial:
        with _losing():
            return super().create_trial(tuner_id)

    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        with _losing():
            return super().update_trial(trial_id, metrics, step)

    def end_trial(self, trial: Trial) -> None:
        # The chief knows its values, and to send them prints some of them.
        bare = Trial(HyperParameters(), trial.trial_id, trial.status)
        with _losing():
            super().end_trial(bare)


@contextmanager
def _losing() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise ChiefLost(str(error.details())) from error


class _Pass(grpc.UnaryUnaryClientInterceptor):
    """Shows the token with every call, and lets none wait for an hour."""

    def __init__(self, token: str, worker: str) -> None:
        self._metadata = ((TOKEN_KEY, token), (WORKER_KEY, worker))

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: Any, request: Any
    ) -> Any:
        timeout = min(details.timeout, _TRIAL_CALL_SECONDS)
        changed = _Details(details.method, timeout, self._metadata)
        return continuation(changed, request)


class _Details(NamedTuple):
    """Of a call, as gRPC reads them."""

    method: str
    timeout: float
    metadata: tuple[tuple[str, str], ...]
    credentials: None = None
    wait_for_ready: bool = False
    compression: None = None
