"""The most confident mistakes on the test set, which `evaluate` keeps to be seen. NumPy only."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.errors import RunDirectoryError
from trainer.run_dir import write_atomically

MOST = 24


@dataclass(frozen=True)
class Mistakes:
    """Images that were taken for another class, the most confident first.

    Attributes:
        images: Shape (mistakes, height, width, channels), uint8.
        labels: Indices of their true classes, shape (mistakes,), int64.
        predicted: Indices of what they were taken for, the same shape.
        probabilities: Of what they were taken for, shape (mistakes,), float32.
    """

    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def among(
        cls, probabilities: np.ndarray, images: np.ndarray, labels: np.ndarray, most: int = MOST
    ) -> Mistakes:
        """Choose them.

        Args:
            probabilities: Shape (num_images, num_classes); images with NaN are left out.
            images: Shape (num_images, height, width, channels), uint8.
            labels: Indices of the true classes, shape (num_images,).
            most: How many to keep.
        """
        predicted = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(predicted)), predicted]
        wrong = np.flatnonzero((predicted != labels) & np.isfinite(confidence))
        chosen = wrong[np.argsort(-confidence[wrong], kind="stable")[:most]]
        return cls(
            images=images[chosen],
            labels=labels[chosen].astype(np.int64),
            predicted=predicted[chosen].astype(np.int64),
            probabilities=confidence[chosen].astype(np.float32),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def write(self, path: Path) -> None:
        """Write them as an npz file, atomically."""
        write_atomically(path, lambda temporary: np.savez_compressed(temporary, **self.__dict__))

    @classmethod
    def read(cls, path: Path) -> Mistakes:
        """Read them.

        Raises:
            RunDirectoryError: If the file is missing or damaged.
        """
        try:
            # NumPy leaves a damaged file open that it has opened itself.
            with open(path, "rb") as file, np.load(file) as arrays:
                found = cls(**arrays)
        except FileNotFoundError:
            raise RunDirectoryError(f"{path}: this artifact is missing from the run") from None
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise RunDirectoryError(f"{path}: this artifact is damaged ({error})") from None
        if found.images.ndim != 4 or found.images.dtype != np.uint8:
            raise RunDirectoryError(
                f"{path}: this artifact is damaged (images must be uint8 of four axes. "
                f"Received: shape={found.images.shape}, dtype={found.images.dtype})"
            )
        return found
