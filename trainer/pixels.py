"""What the training images themselves put into a model: pixel scaling and whitening."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Enough for a covariance of a few dozen values: millions of patches.
_WHITENED_IMAGES = 5000
_CHUNK = 500


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
        channels = images.shape[-1]
        if normalize == "none":
            return cls.identity(channels)
        if normalize == "unit":
            return cls((1 / 255,) * channels, (0.0,) * channels)
        # Exact integer counts of each level, a chunk at a time: no copy of the whole set is
        # made, and `bincount` widens its argument to integers of eight bytes.
        levels = np.arange(256, dtype=np.float64)
        scale, offset = [], []
        for channel in range(channels):
            counts = np.zeros(256, np.int64)
            for start in range(0, len(images), _CHUNK):
                chunk = images[start : start + _CHUNK, ..., channel]
                counts += np.bincount(chunk.ravel(), minlength=256)
            mean = float(counts @ levels / counts.sum())
            variance = float(counts @ (levels - mean) ** 2 / counts.sum())
            deviation = max(variance**0.5, 1.0)
            scale.append(1 / deviation)
            offset.append(-mean / deviation)
        return cls(tuple(scale), tuple(offset))


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
