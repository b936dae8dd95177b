"""What the training images themselves put into a model: pixel scaling and whitening."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Enough for a covariance of a few dozen values: millions of patches.
_WHITENED_IMAGES = 5000
_CHUNK = 500
# Positions whose levels are counted at a time; what NumPy converts them to fits the cache.
_COUNTED_POSITIONS = 2**16


@dataclass(frozen=True)
class PixelScaling:
    """What the model does to pixels of 0..255 first: `pixels * scale + offset`.

    Attributes:
        scale: One factor per channel.
        offset: One summand per channel.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    @classmethod
    def identity(cls, channels: int) -> PixelScaling:
        """Return the scaling that leaves pixels as they are."""
        return cls((1.0,) * channels, (0.0,) * channels)

    @classmethod
    def of(cls, images: np.ndarray, normalize: str) -> PixelScaling:
        """Return the scaling that `data.normalize` asks for.

        Args:
            images: Training images, shape (num_images, height, width, channels), uint8.
            normalize: `per_channel` (zero mean and unit deviation over `images`), `unit`
                (0..1) or `none`.
        """
        if normalize == "per_channel":
            return cls.of_moments(*moments_of_levels(level_counts(images)), normalize)
        unused = np.zeros(images.shape[-1])
        return cls.of_moments(unused, unused, normalize)

    @classmethod
    def of_moments(cls, means: np.ndarray, stds: np.ndarray, normalize: str) -> PixelScaling:
        """Return the scaling for images of which mean and deviation are known.

        Args:
            means: Mean of each channel, shape (channels,), 0..255.
            stds: Standard deviation of each channel, likewise.
            normalize: As in `of`.
        """
        channels = len(means)
        if normalize == "none":
            return cls.identity(channels)
        if normalize == "unit":
            return cls((1 / 255,) * channels, (0.0,) * channels)
        # A channel without contrast stays as it is.
        deviations = np.maximum(stds, 1.0)
        return cls(tuple((1 / deviations).tolist()), tuple((-means / deviations).tolist()))


def level_counts(images: np.ndarray) -> np.ndarray:
    """Return how many pixels of each channel have each level.

    Exact, and without a float copy of the images.

    Args:
        images: Shape (num_images, height, width, channels), uint8.

    Returns:
        Shape (channels, 256), int64.
    """
    channels = images.shape[-1]
    pixels = images.reshape(-1, channels)
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(pixels), _COUNTED_POSITIONS):
        chunk = pixels[start : start + _COUNTED_POSITIONS]
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel], minlength=256)
    return counts


def moments_of_levels(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel from its `level_counts`.

    Returns:
        Two arrays of shape (channels,), float64, in levels of 0..255.
    """
    levels = np.arange(256, dtype=np.float64)
    totals = counts.sum(axis=1)
    means = counts @ levels / totals
    squares = np.square(levels - means[:, None])
    return means, np.sqrt((counts * squares).sum(axis=1) / totals)


def whitening_kernel(
    images: np.ndarray, scaling: PixelScaling, size: int, epsilon: float
) -> np.ndarray:
    """Return the kernel of a whitening stem.

    The filters are the eigenvectors of the second moments of `size` x `size` patches
    over the roots of their eigenvalues, those of the largest eigenvalue last, and then
    all of them negated (Jordan 2024, section 3.1).

    Args:
        images: Training images, shape (num_images, height, width, channels), uint8; at
            most 5,000 of them, evenly spaced, are looked at.
        scaling: What the model does to pixels before.
        size: Side of a patch.
        epsilon: Added to each eigenvalue.

    Returns:
        Shape (size, size, channels, 2 * size * size * channels), float32.
    """
    channels = images.shape[-1]
    length = size * size * channels
    moments, count = np.zeros((length, length)), 0
    num_chosen = min(len(images), _WHITENED_IMAGES)
    chosen = np.linspace(0, len(images) - 1, num_chosen).astype(int)
    for start in range(0, num_chosen, _CHUNK):
        scaled = images[chosen[start : start + _CHUNK]] * np.array(scaling.scale, np.float32)
        scaled += np.array(scaling.offset, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(scaled, (size, size), axis=(1, 2))
        # To the order of a kernel's axes: height, width, channels.
        patches = np.moveaxis(windows, 3, -1).reshape(-1, length).astype(np.float32)
        moments += patches.T @ patches
        count += len(patches)
    eigenvalues, eigenvectors = np.linalg.eigh(moments / count)
    filters = eigenvectors / np.sqrt(np.maximum(eigenvalues, 0) + epsilon)
    kernel = filters.reshape(size, size, channels, length)
    return np.concatenate([kernel, -kernel], axis=-1).astype(np.float32)
