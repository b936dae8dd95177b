"""The embedded data set: ten shapes, drawn in memory from a seed.

Each image of 32x32 pixels shows one shape before a background. The class is
given by the shape alone; everything else is drawn at random, independently of it:
    colours     two random ones, at least a visible contrast apart; which of them
                is in front is a coin toss, so that every pixel has the same mean
                in every class and a linear classifier has nothing to hold on to
    size        every shape covers the same area at the same size
    place, angle, a colour gradient over the image, noise, and in half of the
                images a small square that hides a part

No shape has a handedness and none is cut short by more than its random place, so
that flips, shifts and rotations never change a label. The data set is meant for
tests, for first steps and for machines without a network: a small residual
network learns it in about a minute, but no accuracy on it says anything about
photographs, which is why its splits are marked `synthetic`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from trainer.data.sources import Part, Split

IMAGE_SIZE = 32
_BLOCK_IMAGES = 500

Distance: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Signed distance to a shape's outline, negative inside, at points `(x, y)` of its own plane."""


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.75) - 0.25


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 1, 1)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(-y, np.sqrt(3) / 2 * np.abs(x) + y / 2) - 0.5


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 1, 0.3), _box(x, y, 0.3, 1))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sector = np.pi / 5
    # Folding the plane into a tenth of a turn leaves one straight edge, from a tip
    # at (1, 0) to a notch, of which this is the outward normal.
    notch = 0.4 * np.exp(1j * sector)
    normal = (notch - 1) * -1j / abs(notch - 1)
    angle = np.abs((np.arctan2(y, x) + sector) % (2 * sector) - sector)
    radius = np.hypot(x, y)
    return (radius * np.cos(angle) - 1) * normal.real + radius * np.sin(angle) * normal.imag


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _box(x, y, 1.5, 0.5)


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x - 0.4
    return np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.5, y))


def _dumbbell(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    weights = np.hypot(np.abs(x) - 1, y) - 0.6
    return np.minimum(weights, _box(x, y, 1, 0.2))


def _corner(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - 0.3, y - 0.3
    return np.maximum(_box(x, y, 1, 1), np.minimum(x, y) + 0.4)


_SHAPES: dict[str, Distance] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "bar": _bar,
    "crescent": _crescent,
    "dumbbell": _dumbbell,
    "corner": _corner,
}
CLASS_NAMES = tuple(_SHAPES)


def draw_shapes(num_images: int, part: Part, seed: int) -> Split:
    """Draw a data set of shapes.

    Args:
        num_images: How many; classes are as even in number as it allows.
        part: The two parts come from different random streams of one seed.
        seed: Not negative; the same seed gives the same bytes.

    Returns:
        Images of shape `(num_images, 32, 32, 3)` in random order.
    """
    random = np.random.default_rng([seed, ("train", "test").index(part)])
    labels = random.permutation(np.arange(num_images, dtype=np.int32) % len(_SHAPES))
    images = np.empty((num_images, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for label, distance in enumerate(_SHAPES.values()):
        members = np.flatnonzero(labels == label)
        # Blocks bound the memory of the float images, whatever the number asked for.
        for start in range(0, len(members), _BLOCK_IMAGES):
            block = members[start : start + _BLOCK_IMAGES]
            images[block] = _draw(distance, len(block), random)
    return Split(images, labels, CLASS_NAMES, f"a drawing with seed {seed}", synthetic=True)


def _draw(distance: Distance, num_images: int, random: np.random.Generator) -> np.ndarray:
    """Draw images of one shape: `(num_images, 32, 32, 3)`, uint8."""

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        """One value an image, ready to be broadcast over rows, columns and channels."""
        return random.uniform(low, high, (num_images, *(shape or (1, 1, 1)))).astype(np.float32)

    front, back = _colour_pair(num_images, random)
    images = back + (front - back) * _coverage(distance, uniform)

    axis = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    rows, columns = axis[:, None, None], axis[None, :, None]
    images += uniform(-0.12, 0.12, 1, 1, 3) * rows + uniform(-0.12, 0.12, 1, 1, 3) * columns

    side, top, left = uniform(0.06, 0.16), uniform(-1, 1), uniform(-1, 1)
    hidden = (np.abs(rows - top) < side) & (np.abs(columns - left) < side)
    hidden &= uniform(0, 1) < 0.5
    images = np.where(hidden, uniform(0, 1, 1, 1, 3), images)

    images += uniform(0.01, 0.04) * random.standard_normal(images.shape, dtype=np.float32)
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8)


def _colour_pair(num_images: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw two colours an image, `(num_images, 1, 1, 3)` each, alike in distribution.

    They lie on both sides of a random centre, so that exchanging them changes no
    probability and neither leaves the range from 0 to 1.
    """
    direction = random.standard_normal((num_images, 1, 1, 3), dtype=np.float32)
    direction /= np.abs(direction).max(axis=-1, keepdims=True)
    half_contrast = direction * random.uniform(0.25, 0.5, (num_images, 1, 1, 1)).astype(np.float32)
    margin = np.abs(half_contrast)
    centre = margin + (1 - 2 * margin) * random.random(margin.shape, dtype=np.float32)
    return centre + half_contrast, centre - half_contrast


def _coverage(distance: Distance, uniform: Callable[..., np.ndarray]) -> np.ndarray:
    """Return how much of each pixel the shape covers, `(num_images, 32, 32, 1)`, 0 to 1."""
    centres = np.arange(IMAGE_SIZE, dtype=np.float32) - (IMAGE_SIZE - 1) / 2
    y = centres[:, None, None] - uniform(-3, 3)
    x = centres[None, :, None] - uniform(-3, 3)
    angle = uniform(0, 2 * np.pi)
    pixels = uniform(10.5, 15) * _side_of_equal_area(distance)
    cos, sin = np.cos(angle) / pixels, np.sin(angle) / pixels
    # A linear ramp of one pixel's width across the outline is the anti-aliasing.
    return np.clip(0.5 - pixels * distance(cos * x + sin * y, cos * y - sin * x), 0, 1)


def _side_of_equal_area(distance: Distance) -> float:
    """Return the scale at which a shape has the area of a square with side 1."""
    step = 0.02
    axis = np.arange(-3 + step / 2, 3, step)
    inside = distance(axis[None, :], axis[:, None]) < 0
    return float(1 / (step * np.sqrt(inside.sum())))
