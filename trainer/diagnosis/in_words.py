"""Say a remedy in words, for a model that has no config of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.diagnosis.finding import Remedy


def _of_normalization(value: Any) -> str:
    kind, options = next(iter(value.items())) if isinstance(value, dict) else (value, {})
    with_what = "".join(f" with a {name} of {setting}" for name, setting in options.items())
    return f"{kind} normalization in front of each activation{with_what}"


def _bound(name: str) -> Callable[[Any], str]:
    return lambda value: f"no {name}" if value is None else f"{name}={value:g} in the optimizer"


_WORDS: dict[str, Callable[[Any], str]] = {
    "model.block.kind": lambda value: f"a {value} connection around each block",
    "model.block.normalization": _of_normalization,
    "model.block.activation": lambda value: f"{value} as activation of the hidden layers",
    "model.block.kernel_initializer": lambda value: f"{value} as initializer of the kernels",
    "model.block.bias_initializer": lambda value: f"{value} as initializer of the biases",
    "model.block.kernel_regularizer": lambda value: f"{value} as regularizer of the kernels",
    "model.block.spatial_dropout": lambda value: f"spatial dropout of {value}",
    "model.block.zero_init_last": lambda value: (
        "blocks that start as nothing but their way around"
        if value
        else "no zeros at the end of each block at the start"
    ),
    "model.head.kernel_initializer": lambda value: f"{value} as initializer of the last layer",
    "data.normalize": lambda value: "inputs scaled to mean 0 and deviation 1",
    "data.label_noise": lambda value: f"labels of which {value:.0%} are wrong",
    "data.augment": lambda value: "augmented training data",
    "schedule.kind": lambda value: f"a learning rate that falls along a {value} schedule",
    "schedule.warmup_epochs": lambda value: "a learning rate that rises over the first steps",
    "optimizer.learning_rate": lambda value: f"a learning rate of {value:g}",
    "optimizer.momentum": lambda value: f"a momentum of {value}",
    "optimizer.clipnorm": _bound("clipnorm"),
    "optimizer.global_clipnorm": _bound("global_clipnorm"),
    "optimizer.clipvalue": _bound("clipvalue"),
    "fit.batch_size": lambda value: f"batches of {value}",
    "runtime.precision": lambda value: f"the dtype policy {value}",
}
"""What a value of a config's key means for any model, as something to try."""


def in_words(remedy: Remedy) -> Remedy:
    """Return a remedy whose `why` says what to try, and whose patch is empty."""
    tries = [_phrase(key, value) for key, value in remedy.patch.items()]
    return Remedy(": ".join([" and ".join(tries), remedy.why]) if tries else remedy.why, {})


def _phrase(key: str, value: Any) -> str:
    if key in _WORDS:
        return _WORDS[key](value)
    return f"{value} as {key.rsplit('.', 1)[-1].replace('_', ' ')}"
