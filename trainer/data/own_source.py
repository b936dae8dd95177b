"""A data source that is a Python file of the user's."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.config.schema import DataConfig
from trainer.errors import DataError, TrainerError

ENDING = ".py"
_SIGNATURE = "load(data, part, seed)"


def load_own(data: DataConfig, part: str, seed: int) -> Any:
    """Run the file that `data.source` names, and return what its `load` returns.

    Args:
        data: The `data` section, handed on; a relative path is taken from the working
            directory.
        part: `"train"` or `"test"`, handed on.
        seed: Handed on.

    Raises:
        DataError: If the file is missing, has no such function, or fails.
    """
    path = Path(data.source).expanduser()
    if not path.is_file():
        raise DataError(f"data.source: {path}: no such file")
    load = _attempt(path, lambda: _function(path))
    if not callable(load):
        raise DataError(
            f"data.source: {path}: must define a function {_SIGNATURE} that returns a "
            "trainer.data.sources.Split"
        )
    return _attempt(path, lambda: load(data, part, seed))


def _function(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"data_source_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # Of a file that ends in .py.
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up, and so does a pool of processes.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, "load", None)


def _attempt(path: Path, step: Callable[[], Any]) -> Any:
    try:
        return step()
    except TrainerError:
        raise
    # A user's code may raise anything.
    except Exception as error:
        raise DataError(
            f"data.source: {path}{_line(path, error)}: {type(error).__name__}: {error}"
        ) from error


def _line(path: Path, error: Exception) -> str:
    """`:line` of the file in which it failed, the deepest; empty if it is in none."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f":{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    return f":{lines[-1]}" if lines else ""
