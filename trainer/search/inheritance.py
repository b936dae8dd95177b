"""A trial begins with all that the trial of fewer epochs has left."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trainer.checkpoint import list_checkpoints
from trainer.errors import RunDirectoryError
from trainer.run_dir import RunDir

# A checkpoint says that all is there, so it comes last.
_INHERITED = ("gradients", "tensorboard", "history.csv", "health.json", "checkpoints")


def inherit(run: RunDir, parent: Path) -> None:
    """Copy the state of another trial, unless this one has a checkpoint.

    Whatever stops it midway, nothing has its final name before it is whole, and the next
    attempt copies all of it again.

    Args:
        run: Whose directory exists.
        parent: The folder of the other trial.

    Raises:
        RunDirectoryError: If it cannot be copied.
    """
    if list_checkpoints(run.checkpoints):
        return
    for name in _INHERITED:
        source, target = parent / name, run.path / name
        temporary = run.path / f".{name}.inherited"
        try:
            _remove(temporary)
            if source.is_dir():
                shutil.copytree(source, temporary)
            elif source.is_file():
                shutil.copy2(source, temporary)
            else:
                continue
            _remove(target)
            os.replace(temporary, target)
        except OSError as error:
            # Of a whole folder it is a `shutil.Error`, whose `errno` is None.
            raise RunDirectoryError(f"{source}: cannot be copied to {target} ({error})") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
