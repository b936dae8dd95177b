"""A run that trains in seconds, for tests that need a whole one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from trainer.run_dir import RunDir

TINY_CONFIG = """\
name: tiny
seed: 3
data: {source: shapes, train_size: 200, test_size: 53, augment: [horizontal_flip]}
model:
  stem: {filters: 4}
  stages: [{filters: 4, blocks: 1}, {filters: 8, blocks: 1, strides: 2}]
  block: {dropout: 0.1}
optimizer: {kind: adam, learning_rate: 3e-3, clipnorm: 0.1}
schedule: {kind: cosine, warmup_epochs: 1}
fit: {epochs: 3, batch_size: 20}
gradients: {window_steps: 4}
runtime: {devices: cpu}
"""


def write_tiny_config(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(TINY_CONFIG)
    return path


def train_tiny(folder: Path, *overrides: str) -> RunDir:
    """Train it in this process."""
    from trainer.config import load_config
    from trainer.train import train

    config = load_config(write_tiny_config(folder), overrides)
    return train(config, runs_dir=folder / "runs", command=["trainer", "train"])


def trainer_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "trainer", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}


def run_trainer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        trainer_command(*arguments), capture_output=True, text=True, env=environment(), check=False
    )
