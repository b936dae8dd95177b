"""The story of one worker of a chief: come, work, and come again if the chief was away."""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc  # type: ignore[import-untyped]

from trainer.config import Config, load_config
from trainer.errors import InterruptedRun, RunDirectoryError, SearchError
from trainer.search.directory import SearchDir, changes
from trainer.search.distant import ChiefLost, Membership
from trainer.search.interruption import has_lost, interruptible
from trainer.search.isolation import run_isolated
from trainer.search.trial import OutOfTime, run_trial
from trainer.search.trials import Outcome, Point
from trainer.search.wire import Post
from trainer.search.worker import work
from trainer.terminal import say

_FIRST_SECONDS = 60.0
# A chief that was killed is started again by a person.
_RETURN_SECONDS = 600.0
_TRY_SECONDS = 1.0
_LOOK_SECONDS = 0.1


def join(
    address: str | None,
    path: Path,
    config: Config | None = None,
    *,
    worker: str | None = None,
    parent: int | None = None,
    isolate: bool = False,
) -> int:
    """Train trials of a search for its chief, until there are no more.

    A worker that loses its chief stops its trial with a checkpoint, and waits for some
    minutes for the chief to come back.

    Args:
        address: `HOST:PORT` on which the chief listens; None waits until `parent` is one.
        path: The folder of the search, on a file system that the chief shares.
        config: What the caller believes the search to be; None takes what it is.
        worker: A name that no other worker has; None makes one.
        parent: The process that started this one, if it shall not outlive it.
        isolate: Run each trial in a process of its own.

    Returns:
        How many trials it has ended.

    Raises:
        SearchError: If there is no such chief, or it is that of another search.
        InterruptedRun: After a signal.
        TrainerError: What every trial would fail of.
    """
    worker = worker or f"{socket.gethostname()}-{secrets.token_hex(2)}"
    count, patience = 0, _FIRST_SECONDS

    def ended(point: Point, outcome: Outcome) -> None:
        nonlocal count
        count += 1
        say(f"{outcome.state}, {outcome.score:.4g}: {dict(point.values)} ({outcome.reason})")

    if address is None:
        address = _address_of(parent, path)
        if address is None:
            return 0
    while True:
        membership = None
        try:
            with interruptible(is_managed=parent is not None):
                is_first = patience == _FIRST_SECONDS
                membership = _come(address, path, worker, parent, patience, is_first=is_first)
                if membership is None:
                    return count
                patience = _RETURN_SECONDS
                say(f"worker {worker} of the chief on {address}; search: {path}")
                with membership:
                    _check(path, config)
                    run = partial(
                        run_isolated if isolate else run_trial, command=membership.command
                    )
                    work(
                        membership.oracle,
                        load_config(SearchDir(path).config),
                        path,
                        worker,
                        run,
                        deadline=membership.deadline,
                        after_trial=ended,
                    )
                return count
        except OutOfTime:
            return count
        except InterruptedRun as error:
            if membership is None or membership.stopped is None:
                text = f"interrupted; what it trained goes to another worker of {path}"
                raise InterruptedRun(error.signal_number, text) from None
            if membership.stopped in ("told", "orphan"):
                say("the chief has ended the search; the trial that ran here is saved")
                return count
        except ChiefLost:
            pass
        say(f"the chief on {address} is away, or has given this worker up; coming back to it")


def _address_of(parent: int | None, path: Path) -> str | None:
    """Wait until the process that started this one is the chief, and return where it listens.

    Returns:
        None if that process is gone.
    """
    while not has_lost(parent):
        with suppress(RunDirectoryError):  # Of an earlier chief, which is replaced.
            post = Post.read(path)
            if post is not None and post.pid == parent:
                return post.near_address
        time.sleep(_LOOK_SECONDS)
    return None


def _come(
    address: str, path: Path, worker: str, parent: int | None, patience: float, *, is_first: bool
) -> Membership | None:
    """Wait for a chief and join it.

    Returns:
        None if there is nothing to wait for.
    """
    end = time.monotonic() + patience
    has_said = False
    while not has_lost(parent):
        post = Post.read(path)
        trouble = f"no chief answers on {address}"
        if post is None:
            trouble = (
                f"{path}: no chief has written into this folder. A worker needs the folder of "
                "the chief itself: a file system that both see, and the same --searches-dir"
            )
        elif not post.is_open and not is_first:
            return None
        else:
            try:
                return Membership(address, post.token, worker, parent)
            except grpc.RpcError as error:
                # A chief that has just begun anew may not be seen in its file yet.
                if is_first and error.code() == grpc.StatusCode.UNAUTHENTICATED:
                    raise SearchError(
                        f"{path}: the chief on {address} runs another search, or the same one in "
                        "another folder. A worker needs the folder of the chief itself: a file "
                        "system that both see, and the same --searches-dir"
                    ) from None
        if time.monotonic() > end:
            raise SearchError(f"{trouble} (waited for {patience:.0f} s)")
        if not has_said:
            say(f"{trouble}; waiting for up to {patience:.0f} s")
            has_said = True
        time.sleep(_TRY_SECONDS)
    return None


def _check(path: Path, config: Config | None) -> None:
    if config is None:
        return
    changed = changes(path, config)
    if changed:
        raise SearchError(
            f"{path}: the chief's search is another one: {'; '.join(changed)}. Join it with "
            "the config with which it was begun"
        )
