"""The chief of a search: it holds the oracle, and answers workers of this and other machines.

The trials go over keras-tuner's own service. Its server waits for ever for a worker that
died, and an exception in it leaves a lock behind on which all others hang; so the server is
ours, and every call goes through one door that lets in members alone, one at a time.
"""

from __future__ import annotations

import hmac
import io
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc  # type: ignore[import-untyped]
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.protos import get_service, get_service_grpc

from trainer.errors import SearchError
from trainer.search.oracles import LastingOracle
from trainer.search.wire import (
    SERVICE,
    SILENT_SECONDS,
    TOKEN_KEY,
    WORKER_KEY,
    Post,
    decode,
    encode,
    split_address,
)

# A worker has two calls under way at most, and a sign of life must not wait for an oracle
# that thinks about the next point. A thread is made when it is needed.
_MOST_CALLS = 256


@dataclass(frozen=True)
class Event:
    """What a worker did.

    Attributes:
        kind: `joined`; `ended` a trial; `left` of its own accord; or asked something that the
            oracle `failed` of.
        worker: Its name.
        reason: Why it left, for people; empty if it had nothing more to do.
        exit_code: Of the error that every trial of it would meet, 0 if there was none.
    """

    kind: str
    worker: str
    reason: str = ""
    exit_code: int = 0


class Chief:
    """A server for the workers of one search, from `with` to its end.

    Args:
        oracle: Chooses the points.
        search: The folder of the search, which this process holds.
        listen: `HOST:PORT`; port 0 takes a free one.
        command: The command line, for the trials' `environment.json`.
        deadline: As `time.time()`, until which trials run; None for no limit.
    """

    def __init__(
        self,
        oracle: LastingOracle,
        search: Path,
        listen: str,
        command: Sequence[str] = (),
        deadline: float | None = None,
    ) -> None:
        self.oracle = oracle
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.error: Exception | None = None
        self._search = search
        self._command = list(command)
        self._deadline = deadline
        self._servicer = _Trials(self)
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_stopping = False
        host, port = split_address(listen, "--listen")
        self._server = grpc.server(
            ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="chief"),
            interceptors=(_Door(self),),
            # Or two chiefs could listen on one port, and share its callers.
            options=[("grpc.so_reuseport", 0)],
        )
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise SearchError(
                f"--listen {listen}: this process cannot listen there. Choose another port, "
                "or 0 for any free one, and an address of this machine"
            ) from None
        self.post = Post.new(f"{host}:{bound}")
        get_service_grpc().add_OracleServicer_to_server(self._servicer, self._server)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                handler, request_deserializer=decode, response_serializer=encode
            )
            for name, handler in (
                ("Join", self._join),
                ("Beat", self._beat),
                ("Leave", self._leave),
            )
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )

    def __enter__(self) -> Chief:
        self.post.write(self._search)
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # First: a worker that finds no chief looks here whether there is anything to wait for.
        replace(self.post, is_open=False).write(self._search)
        self._server.stop(grace=1.0).wait()

    @property
    def is_done(self) -> bool:
        """Whether a worker was told that there are no more trials."""
        return bool(self._servicer.stop_triggered)

    @property
    def is_closed(self) -> bool:
        """Whether no worker is given another trial."""
        return self._is_closed

    @property
    def members(self) -> list[str]:
        """Names of the workers that have joined and not gone."""
        with self._lock:
            return list(self._seen)

    def close(self) -> None:
        """Give out no more trials; those that run go on to their end."""
        self._is_closed = True

    def stop(self) -> None:
        """Tell all workers to stop, with a checkpoint."""
        self._is_closed = self._is_stopping = True

    def drop(self, worker: str) -> str | None:
        """Count a worker as gone, and queue its trial for another one.

        Returns:
            The trial's id, None if it had none.
        """
        with self._lock:
            self._seen.pop(worker, None)
        # Not under the lock, which no sign of life shall wait for. Whatever the worker asks
        # from here on is refused, so that it cannot get a trial after this.
        return self.oracle.hand_back(worker)

    def silent(self) -> list[str]:
        """Return the workers without a sign of life for too long."""
        now = time.monotonic()
        with self._lock:
            return [name for name, seen in self._seen.items() if now - seen > SILENT_SECONDS]

    def is_member(self, worker: str) -> bool:
        """Whether a worker has joined and not gone."""
        with self._lock:
            return worker in self._seen

    def lets_in(self, token: str) -> bool:
        """Whether a caller sees the folder of this search."""
        return hmac.compare_digest(token.encode(), self.post.token.encode())

    def _join(self, request: dict[str, Any], context: grpc.ServicerContext) -> dict[str, Any]:
        worker = _worker(context)
        # It was here before, and has lost sight of us: what it had may be with another one.
        self.drop(worker)
        with self._lock:
            self._seen[worker] = time.monotonic()
        self.events.put(Event("joined", worker))
        # Clocks of two machines differ.
        left = None if self._deadline is None else self._deadline - time.time()
        return {"command": self._command, "seconds_left": left}

    def _beat(self, request: dict[str, Any], context: grpc.ServicerContext) -> dict[str, Any]:
        worker = _worker(context)
        with self._lock:
            is_member = worker in self._seen
            if is_member:
                self._seen[worker] = time.monotonic()
        if not is_member:
            _refuse_stranger(context)
        return {"stop": self._is_stopping}

    def _leave(self, request: dict[str, Any], context: grpc.ServicerContext) -> dict[str, Any]:
        worker = _worker(context)
        if self.is_member(worker):
            if request["is_out_of_time"]:
                self.close()
            self.drop(worker)
            self.events.put(Event("left", worker, request["reason"], request["exit_code"]))
        return {}


