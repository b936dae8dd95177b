"""Test-time augmentation: several views of each image, whose logits are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np

Views: TypeAlias = Literal["single", "mirror", "mirror_shift"]


def views_of(images: np.ndarray, views: Views) -> Iterator[tuple[float, np.ndarray]]:
    """Yield each view of a batch with its weight; the weights sum to one.

    Args:
        images: Shape (batch, height, width, channels), any dtype.
        views: `single`: the images; `mirror`: these and their mirror images, equally;
            `mirror_shift`: these two with half of the weight, and with the other half
            the same of the images moved by a pixel along both axes, once up and left
            and once down and right, the border reflected (Jordan 2024, section 3.6).
    """
    if views == "single":
        yield 1.0, images
        return
    if views == "mirror":
        yield from _mirrored(1.0, images)
        return
    yield from _mirrored(0.5, images)
    height, width = images.shape[1:3]
    # One pixel wide images have nothing to reflect.
    mode: Literal["reflect", "edge"] = "reflect" if min(height, width) > 1 else "edge"
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    for start in (0, 2):
        yield from _mirrored(0.25, padded[:, start : start + height, start : start + width])


def _mirrored(weight: float, images: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    yield weight / 2, images
    yield weight / 2, images[:, :, ::-1]


def average_over_views(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, views: Views
) -> np.ndarray:
    """Return the weighted mean of the logits of all views.

    Args:
        logits_of: From images to logits, shape (batch, num_classes).
        images: Shape (batch, height, width, channels).
        views: See `views_of`.

    Returns:
        Shape (batch, num_classes), float32.
    """
    total: np.ndarray | None = None
    for weight, view in views_of(images, views):
        logits = weight * np.asarray(logits_of(np.ascontiguousarray(view)), np.float32)
        total = logits if total is None else total + logits
    assert total is not None
    return total
