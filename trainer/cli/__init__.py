"""The command line: it parses, calls and prints, and nothing else.

Modules that need TensorFlow are imported inside the commands, so that help and
config errors answer at once.
"""

# A command registers itself when its module is imported, and help lists them in this order.
from trainer.cli import training, tuning, diagnosing, reporting, serving, inspecting  # noqa: F401, I001
from trainer.cli.app import app, main

__all__ = ["app", "main"]
