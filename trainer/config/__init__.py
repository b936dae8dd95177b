"""The typed config of a run: schema, loader and checks."""

from __future__ import annotations

from trainer.config.loader import dump_config, load_config
from trainer.config.schema import Config

__all__ = ["Config", "dump_config", "load_config"]
