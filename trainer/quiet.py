"""Import TensorFlow without the lines that its C++ side prints, and without what is not used."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.errors import RuntimeSetupError

# Keras tries these for wrappers and galleries that nothing here uses, and the Keras of old in
# TensorFlow tries SciPy: together they take as long again as half of TensorFlow.
_NOT_FOR_KERAS = ("sklearn", "matplotlib", "scipy")
# Two threads that import TensorFlow and Keras from two ends would each see half of the other.
_importing = threading.Lock()


def require_tensorflow_backend(backend: str | None = None) -> None:
    """Let Keras compute with TensorFlow, whatever `~/.keras/keras.json` says.

    Args:
        backend: Which one it has; None before Keras is imported, for that of KERAS_BACKEND.

    Raises:
        RuntimeSetupError: If it is another one.
    """
    backend = backend or os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise RuntimeSetupError(
            f"the trainer needs Keras' TensorFlow backend. Received: {backend!r}. Unset "
            "KERAS_BACKEND, or set it to tensorflow"
        )


def import_tensorflow() -> None:
    """Import TensorFlow and Keras and list the devices, with file descriptor 2 held back.

    These lines appear before TensorFlow reads TF_CPP_MIN_LOG_LEVEL, so nothing but
    the descriptor stops them. They are printed after all if the import fails, or if
    TF_CPP_MIN_LOG_LEVEL is set to 0 by the user. A second thread waits for the first.

    Raises:
        RuntimeSetupError: As `require_tensorflow_backend` does.
    """
    require_tensorflow_backend()
    with _importing, _hidden(_NOT_FOR_KERAS):
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
            _import()
            return
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        sys.stderr.flush()
        kept = os.dup(2)
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            failed = True
            try:
                _import()
                failed = False
            finally:
                os.dup2(kept, 2)
                os.close(kept)
                if failed:
                    held.seek(0)
                    sys.stderr.write(held.read().decode(errors="replace"))


def _import() -> None:
    import tensorflow as tf

    tf.config.list_physical_devices()
    import keras  # noqa: F401


@contextmanager
def _hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Let imports of packages fail that have not been imported yet."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
