"""What a loss wants of targets and outputs, checked before anything is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np

from trainer.errors import DataError

_SPARSE = "sparse_categorical_crossentropy"
_GENERALIZED = "categorical_generalized_cross_entropy"
_LABELLED = (_SPARSE, _GENERALIZED)
_CATEGORICAL = ("categorical_crossentropy", "categorical_focal_crossentropy")
_BINARY = ("binary_crossentropy", "binary_focal_crossentropy")
# What they compare has shapes of its own: sequences of labels, distances of pairs.
_UNCHECKED = ("ctc", "circle")
# The loss of a constant answer is estimated with so many examples, and values of them.
_SAMPLE = 10_000
_SAMPLE_VALUES = 10_000_000


def check_targets(path: Path, name: str, target: np.ndarray, output: np.ndarray, loss: Any) -> None:
    """Check that a loss can compare these targets with what the model returns.

    Args:
        path: Of the data, for messages.
        name: Of the array, for messages.
        target: All of them, examples along the first axis.
        output: Of some examples.
        loss: A Keras loss, a function, or anything else, which is then not checked.

    Raises:
        DataError: If it cannot.
    """
    kind = kind_of(loss)
    received = _received(name, target, output)
    if target.dtype.kind in "SU":
        raise DataError(f"{path}: {name} must be numbers. {received}")
    if kind in _UNCHECKED:
        return
    if kind in _LABELLED:
        _check_labels(path, name, target, output, loss)
    elif kind in (*_CATEGORICAL, *_BINARY):
        if _trimmed(target.shape) != _trimmed(output.shape):
            hint = "; for labels take --loss sparse_categorical_crossentropy"
            raise DataError(
                f"{path}: {kind} compares {name} with outputs of the same shape. {received}"
                f"{hint if _is_labels(target) and output.shape[-1] > 1 else ''}"
            )
        low, high = float(target.min()), float(target.max())
        if low < 0 or high > 1:
            raise DataError(
                f"{path}: {kind} takes {name} from 0 to 1. Received: {low:g} to {high:g}"
            )
    elif kind is not None and _trimmed(target.shape) != _trimmed(output.shape):
        raise DataError(
            f"{path}: {kind} compares {name} with outputs of the same shape. {received}"
        )


def _check_labels(path: Path, name: str, target: np.ndarray, output: np.ndarray, loss: Any) -> None:
    places = output.shape[1:-1]
    if output.ndim < 2 or target.shape[1:] not in (places, (*places, 1)):
        hint = (
            "; for one-hot targets take --loss categorical_crossentropy"
            if target.shape[1:] == output.shape[1:]
            else ""
        )
        raise DataError(
            f"{path}: {kind_of(loss)} takes one label where the model returns one value for each "
            f"class. {_received(name, target, output)}{hint}"
        )
    classes = output.shape[-1]
    labels = _counted(target, loss)
    if not labels.size:
        raise DataError(
            f"{path}: the loss ignores the class {_option(loss, 'ignore_class')}, and {name} holds "
            "no other"
        )
    low, high = labels.min(), labels.max()
    if not np.array_equal(labels, np.round(labels)) or low < 0 or high >= classes:
        raise DataError(
            f"{path}: labels must be whole numbers from 0 to {classes - 1}, for the model returns "
            f"{classes} values for each. Received: {name} from {low:g} to {high:g}"
        )


def takes_logits_for_shares(output: np.ndarray, loss: Any) -> bool:
    """Whether a loss takes outputs for probabilities that are none.

    Args:
        output: Of some examples.
        loss: A Keras loss or anything else.
    """
    kind = kind_of(loss)
    if kind not in (_SPARSE, *_CATEGORICAL, *_BINARY) or _is_from_logits(loss):
        return False
    output = output.astype(np.float64)
    if not np.isfinite(output).all():
        return False
    # A float16 softmax adds up to 1 within some thousandths.
    is_beyond = output.min() < -1e-3 or output.max() > 1 + 1e-2
    if kind in _BINARY:
        return bool(is_beyond)
    return bool(is_beyond or np.abs(output.sum(axis=-1) - 1).max() > 0.05)


def loss_of_knowing_nothing(
    target: np.ndarray, output: np.ndarray, loss: Any, seed: int = 0
) -> float | None:
    """Return the loss of the best answer that is the same for every example, or None.

    Args:
        target: All of them, examples along the first axis; they fit the loss.
        output: Of some examples.
        loss: A Keras loss; of a function's loss nothing is known.
        seed: Of the examples that stand for all, where these are too many.
    """
    kind = kind_of(loss)
    if kind is None or kind in _UNCHECKED or not isinstance(loss, keras.losses.Loss):
        return None
    most = max(1, min(_SAMPLE, _SAMPLE_VALUES // max(1, math.prod(output.shape[1:]))))
    if len(target) > most:
        # A file may be sorted by class.
        target = target[np.random.default_rng(seed).choice(len(target), most, replace=False)]
    if kind in _LABELLED and not _counted(target, loss).size:
        return None
    constants = _constants(kind, target, output, loss)
    shape = (len(target), *output.shape[1:])
    try:
        losses = [
            float(loss(target.reshape(shape) if target.size == np.prod(shape) else target,
                       np.broadcast_to(constant, shape).astype(np.float32)))
            for constant in constants
        ]  # fmt: skip
    # Not every loss can be asked like this.
    except Exception:
        return None
    return min((each for each in losses if np.isfinite(each)), default=None)


def _constants(kind: str, target: np.ndarray, output: np.ndarray, loss: Any) -> list[np.ndarray]:
    if kind in _LABELLED:
        labels = _counted(target, loss).astype(np.int64).ravel()
        shares = np.bincount(labels, minlength=output.shape[-1])
        mean = shares / shares.sum()
        if kind == _GENERALIZED:
            return [_best_for_generalized(mean, float(_option(loss, "q")))]
    else:
        mean = target.astype(np.float64).mean(axis=0)
    if kind in (_SPARSE, *_CATEGORICAL, *_BINARY):
        mean = np.clip(mean, 1e-7, 1 - 1e-7)
        if not _is_from_logits(loss):
            return [mean]
        return [np.log(mean) - (np.log1p(-mean) if kind in _BINARY else 0.0)]
    return [mean, np.median(target.astype(np.float64), axis=0)]


def _best_for_generalized(shares: np.ndarray, q: float) -> np.ndarray:
    """Return the probabilities f that maximize sum(shares * f^q): f ~ shares^(1 / (1 - q))."""
    # From q = 1 on it is the largest class alone; relative to it, no power overflows.
    powers = (shares / shares.max()) ** (1 / max(1 - q, 1e-9))
    return powers / powers.sum()


def _counted(labels: np.ndarray, loss: Any) -> np.ndarray:
    """Return the labels without those of the class that a loss ignores."""
    ignored = _option(loss, "ignore_class")
    return labels if ignored is None else labels[labels != ignored]


def kind_of(loss: Any) -> str | None:
    """Return the snake name of a loss of Keras, or None for any other."""
    function = loss
    if isinstance(loss, keras.losses.Loss):
        function = getattr(loss, "fn", None)
    name = getattr(function, "__name__", None)
    return name if name is not None and getattr(keras.losses, name, None) is function else None


def _is_from_logits(loss: Any) -> bool:
    return bool(_option(loss, "from_logits"))


def _option(loss: Any, name: str) -> Any:
    """Return what a Keras loss hands to its function; None if it does not."""
    return getattr(loss, "_fn_kwargs", {}).get(name)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = shape[1:]
    return sizes[:-1] if sizes and sizes[-1] == 1 else sizes


def _is_labels(target: np.ndarray) -> bool:
    return len(_trimmed(target.shape)) == 0 and bool(np.array_equal(target, np.round(target)))


def _received(name: str, target: np.ndarray, output: np.ndarray) -> str:
    return f"Received: {name} {target.dtype} of shape {_told(target)}, outputs {_told(output)}"


def _told(array: np.ndarray) -> str:
    return f"({', '.join(['examples', *map(str, array.shape[1:])])})"
