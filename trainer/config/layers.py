"""Lay one config over another: a file over its base, overrides over the file.

Mappings merge key by key; lists and scalars replace. A section that has a
`kind` starts afresh where the upper layer names a different one.
"""

from __future__ import annotations

import re
from typing import Any

from trainer.config.schema import SECTIONS_BY_KIND, SECTIONS_BY_NAME
from trainer.config.yaml_nodes import KeyPath, Node, Place, Problem, dotted, parse
from trainer.errors import ConfigError

_KEY_PATH = re.compile(r"[^.\[\]\s]+(\.[^.\[\]\s]+|\[[0-9]+\])*")


def parse_override(override: str) -> tuple[Node, list[Problem]]:
    """Read `key.path=value` into a config that holds that one value.

    List items are reached by number: `model.stages.0.filters=8` or
    `model.stages[0].filters=8`. The value is YAML.

    Raises:
        ConfigError: If the key path or the value cannot be read.
    """
    place = Place(f"--set {override}")
    key_path, equals, text = override.partition("=")
    key_path = key_path.strip()
    if not equals or not _KEY_PATH.fullmatch(key_path):
        raise ConfigError(f"{place}: must be written key.path=value, as in --set fit.epochs=20")
    path = key_path_of(key_path, place)
    if path[0] == "extends":
        raise ConfigError(f"{place}: only a file can extend another file")
    value, problems = parse(text, place.source, in_file=False, path=path)
    node = value or Node(None, place)
    for key in reversed(path):
        node = Node({key: node}, place)
    return node, problems


def key_path_of(text: str, place: Place) -> KeyPath:
    """Read a dotted key path, whose numbers are items of lists.

    Raises:
        ConfigError: If it is none.
    """
    if not _KEY_PATH.fullmatch(text):
        raise ConfigError(f"{place}: must be a key path, as in model.block.kind. Received: {text}")
    return tuple(
        int(key) if re.fullmatch("[0-9]{1,9}", key) else key
        for key in re.findall(r"[^.\[\]]+", text)
    )


def merge(lower: Node, upper: Node, path: KeyPath = ()) -> Node:
    """Return `upper` laid over `lower`.

    A merged mapping has the place that it has in the uppermost file: what it
    lacks is to be written there, not on the command line.

    Raises:
        ConfigError: If an override names an item that a list does not have.
    """
    pattern = ".".join("*" if isinstance(key, int) else key for key in path)
    if not isinstance(upper.value, dict):
        return upper
    if isinstance(lower.value, list):
        return _merge_items(lower, upper, path)
    lower_in_full, upper_in_full = lower, upper
    if pattern in SECTIONS_BY_NAME:
        lower_in_full, upper_in_full = _spell_out(lower), _spell_out(upper)
    if not isinstance(lower_in_full.value, dict) or not isinstance(upper_in_full.value, dict):
        return upper
    if pattern in SECTIONS_BY_KIND or pattern in SECTIONS_BY_NAME:
        lower_kind = _kind(lower_in_full.value) or SECTIONS_BY_KIND.get(pattern)
        upper_kind = _kind(upper_in_full.value)
        if lower_kind and upper_kind and lower_kind != upper_kind:
            return upper
    merged = dict(lower_in_full.value)
    for key, child in upper_in_full.value.items():
        merged[key] = merge(merged[key], child, (*path, key)) if key in merged else child
    return Node(merged, lower.place if upper.place.line is None else upper.place)


def _kind(section: dict[Any, Node]) -> Any:
    return section["kind"].value if "kind" in section else None


def _merge_items(lower: Node, upper: Node, path: KeyPath) -> Node:
    """Replace the numbered items of a list; a mapping without numbers replaces the list."""
    assert isinstance(lower.value, list) and isinstance(upper.value, dict)
    if not any(isinstance(key, int) for key in upper.value):
        return upper
    items = list(lower.value)
    for key, child in upper.value.items():
        if not isinstance(key, int) or key >= len(items):
            raise ConfigError(
                f"{child.place}: {dotted(path)}: is a list of {len(items)}, whose items are "
                f"numbered from 0. Received: {key}"
            )
        items[key] = merge(items[key], child, (*path, key))
    return Node(items, lower.place)


def _spell_out(node: Node) -> Node:
    """Write `name` and `{name: {option: x}}` as `{kind: name, option: x}`."""
    value = node.value
    if isinstance(value, str):
        return Node({"kind": node}, node.place)
    if isinstance(value, dict) and len(value) == 1 and "kind" not in value:
        ((kind, options),) = value.items()
        if isinstance(options.value, dict):
            return Node({"kind": Node(str(kind), options.place), **options.value}, node.place)
        if options.value is None:
            return Node({"kind": Node(str(kind), options.place)}, node.place)
    return node


def to_plain(node: Node, path: KeyPath = ()) -> Any:
    """Return the values without their places.

    Raises:
        ConfigError: If an override names an item of something that is no list.
    """
    if isinstance(node.value, list):
        return [to_plain(item, (*path, index)) for index, item in enumerate(node.value)]
    if not isinstance(node.value, dict):
        return node.value
    for key, child in node.value.items():
        if isinstance(key, int):
            raise ConfigError(
                f"{child.place}: {dotted(path) or 'the config'}: is not a list in the file, "
                f"so it has no item {key}"
            )
    return {key: to_plain(child, (*path, key)) for key, child in node.value.items()}
