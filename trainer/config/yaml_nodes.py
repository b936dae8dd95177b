"""Read YAML into values that know where they were written.

Scalars follow the core schema of YAML 1.2, so that `1e-3` is a number and `no`
is a word; PyYAML alone reads both the other way round (YAML 1.1).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from trainer.errors import ConfigError

Scalar: TypeAlias = str | int | float | bool | None
KeyPath: TypeAlias = tuple[str | int, ...]

# Aliases of aliases multiply: a page of text can stand for more values than memory holds.
_MAX_NODES = 100_000


@dataclass(frozen=True)
class Place:
    """Where a value was written: a line of a file, or a whole override.

    Args:
        source: The file as the user named it, or `--set key.path=value`.
        line: Counted from 1; None for an override.
    """

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True)
class Node:
    """A value and its place, which is that of its key where it has one.

    Integer keys occur in overrides alone and stand for the items of a list.
    """

    value: dict[str | int, Node] | list[Node] | Scalar
    place: Place


def dotted(path: KeyPath) -> str:
    """Write a key path as users do: `model.stages[0].filters`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


# Integers are bounded to what a float can hold; a longer one matches as a float
# and is then refused as infinite, where Python would fail to convert it.
_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (
        "tag:yaml.org,2002:int",
        r"[-+]?[0-9]{1,300}|0o[0-7]{1,64}|0x[0-9a-fA-F]{1,64}",
        list("-+0123456789"),
    ),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes by the core schema and notes every tag that it meets."""

    yaml_implicit_resolvers = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tags: list[tuple[int, str]] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.tags.append((event.start_mark.line + 1, tag))
            event.tag = None
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def dump(value: Any) -> str:
    """Write plain values as YAML that `parse` reads back as the same values."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def read_file(path: Path) -> tuple[Node, list[Problem]]:
    """Read a file whose top level is a mapping.

    Returns:
        The mapping, and the problems that leave something to go on with, such as
        duplicate keys.

    Raises:
        ConfigError: If the file cannot be read, is not YAML, or holds no mapping.
    """
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise ConfigError(f"{path}: must be a YAML file, and this is a directory") from None
    except FileNotFoundError:
        siblings = [file.stem for file in path.parent.glob("*.yaml") if file.is_file()]
        close = get_close_matches(path.stem, siblings, 1)
        hint = f". Did you mean {path.with_name(close[0] + '.yaml')}?" if close else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: the file must be UTF-8. Received: the byte 0x{data[error.start]:02x}"
        ) from None
    root, problems = parse(text, str(path))
    if root is None:
        raise ConfigError(f"{path}:1: the file is empty. Write at least `extends` or `model`")
    if not isinstance(root.value, dict):
        raise ConfigError(f"{root.place}: the top level must be a mapping of `key: value` lines")
    return root, problems


def parse(
    text: str, source: str, *, in_file: bool = True, path: KeyPath = ()
) -> tuple[Node | None, list[Problem]]:
    """Read one YAML document.

    Args:
        text: The document.
        source: What places name.
        in_file: Whether places also name a line.
        path: Where the document will be put, for messages.

    Returns:
        The document, None if it is empty, and the problems that leave something
        to go on with.

    Raises:
        ConfigError: If the text is not YAML.
    """
    try:
        loader = _Loader(text)
        try:
            composed = loader.get_single_node()
        finally:
            loader.dispose()
        builder = _Builder(source, in_file)
        for line, tag in loader.tags:
            message = f"tags are not read. Remove {tag.replace('tag:yaml.org,2002:', '!!')}"
            builder.problems.append(Problem(builder.place(line), message))
        if composed is None:
            return None, builder.problems
        root = builder.build(composed, path, builder.place(composed.start_mark.line + 1))
        return root, builder.problems
    except RecursionError:
        message = "values are nested too deeply, or an alias stands inside of its own anchor"
        raise ConfigError(f"{source}: {message}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: the character {chr(error.character)!r} is not allowed"
        raise ConfigError(f"{Place(source, line if in_file else None)}: {message}") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error, text, source, in_file)) from None


def _syntax_message(error: yaml.MarkedYAMLError, text: str, source: str, in_file: bool) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    # An unclosed bracket is found behind the last line.
    place = Place(source, min(line, len(text.splitlines()) or 1) if in_file else None)
    if error.problem == "found character '\\t' that cannot start any token":
        return f"{place}: not valid YAML: a tab cannot indent. Use spaces"
    context = error.context or ""
    if context.startswith("while") and error.context_mark and error.context_mark.line + 1 != line:
        context += f" that begins in line {error.context_mark.line + 1}"
    return f"{place}: not valid YAML: {context}{', ' if context else ''}{error.problem}"


class _Builder:
    """Turns PyYAML's nodes into ours and collects problems on the way."""

    def __init__(self, source: str, in_file: bool) -> None:
        self.source = source
        self.in_file = in_file
        self.problems: list[Problem] = []
        self.num_nodes = 0

    def place(self, line: int) -> Place:
        return Place(self.source, line if self.in_file else None)

    def build(self, node: yaml.Node, path: KeyPath, place: Place) -> Node:
        self.num_nodes += 1
        if self.num_nodes > _MAX_NODES:
            raise ConfigError(f"{place}: aliases stand for more than {_MAX_NODES} values")
        if isinstance(node, yaml.ScalarNode):
            return Node(_scalar(node), place)
        if isinstance(node, yaml.SequenceNode):
            items = [
                self.build(item, (*path, index), self.place(item.start_mark.line + 1))
                for index, item in enumerate(node.value)
            ]
            return Node(items, place)
        children: dict[str | int, Node] = {}
        for key_node, value_node in node.value:
            key_place = self.place(key_node.start_mark.line + 1)
            key = self._key(key_node, path, key_place)
            if key is None:
                continue
            if key in children:
                first = children[key].place.line
                where = f", first written in line {first}" if first is not None else ""
                self._report(key_place, (*path, key), f"duplicate key{where}. Remove one of them")
            children[key] = self.build(value_node, (*path, key), key_place)
        return Node(children, place)

    def _key(self, node: yaml.Node, path: KeyPath, place: Place) -> str | None:
        key = _scalar(node) if isinstance(node, yaml.ScalarNode) else node
        if not isinstance(key, str):
            shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
            self._report(place, path, f"a key must be a word. Received: {shown or 'nothing'}")
            return None
        if key == "<<":
            self._report(place, path, "merge keys (<<) are not read. Repeat the keys")
            return None
        return key

    def _report(self, place: Place, path: KeyPath, message: str) -> None:
        prefix = f"{dotted(path)}: " if path else ""
        self.problems.append(Problem(place, prefix + message))


def _scalar(node: yaml.ScalarNode) -> Scalar:
    text: str = node.value
    match node.tag.removeprefix("tag:yaml.org,2002:"):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
