"""The reader of pickled arrays: what it reads, and that nothing is ever called."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_data import RunsCode
from python2_pickle import python2_dumps

from trainer.data.pickled_arrays import ForbiddenGlobalError, load_pickle

ARRAYS = {
    b"bytes": np.arange(12, dtype=np.uint8).reshape(3, 4),
    b"columns first": np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)),
    b"big-endian": np.arange(5, dtype=">i8"),
    b"flags": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_are_read(protocol: int) -> None:
    read = load_pickle(pickle.dumps({**ARRAYS, b"labels": [1, 2]}, protocol))
    assert read.pop(b"labels") == [1, 2]
    for key, array in ARRAYS.items():
        assert read[key].dtype == array.dtype
        np.testing.assert_array_equal(read[key], array)


def test_arrays_of_python_2_and_old_numpy_are_read() -> None:
    payload = python2_dumps(ARRAYS)
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in payload
    for key, array in load_pickle(payload).items():
        np.testing.assert_array_equal(array, ARRAYS[key])


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_os_system_runs_nothing(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    payload = pickle.dumps(RunsCode(mark), protocol)
    with pytest.raises(ForbiddenGlobalError, match=r"^(posix|nt)\.system$"):
        load_pickle(payload)
    assert not mark.exists()
    pickle.loads(payload)
    assert mark.exists(), "the pickle is harmless, so this test shows nothing"


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001+1\x85R.", r"__builtin__\.eval"),
        (b"\x80\x02cnumpy\nload\n.", r"numpy\.load"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", r"numpy\.ndarray\.dump"),
        (b"\x80\x02c_codecs\ndecode\n.", r"_codecs\.decode"),
    ],
)
def test_no_name_but_those_of_an_array_is_known(payload: bytes, name: str) -> None:
    with pytest.raises(ForbiddenGlobalError, match=f"^{name}$"):
        load_pickle(payload)


class CallsNdarray:
    """Pickles as a call that would take eight bytes for the address of an object."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.ndarray, ((1,), "O", b"\1" * 8)


@pytest.mark.parametrize("content", [CallsNdarray(), np.array([None]), np.array(["text"])])
def test_arrays_of_objects_are_refused(content: Any) -> None:
    with pytest.raises((TypeError, pickle.UnpicklingError)):
        load_pickle(pickle.dumps(content, protocol=2))


def test_bytes_are_spelled_in_latin1_alone() -> None:
    payload = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-7\x86R."
    with pytest.raises(pickle.UnpicklingError, match="unexpected encoding"):
        load_pickle(payload)
