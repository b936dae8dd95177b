"""Losses and optimizers of Keras by name and options, such as `sgd:learning_rate=0.1`."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import keras

from trainer.errors import ConfigError

# Short names of losses, as `compile` takes them.
_ALIASES = {
    "mse": "MeanSquaredError",
    "mae": "MeanAbsoluteError",
    "mape": "MeanAbsolutePercentageError",
    "msle": "MeanSquaredLogarithmicError",
    "bce": "BinaryCrossentropy",
    "kld": "KLDivergence",
}

_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


def parse_spec(text: str, option: str) -> tuple[str, dict[str, Any]]:
    """Take `name:key=value,key` apart; a key without a value is True.

    Args:
        text: What was given.
        option: Name of the option of the command line, for the message.

    Raises:
        ConfigError: If it has another form.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, has_value, value = (piece.strip() for piece in part.partition("="))
        if not name.strip() or not key.isidentifier() or (has_value and not value):
            raise ConfigError(
                f"{option} must be a name, or name:key=value,key=value. Received: {text!r}"
            )
        options[key] = _value(value) if has_value else True
    return name.strip(), options


def build_loss(text: str, custom_objects: Mapping[str, Any]) -> Any:
    """Return a loss of Keras, or of a user's code.

    Args:
        text: Such as `mse`, `huber:delta=2` or `categorical_crossentropy:from_logits`.
        custom_objects: Classes and functions by name, that Keras does not have.

    Raises:
        ConfigError: If there is no such loss, or it has no such option.
    """
    name, options = parse_spec(text, "--loss")
    name = _ALIASES.get(name.lower(), name)
    if inspect.isfunction(custom_objects.get(name)) and not options:
        return custom_objects[name]
    return _build("--loss", name, options, keras.losses, keras.losses.Loss, custom_objects)


def build_optimizer(text: str, custom_objects: Mapping[str, Any]) -> keras.optimizers.Optimizer:
    """Return an optimizer of Keras, or of a user's code.

    Args:
        text: Such as `adam` or `sgd:learning_rate=0.1,momentum=0.9`.
        custom_objects: Classes by name, that Keras does not have.

    Raises:
        ConfigError: If there is no such optimizer, or it has no such option.
    """
    name, options = parse_spec(text, "--optimizer")
    base = keras.optimizers.Optimizer
    return _build("--optimizer", name, options, keras.optimizers, base, custom_objects)


def _build(
    option: str,
    name: str,
    options: dict[str, Any],
    module: Any,
    base: type,
    custom_objects: Mapping[str, Any],
) -> Any:
    classes = {
        _plain(key): value
        for key, value in {**vars(module), **custom_objects}.items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base
    }
    found = classes.get(_plain(name))
    known = sorted({value.__name__ for value in classes.values()})
    if found is None:
        near = difflib.get_close_matches(_plain(name), classes, n=1)
        hint = f". Did you mean {classes[near[0]].__name__}?" if near else ""
        raise ConfigError(f"{option} must be one of {', '.join(known)}. Received: {name!r}{hint}")
    try:
        return found(**options)
    except (TypeError, ValueError) as error:
        takes = ", ".join(p for p in inspect.signature(found).parameters if p != "kwargs")
        raise ConfigError(
            f"{option} {found.__name__} takes {takes}. Received: {options} ({error})"
        ) from None


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _value(text: str) -> Any:
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
