"""Import TensorFlow without the lines that its C++ side prints about itself."""

from __future__ import annotations

import os
import sys
import tempfile


def import_tensorflow() -> None:
    """Import TensorFlow and list its devices, with file descriptor 2 held back.

    These lines appear before TensorFlow reads TF_CPP_MIN_LOG_LEVEL, so nothing but
    the descriptor stops them. They are printed after all if the import fails, or if
    TF_CPP_MIN_LOG_LEVEL is set to 0 by the user.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
            failed = False
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if failed:
                held.seek(0)
                sys.stderr.write(held.read().decode(errors="replace"))
