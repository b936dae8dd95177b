"""Initializers that Keras lacks."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="trainer")
class Dirac(keras.initializers.Initializer):
    """Kernels whose first filters pass their input on: filter i is 1 at the centre of channel i.

    Filters beyond the input channels are drawn as by `lecun_normal`. A network of such
    convolutions begins near the identity (Jordan 2024, section 3.2).

    Args:
        seed: Of the filters that are drawn; None takes the global one.
    """

    def __init__(self, seed: int | keras.random.SeedGenerator | None = None) -> None:
        self._drawn = keras.initializers.LecunNormal(seed=seed)

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Return a kernel.

        Args:
            shape: (height, width, in, out) of a convolution.
            dtype: Of the kernel; None is Keras' default.

        Raises:
            ValueError: If `shape` has not four axes.
        """
        if len(shape) != 4:
            raise ValueError(f"`shape` must be that of a Conv2D kernel. Received: shape={shape}")
        height, width, channels, filters = shape
        num_passed = min(channels, filters)
        centre = ops.one_hot(
            (height // 2) * width + width // 2, height * width, dtype=dtype or keras.config.floatx()
        )
        identity = ops.eye(channels, num_passed, dtype=centre.dtype)
        passed = ops.reshape(centre, (height, width, 1, 1)) * identity
        drawn = self._drawn(shape, dtype=dtype)
        return ops.concatenate([passed, drawn[..., num_passed:]], axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self._drawn.get_config()["seed"]}
