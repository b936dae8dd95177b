"""Say what pydantic found wrong in our words, at the place where it was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainer.config.schema import Config
from trainer.config.values import Section
from trainer.config.yaml_nodes import KeyPath, Node, Place, Problem, dotted

_SHOWN_LENGTH = 80


def explain(error: ValidationError, root: Node) -> list[Problem]:
    """Turn each of pydantic's errors into a problem of the file.

    Args:
        error: What `Config` raised on the values of `root`.
        root: The values with their places.
    """
    # A value that fits no member of a union has an error for each; they become one.
    grouped: dict[tuple[Place, str], list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        path, node, skipped = locate(root, details["loc"])
        if details["type"] == "missing":
            path = (*path, *skipped[-1:])
        elif details["type"] == "union_tag_invalid":
            if isinstance(node.value, dict) and "kind" in node.value:
                path, node = (*path, "kind"), node.value["kind"]
        elif details["type"] == "too_short" and details["input"]:
            # Pydantic counts the valid items alone; the others have their own errors.
            continue
        grouped.setdefault((node.place, dotted(path)), []).append(details)
    return [
        Problem(place, f"{path}: {_text(errors)}" if path else _text(errors))
        for (place, path), errors in grouped.items()
    ]


def locate(root: Node, loc: Sequence[str | int]) -> tuple[KeyPath, Node, KeyPath]:
    """Find the deepest value that was written on the way to a key.

    Args:
        root: The whole config.
        loc: A key path that may also hold pydantic's names of union members,
            and may leave out the `name` of `{name: {option: x}}`.

    Returns:
        The key path as it is written, the value found there, and the parts of
        `loc` that stand nowhere: absent keys and names of union members.
    """
    node = root
    path: KeyPath = ()
    skipped: KeyPath = ()
    for number, part in enumerate(loc):
        found = _descend(node, part, is_last=number == len(loc) - 1)
        if found is None:
            skipped = (*skipped, part)
        else:
            node, path = found[0], (*path, *found[1])
    return path, node, skipped


def _descend(node: Node, part: str | int, is_last: bool) -> tuple[Node, KeyPath] | None:
    value = node.value
    if isinstance(value, list):
        return (value[part], (part,)) if isinstance(part, int) and part < len(value) else None
    if not isinstance(value, dict):
        return None
    # Beside `kind: adam`, `adam` names the union's member, unless the path ends with it:
    # then it is a wrong key of that name.
    is_member = "kind" in value and value["kind"].value == part and not is_last
    if part in value and not is_member:
        return value[part], (part,)
    if len(value) == 1:
        ((name, options),) = value.items()
        if isinstance(options.value, dict) and part in options.value:
            return options.value[part], (name, part)
    return None


def _text(errors: list[ErrorDetails]) -> str:
    details = errors[0]
    match details["type"]:
        case "missing":
            return "missing item" if isinstance(details["loc"][-1], int) else "missing key"
        case "extra_forbidden":
            return _unknown_key(details["loc"])
        case "union_tag_not_found":
            return _missing_kind(details)
    return _broken_rule(errors)


def _sections_at(loc: Iterable[str | int]) -> list[type[Section]]:
    """Return the classes that may stand at a pydantic `loc`."""
    sections: list[type[Section]] = [Config]
    for part in loc:
        if isinstance(part, int):
            continue
        tagged = [
            section
            for section in sections
            if "kind" in section.model_fields
            and part in get_args(section.model_fields["kind"].annotation)
        ]
        sections = (
            tagged
            if tagged and len(sections) > 1
            else [
                member
                for section in sections
                if part in section.model_fields
                for member in _members(section.model_fields[part].annotation)
            ]
        )
    return sections


def _members(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [member for part in get_args(annotation) for member in _members(part)]


def _unknown_key(loc: tuple[str | int, ...]) -> str:
    key = str(loc[-1])
    known = [name for section in _sections_at(loc[:-1]) for name in section.model_fields]
    known.sort(key=lambda name: name != "kind")
    initials = [name for name in known if "".join(word[0] for word in name.split("_")) == key]
    # Within the same section it would mostly be the key of another kind.
    elsewhere = [
        path
        for path in _key_paths(Config)
        if path.endswith(f".{key}") and not path.startswith(f"{loc[0]}.")
    ]
    # Of keys at several depths the shallowest is meant: fit.epochs, not data.early_crops.epochs.
    depth = min((path.count(".") for path in elsewhere), default=0)
    elsewhere = [path for path in elsewhere if path.count(".") == depth]
    candidates = [*get_close_matches(key, known, 1), *initials]
    candidates += elsewhere if len(elsewhere) == 1 else []
    hint = f"Did you mean {candidates[0]!r}? " if candidates else ""
    return f"unknown key. {hint}Known keys: {', '.join(known)}"


def _key_paths(section: type[Section]) -> list[str]:
    """List the keys of a section and of those below it, each path once."""
    paths = []
    for name, field in section.model_fields.items():
        below = [path for member in _members(field.annotation) for path in _key_paths(member)]
        paths += [name, *(f"{name}.{path}" for path in below)]
    return list(dict.fromkeys(paths))


def _missing_kind(details: ErrorDetails) -> str:
    sections = _sections_at(details["loc"])
    kinds = [get_args(section.model_fields["kind"].annotation)[0] for section in sections]
    text = f"missing key 'kind', one of {', '.join(kinds)}"
    given = details["input"]
    named = [key for key in given if key in kinds] if isinstance(given, dict) else []
    if len(named) > 1:
        return f"must be one of {', '.join(kinds)}. Received: {' and '.join(named)} in one mapping"
    if named:
        # Mostly an option that is not indented below its name.
        return f"{text}. The options of {named[0]} are written {{{named[0]}: {{option: value}}}}"
    return text


def _broken_rule(errors: list[ErrorDetails]) -> str:
    rules = [_rule(details) for details in errors]
    text = rules[0] + "".join(f", or {rule.removeprefix('must be ')}" for rule in rules[1:])
    received = _received(errors[0])
    # A rule over a whole section says itself which of its values clash.
    over_a_section = errors[0]["type"] == "value_error" and isinstance(received, dict)
    if over_a_section or "Received:" in text:
        return text
    text += f". Received: {_show(received)}"
    options = [option for details in errors for option in _options(details)]
    if isinstance(received, str) and (close := get_close_matches(received, options, 1)):
        text += f". Did you mean {close[0]!r}?"
    return text


def _rule(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    match details["type"]:
        case "literal_error" | "union_tag_invalid":
            return f"must be one of {', '.join(_options(details))}"
        case "int_type":
            return "must be an integer"
        case "float_type":
            return "must be a number"
        case "bool_type":
            return "must be true or false"
        case "string_type" | "string_unicode":
            return "must be text"
        case "finite_number":
            return "must be finite"
        case "model_type" | "dict_type":
            return "must be a mapping"
        case "model_attributes_type":
            return "must be a mapping with the key 'kind'"
        case "tuple_type" | "list_type":
            return "must be a list"
        case "too_short":
            return f"must have at least {_items(context['min_length'])}"
        case "too_long":
            return f"must have at most {_items(context['max_length'])}"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}"
        case "value_error":
            return str(context["error"])
    return details["msg"].replace("Input should be", "must be").replace("Input should", "must")


def _items(count: int) -> str:
    return "one item" if count == 1 else f"{count} items"


def _options(details: ErrorDetails) -> list[str]:
    """Return the words that a rule allows, if it lists them."""
    context = details.get("ctx", {})
    if details["type"] == "value_error":
        listed = re.fullmatch(r"must be one of ([\w, ]+)", str(context["error"]))
        return listed[1].split(", ") if listed else []
    return re.findall("'([^']*)'", context.get("expected_tags", context.get("expected", "")))


def _received(details: ErrorDetails) -> Any:
    if details["type"] == "union_tag_invalid" and isinstance(details["input"], dict):
        return details["input"]["kind"]
    return details["input"]


def _show(value: Any) -> str:
    """Write a value in a line, about as it stands in the file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {_show(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(_show(item) for item in value) + "]"
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."
