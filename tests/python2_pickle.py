"""Write pickles as Python 2 and the NumPy of its day did: the official CIFAR-10 files."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any


class Python2Pickler(pickle._Pickler):  # type: ignore[misc]
    """Writes every string as Python 2 did, whose `str` the official files hold."""

    def save_string(self, value: str | bytes) -> None:
        payload = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(payload)) + payload)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # noqa: RUF012


def python2_dumps(content: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")
