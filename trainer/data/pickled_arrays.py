"""Read a pickle of containers and NumPy arrays without calling what it names.

A pickle is a program: loading it calls any function that it names. Even NumPy's
own `ndarray` and `dtype` are no safe choice, because `ndarray(shape, object, buffer)`
takes bytes for addresses. So each of the few names that a pickled array needs
gets a stand-in from this file, and every other name is refused.
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any

import numpy as np


class ForbiddenGlobalError(Exception):
    """A pickle names something that is no part of an array; the message is that name."""


def load_pickle(payload: bytes) -> Any:
    """Read one pickle of any protocol; strings of Python 2 become bytes.

    Args:
        payload: The whole pickle.

    Returns:
        What was pickled. Arrays are found only as values of an outermost dict,
        read-only, and hold booleans, integers or floats.

    Raises:
        ForbiddenGlobalError: If the pickle names anything that is no part of an array.
        Exception: Nearly any, if the pickle is damaged: `EOFError`, `IndexError`,
            `pickle.UnpicklingError`, `ValueError` and others.
    """
    content = _Unpickler(io.BytesIO(payload), encoding="bytes").load()
    if not isinstance(content, dict):
        return content
    return {
        key: value.values if isinstance(value, _Array) else value for key, value in content.items()
    }


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str | bytes, *_flags: object) -> None:
        if not re.fullmatch("[biuf][1248]", _text(code)):
            raise pickle.UnpicklingError(f"unexpected dtype {code!r}")
        self.dtype = np.dtype(_text(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(_text(state[1]))  # type: ignore[arg-type]


class _Array:
    """Stands in for `numpy.ndarray`."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.values = _values(data, dtype, shape, "F" if is_fortran else "C")


def _values(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(*_arguments: object) -> _Array:
    """Stand in for the function that begins an array; its state follows."""
    return _Array()


def _from_buffer(*arguments: Any) -> _Array:
    """Stand in for the function that makes a whole array, since protocol 5."""
    array = _Array()
    array.values = _values(*arguments)
    return array


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which Python 3 spells bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if f"{module}.{name}" not in _STAND_INS:
            raise ForbiddenGlobalError(f"{module}.{name}")
        return _STAND_INS[f"{module}.{name}"]