class _Trials(OracleServicer):
    """keras-tuner's service, for members only and one call at a time."""

    def __init__(self, chief: Chief) -> None:
        super().__init__(chief.oracle)
        self._chief = chief

    @contextmanager
    def _admitted(self, context: grpc.ServicerContext) -> Iterator[str]:
        chief = self._chief
        with chief.oracle.lock:
            if chief.error is not None:
                # What failed may have left a lock of keras-tuner's behind: touch it no more.
                context.abort(grpc.StatusCode.UNAVAILABLE, "the chief has failed")
            worker = _worker(context)
            if not chief.is_member(worker):
                _refuse_stranger(context)
            try:
                # keras-tuner prints the values of conditions when it sends them.
                with redirect_stdout(io.StringIO()):
                    yield worker
            except Exception as error:
                chief.error = error
                chief.events.put(Event("failed", worker))
                raise

    def CreateTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._admitted(context):
            if self._chief.is_closed:
                none = Trial(self.oracle.get_space(), status=TrialStatus.STOPPED)
                return get_service().CreateTrialResponse(trial=none.to_proto())
            return super().CreateTrial(request, context)

    def UpdateTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._admitted(context) as worker:
            if self._has(worker, request.trial_id):
                return super().UpdateTrial(request, context)
            known = self.oracle.get_trial(request.trial_id)
            return get_service().UpdateTrialResponse(trial=known.to_proto())

    def EndTrial(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._admitted(context) as worker:
            if self._has(worker, request.trial.trial_id):
                # Not what was sent: on the wire, parameters come before those that they
                # depend on.
                trial = self.oracle.get_trial(request.trial.trial_id)
                trial.status = TrialStatus.from_proto(request.trial.status)
                self.oracle.end_trial(trial)
                self._chief.events.put(Event("ended", worker))
            return get_service().EndTrialResponse()

    def _has(self, worker: str, trial_id: str) -> bool:
        """Whether a trial is still this worker's; another one may have it by now."""
        trial = self.oracle.ongoing_trials.get(worker)
        return trial is not None and trial.trial_id == trial_id


class _Door(grpc.ServerInterceptor):
    """Turns away whoever does not see the folder of the search."""

    def __init__(self, chief: Chief) -> None:
        self._chief = chief

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        token = dict(details.invocation_metadata).get(TOKEN_KEY, "")
        if self._chief.lets_in(token):
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "another search, or another start of it"
            )
        )


def _worker(context: grpc.ServicerContext) -> str:
    return str(dict(context.invocation_metadata()).get(WORKER_KEY, ""))


def _refuse_stranger(context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this worker has not joined")
