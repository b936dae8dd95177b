"""Load a config from YAML, with every error at its file and line, and write it back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from trainer.config.checks import CHECKS
from trainer.config.layers import merge, parse_override, to_plain
from trainer.config.messages import explain, locate
from trainer.config.schema import Config
from trainer.config.search_space import space_problems
from trainer.config.yaml_nodes import Node, Problem, dotted, dump, read_file
from trainer.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read, merge and validate a config.

    The file may extend another, `extends: base.yaml`, relative to itself, and
    that a third. Overrides are laid over all. Nothing but these files is read,
    the environment included.

    Args:
        path: The YAML file.
        overrides: `key.path=value` each, the value in YAML. List items are
            reached by number, as in `model.stages.0.filters=8`. Of two that
            set the same key the later one holds.

    Raises:
        ConfigError: If the file or an override cannot be read, or if the
            config is not valid. The message then has a line for each problem,
            `<file>:<line>: <key path>: <rule>`, sorted by file and line.
    """
    root, problems = _read_with_base(path)
    layers = []
    for override in overrides:
        layer, found = parse_override(override)
        layers.append(layer)
        problems += found
    if layers:
        # The overrides are one layer, or `optimizer.kind` would drop those before it.
        root = merge(root, reduce(merge, layers))
    try:
        config = Config.model_validate(to_plain(root))
    except ValidationError as error:
        _raise(problems + explain(error, root))
    for check in CHECKS:
        for key_path, message in check(config):
            written, node, absent = locate(root, key_path)
            problems.append(Problem(node.place, f"{dotted((*written, *absent))}: {message}"))
    problems += space_problems(root, config)
    if problems:
        _raise(problems)
    return config


def dump_config(config: Config) -> str:
    """Return the config as YAML with every default written out; it loads back equal."""
    left_out = {"search"} if config.search is None else set()
    return dump(_kind_first(config.model_dump(mode="json", exclude=left_out)))


def _kind_first(value: Any) -> Any:
    if isinstance(value, list):
        return [_kind_first(item) for item in value]
    if isinstance(value, dict):
        ordered = {"kind": value["kind"], **value} if "kind" in value else value
        return {key: _kind_first(item) for key, item in ordered.items()}
    return value


def _read_with_base(path: Path, above: Sequence[str] = ()) -> tuple[Node, list[Problem]]:
    """Read a file and lay it over the one that it extends; `above` came to it this way."""
    root, problems = read_file(path)
    assert isinstance(root.value, dict)
    keys = dict(root.value)
    extends = keys.pop("extends", None)
    root = Node(keys, root.place)
    if extends is None:
        return root, problems
    if not isinstance(extends.value, str):
        raise ConfigError(
            f"{extends.place}: extends: must be the path of a YAML file, relative to this one"
        )
    above = (*above, _real(path))
    base_path = path.parent / extends.value
    if _real(base_path) in above:
        raise ConfigError(
            f"{extends.place}: extends: {extends.value} is this file, or extends it. Name a file "
            "that does not come back here"
        )
    try:
        base, base_problems = _read_with_base(base_path, above)
    except ConfigError as error:
        raise ConfigError(f"{extends.place}: extends: {error}") from None
    return merge(base, root), base_problems + problems


def _real(path: Path) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:
        # No path at all, which its reader says.
        return str(path)


def _raise(problems: list[Problem]) -> NoReturn:
    raise ConfigError("\n".join(str(problem) for problem in sorted(problems, key=_by_place)))


def _by_place(problem: Problem) -> tuple[bool, str, int]:
    """Files in order of name and line, then overrides."""
    place = problem.place
    return (place.line is None, place.source if place.line else "", place.line or 0)
