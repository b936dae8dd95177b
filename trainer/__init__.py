"""Train Keras image classifiers from one YAML file and see where their gradients go.

The public names are loaded on first use, so that `import trainer` (and with it
`trainer --help` and every config error) does not import TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {"GradientRecorder": "trainer.callbacks", "GradientLog": "trainer.gradient_log"}

if TYPE_CHECKING:
    from trainer.callbacks import GradientRecorder as GradientRecorder
    from trainer.gradient_log import GradientLog as GradientLog

__all__ = ["GradientLog", "GradientRecorder", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
