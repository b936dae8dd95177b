"""Load a config from YAML, with every error at its file and line, and write it back."""

from __future__ import annotations

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

    The file may extend one other, `extends: base.yaml`, relative to itself.
    Overrides are laid over both. Nothing but these files is read, the
    environment included.

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


def _read_with_base(path: Path) -> tuple[Node, list[Problem]]:
    """Read a file and lay it over the one that it extends."""
    root, extends, problems = _read(path)
    if extends is None:
        return root, problems
    if not isinstance(extends.value, str):
        raise ConfigError(
            f"{extends.place}: extends: must be the path of a YAML file, relative to this one"
        )
    try:
        base, second, base_problems = _read(path.parent / extends.value)
    except ConfigError as error:
        raise ConfigError(f"{extends.place}: extends: {error}") from None
    if second is not None:
        raise ConfigError(
            f"{extends.place}: extends: must name a file that extends no other, and "
            f"{second.place} does. Extend that file's base, or copy its keys"
        )
    return merge(base, root), base_problems + problems


def _read(path: Path) -> tuple[Node, Node | None, list[Problem]]:
    """Read a file and take `extends` out of it."""
    root, problems = read_file(path)
    assert isinstance(root.value, dict)
    keys = dict(root.value)
    extends = keys.pop("extends", None)
    return Node(keys, root.place), extends, problems


def _raise(problems: list[Problem]) -> NoReturn:
    raise ConfigError("\n".join(str(problem) for problem in sorted(problems, key=_by_place)))


def _by_place(problem: Problem) -> tuple[bool, str, int]:
    """Files in order of name and line, then overrides."""
    place = problem.place
    return (place.line is None, place.source if place.line else "", place.line or 0)
