"""A search space in keras-tuner's terms, and its values in ours."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner

from trainer.config.search_schema import Parameter, SearchConfig

_OWN = "tuner/"
"""What Hyperband puts beside the values begins so."""


def hyperparameters(search: SearchConfig) -> keras_tuner.HyperParameters:
    """Return the space, every condition included, without building a model."""
    hps = keras_tuner.HyperParameters()
    for key in _parents_first(search):
        _register(hps, search, key, list(search.space[key].when.items()))
    return hps


def _register(
    hps: keras_tuner.HyperParameters,
    search: SearchConfig,
    key: str,
    conditions: list[tuple[str, Sequence[Any]]],
) -> None:
    if conditions:
        (parent, allowed), *rest = conditions
        labels = labels_of(search.space[parent])
        with hps.conditional_scope(parent, [_label(labels, value) for value in allowed]):
            _register(hps, search, key, rest)
        return
    parameter = search.space[key]
    if parameter.int:
        low, high = parameter.int
        hps.Int(key, low, high, step=parameter.step or 1)
    elif parameter.float and not parameter.points:
        hps.Float(key, *parameter.float)
    elif parameter.log_uniform and not parameter.points:
        hps.Float(key, *parameter.log_uniform, sampling="log")
    else:
        hps.Choice(key, list(labels_of(parameter)))


def labels_of(parameter: Parameter) -> dict[Any, Any]:
    """Return the values of a discrete parameter by what keras-tuner calls them.

    It takes strings or numbers of one type alone; others go by their JSON text.
    """
    values = _discrete_values(parameter)
    if all(isinstance(value, str) for value in values):
        return {value: value for value in values}
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        one_type = int if all(isinstance(value, int) for value in values) else float
        return {one_type(value): value for value in values}
    return {json.dumps(value): value for value in values}


def _discrete_values(parameter: Parameter) -> Sequence[Any]:
    if parameter.boolean:
        return (False, True)
    if parameter.choice:
        return parameter.choice
    count = parameter.points or 2
    if parameter.float:
        low, high = parameter.float
        return [low + (high - low) * i / (count - 1) for i in range(count)]
    assert parameter.log_uniform is not None
    low, high = (math.log(bound) for bound in parameter.log_uniform)
    inner = [math.exp(low + (high - low) * i / (count - 1)) for i in range(1, count - 1)]
    return [parameter.log_uniform[0], *inner, parameter.log_uniform[1]]


def _label(labels: Mapping[Any, Any], value: Any) -> Any:
    return next(label for label, each in labels.items() if each == value)


def _parents_first(search: SearchConfig) -> list[str]:
    ordered: list[str] = []

    def visit(key: str) -> None:
        for parent in search.space[key].when:
            visit(parent)
        if key not in ordered:
            ordered.append(key)

    for key in search.space:
        visit(key)
    return ordered


def values_of(search: SearchConfig, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the oracle chose as values of the config, Hyperband's own left out.

    A parameter follows those that it depends on, in whatever order they came over a wire.
    """
    values = {}
    for key in _parents_first(search):
        if key not in chosen:
            continue
        value, parameter = chosen[key], search.space[key]
        is_number = parameter.int or not (parameter.choice or parameter.boolean or parameter.points)
        values[key] = value if is_number else labels_of(parameter)[value]
    return values


def epochs_of(chosen: Mapping[str, Any], epochs: int) -> tuple[int, int]:
    """Return from and up to which epoch a trial trains; Hyperband alone gives it fewer.

    Args:
        chosen: What the oracle chose.
        epochs: Of the config at this point.
    """
    first = int(chosen.get(f"{_OWN}initial_epoch", 0))
    return first, int(chosen.get(f"{_OWN}epochs", epochs))
