"""What `search_faults.py` breaks, and with what."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SEARCH = """\
name: tiny
seed: 3
data: {source: shapes, train_size: 800, test_size: 50}
model:
  stem: {filters: 4}
  stages: [{filters: 4, blocks: 1}, {filters: 8, blocks: 1, strides: 2}]
optimizer: {kind: sgd, learning_rate: 3.0e-3}
fit: {epochs: 4, batch_size: 20}
gradients: {window_steps: 4}
runtime: {devices: cpu}
search:
  algorithm: grid
  prune: []
  space:
    optimizer.learning_rate: {choice: [3.0e-3, 1.0e-2, 3.0e-2]}
"""

_RAISING = """\
import trainer.train as training

build = training.build_compiled

def broken(config, *arguments):
    if {only_rate} is None or config.optimizer.learning_rate == {only_rate}:
        raise RuntimeError("broken on purpose")
    return build(config, *arguments)

training.build_compiled = broken
"""

_IMPORTING = """\
import importlib.abc, sys

class Finder(importlib.abc.MetaPathFinder):
    # Patches the trainer as soon as it is imported, not before.
    def find_spec(self, name, path, target=None):
        if name == "trainer.search.trial":
            sys.meta_path.remove(self)
            import raising  # noqa: F401
        return None

sys.meta_path.insert(0, Finder())
"""


def raising_everywhere(
    folder: Path, environment: Mapping[str, str], only_rate: float | None = None
) -> dict[str, str]:
    """Return an environment in which building a model raises, at one learning rate or at all."""
    (folder / "raising.py").write_text(_RAISING.format(only_rate=only_rate))
    (folder / "sitecustomize.py").write_text(_IMPORTING)
    return {"PYTHONPATH": os.pathsep.join((str(folder), environment["PYTHONPATH"]))}


@contextmanager
def disk_of(path: Path, kib: int) -> Iterator[None]:
    """Mount a small file system there as long as the block runs.

    Raises:
        PermissionError: If this user may not mount.
    """
    path.mkdir()
    size = f"size={kib}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        raise PermissionError(f"a small file system cannot be mounted ({mounted.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)
