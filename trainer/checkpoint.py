"""Checkpoints: everything that a training needs to go on as if nothing had happened.

Keras' BackupAndRestore keeps weights and the epoch. Here a checkpoint also holds the
optimizer with its counters, the states of random layers and of loss scaling, and the
step, and it is written in one piece: two generations are kept, and a damaged newest one
falls back to the other.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from trainer.errors import RunDirectoryError
from trainer.run_dir import write_atomically

_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """One state on disk.

    Attributes:
        path: The file.
        step: Training steps behind it.
    """

    path: Path
    step: int


def save_checkpoint(
    directory: Path, model: keras.Model, step: int, keep_step: int | None = None
) -> Checkpoint:
    """Write the state of a compiled, built model and its optimizer.

    Args:
        directory: Of the run's checkpoints.
        model: Whose state is written.
        step: Training steps behind it.
        keep_step: A checkpoint to keep beside the two newest.

    Raises:
        RunDirectoryError: If it cannot be written; older checkpoints are untouched.
    """
    state = _state(model)
    arrays = {f"v{i:05d}": variable.numpy() for i, (_, variable) in enumerate(state)}
    described = json.dumps({"step": step, "variables": [_describe(*item) for item in state]})
    path = directory / f"step-{step:09d}.npz"

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, description=np.array(described), **arrays)

    write_atomically(path, write)
    for old in list_checkpoints(directory)[:-_KEPT]:
        if old.step != keep_step:
            old.path.unlink(missing_ok=True)
    # What a process that was killed had not finished; a run has one process.
    for torn in directory.glob(".*-step-*.npz"):
        torn.unlink(missing_ok=True)
    return Checkpoint(path, step)


def list_checkpoints(directory: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run, oldest first."""
    paths = sorted(directory.glob("step-*.npz"))
    return [Checkpoint(path, int(path.stem.removeprefix("step-"))) for path in paths]


def drop_checkpoints_after(directory: Path, step: int) -> None:
    """Delete the checkpoints of later steps: no training shall go on from them."""
    for checkpoint in list_checkpoints(directory):
        if checkpoint.step > step:
            checkpoint.path.unlink(missing_ok=True)


def restore_latest(directory: Path, model: keras.Model) -> tuple[Checkpoint, list[str]]:
    """Load the newest sound checkpoint into a compiled model whose optimizer is built.

    Returns:
        The checkpoint, and a message for each newer one that is damaged.

    Raises:
        RunDirectoryError: If none is sound, or it belongs to another model.
    """
    damaged = []
    for checkpoint in reversed(list_checkpoints(directory)):
        try:
            with open(checkpoint.path, "rb") as stream, np.load(stream) as file:
                described = json.loads(str(file["description"]))["variables"]
                arrays = [file[f"v{i:05d}"] for i in range(len(described))]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            damaged.append(f"{checkpoint.path}: this checkpoint is damaged ({error})")
            continue
        state = _state(model)
        expected = [_describe(*item) for item in state]
        if described != expected:
            differing = [
                v[0] for v in (*described, *expected) if v not in expected or v not in described
            ]
            raise RunDirectoryError(
                f"{checkpoint.path}: this checkpoint is of another model or optimizer; "
                f"they differ in {', '.join(dict.fromkeys(differing[:6])) or 'their order'}"
            )
        for (_, variable), array in zip(state, arrays, strict=True):
            variable.assign(array)
        return checkpoint, damaged
    found = "; ".join(damaged) or "there is none"
    raise RunDirectoryError(f"{directory}: no checkpoint to resume from ({found})")


def _state(model: keras.Model) -> list[tuple[str, keras.Variable]]:
    """Weights, states of random layers, and the optimizer's; metrics start anew each epoch.

    Keras numbers optimizers and random generators through a process, so their variables go
    by what is left of the path without that number.
    """
    weights = [(variable.path, variable) for variable in model.weights]
    others = {id(v) for metric in model.metrics for v in metric.variables}
    others |= {id(variable) for _, variable in weights}
    random = [("random state", v) for v in model.variables if id(v) not in others]
    optimizer = [(v.path.split("/", 1)[-1], v) for v in model.optimizer.variables]
    return [*weights, *random, *optimizer]


def _describe(name: str, variable: keras.Variable) -> list[str]:
    return [name, str(tuple(variable.shape)), str(variable.dtype)]
