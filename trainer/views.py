"""Test-time augmentation: several views of each image, whose logits are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Views: TypeAlias = Literal["single", "mirror", "mirror_shift"]


@dataclass(frozen=True)
class View:
    """One way to look at an image.

    Attributes:
        weight: Its share in the mean; those of all views sum to one.
        is_mirrored: Left and right are exchanged.
        shift: Pixels that the image is moved by along both axes, -1 (up and left), 0 or 1;
            the border is reflected.
    """

    weight: float
    is_mirrored: bool = False
    shift: int = 0


def _mirrored(weight: float, shift: int = 0) -> tuple[View, View]:
    return View(weight / 2, False, shift), View(weight / 2, True, shift)


VIEWS: dict[Views, tuple[View, ...]] = {
    "single": (View(1.0),),
    "mirror": _mirrored(1.0),
    "mirror_shift": (*_mirrored(0.5), *_mirrored(0.25, 1), *_mirrored(0.25, -1)),
}
"""`single`: the image; `mirror`: it and its mirror image, equally; `mirror_shift`: these two
with half of the weight, and with the other half the same of the image moved by a pixel, once
up and left and once down and right (Jordan 2024, section 3.6). The first is always the image
as it is."""


def views_of(images: np.ndarray, views: Views) -> Iterator[tuple[float, np.ndarray]]:
    """Yield each view of a batch with its weight.

    Args:
        images: Shape (batch, height, width, channels), any dtype.
        views: A key of `VIEWS`.
    """
    height, width = images.shape[1:3]
    # One pixel wide images have nothing to reflect.
    mode: Literal["reflect", "edge"] = "reflect" if min(height, width) > 1 else "edge"
    for view in VIEWS[views]:
        seen = images
        if view.shift:
            padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
            start = 1 - view.shift
            seen = padded[:, start : start + height, start : start + width]
        yield view.weight, seen[:, :, ::-1] if view.is_mirrored else seen


def logits_over_views(
    logits_of: Callable[[np.ndarray], np.ndarray], images: np.ndarray, views: Views
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of the logits of all views, and those of the images as they are.

    Args:
        logits_of: From images to logits, shape (batch, num_classes).
        images: Shape (batch, height, width, channels).
        views: A key of `VIEWS`.

    Returns:
        Both of shape (batch, num_classes), float32.
    """
    of_views = (
        (weight, np.asarray(logits_of(np.ascontiguousarray(view)), np.float32))
        for weight, view in views_of(images, views)
    )
    weight, single = next(of_views)
    total = weight * single
    for weight, logits in of_views:
        total += weight * logits
    return total, single
