"""What the chief of a search and its workers agree on: names, times, and who may join.

keras-tuner's own service carries the trials. A second, small one on the same port carries
what it lacks: that a worker comes, that it still lives, and that it goes.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import RunDirectoryError, SearchError
from trainer.run_dir import read_json, write_atomically

BEAT_SECONDS = 1.0
"""Between two signs of life of a worker."""
LOST_SECONDS = 15.0
"""Without an answer, after which a worker stops its trial: well before the chief gives it to
another one."""
SILENT_SECONDS = 30.0
"""Without a sign of life, after which the chief gives a worker's trial to another one."""

SERVICE = "trainer.Search"
# Every address of this machine is none to call.
_NEAR = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}

TOKEN_KEY = "search-token"
WORKER_KEY = "search-worker"

# It would tell on standard error what is said better as an error message.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def encode(message: Mapping[str, Any]) -> bytes:
    """Return a message of the second service as it is sent."""
    return json.dumps(message).encode()


def decode(data: bytes) -> dict[str, Any]:
    """Return what was sent."""
    message: dict[str, Any] = json.loads(data)
    return message


@dataclass(frozen=True)
class Post:
    """Where the chief of a search is, in the folder of the search.

    Whoever knows the token sees the same folder as the chief: that is what lets a worker in.

    Attributes:
        address: `HOST:PORT` on which it listens.
        token: New with each start of a chief.
        host: On which it runs.
        pid: Its process.
        is_open: False when it has ended the search, or its part of it.
    """

    address: str
    token: str
    host: str
    pid: int
    is_open: bool = True

    @classmethod
    def new(cls, address: str) -> Post:
        """Return that of this process."""
        return cls(address, secrets.token_hex(16), socket.gethostname(), os.getpid())

    @property
    def near_address(self) -> str:
        """Where workers of its own machine find it."""
        host, port = split_address(self.address, "--listen")
        return f"{_NEAR.get(host, host)}:{port}"

    @staticmethod
    def path(search: Path) -> Path:
        """Return the file that holds it."""
        return search / "chief.json"

    def write(self, search: Path) -> None:
        """Write it, for the eyes of this user alone."""

        def write(temporary: Path) -> None:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

        write_atomically(self.path(search), write)

    @classmethod
    def read(cls, search: Path) -> Post | None:
        """Return that of a search, None if no chief has run it.

        Raises:
            RunDirectoryError: If the file is damaged.
        """
        path = cls.path(search)
        if not path.exists():
            return None
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise RunDirectoryError(f"{path}: this file is damaged ({error})") from None


def split_address(address: str, option: str) -> tuple[str, int]:
    """Return the host and the port of `HOST:PORT`.

    Raises:
        SearchError: If it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SearchError(
            f"{option} must be HOST:PORT, such as 127.0.0.1:4000. Received: {address!r}"
        )
    return host, int(port)
