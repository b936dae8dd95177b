"""HTML in which every text is escaped, unless it says that it is HTML already."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TypeAlias
from urllib.parse import quote


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
"""What an element holds: text, a number, other elements, or nothing."""

_VOID = frozenset({"br", "hr", "img", "meta"})


def element(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """Return an element.

    Args:
        name: Of the element.
        *children: Its content; a string is escaped if it is no `Html`.
        **attributes: Without those that are None or False; True gives a bare one. `class_` is
            `class`, and `data_value` is `data-value`.
    """
    written = "".join(
        f" {_attribute(key)}" if value is True else f' {_attribute(key)}="{_escape(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{as_html(children)}</{name}>")


def as_html(child: Child) -> Html:
    """Return content as HTML."""
    if child is None:
        return Html()
    if isinstance(child, Html):
        return child
    if isinstance(child, str | int | float):
        return Html(_escape(child))
    return Html("".join(map(as_html, child)))


def link(text: Child, path: str) -> Html:
    """Return a link to a file beside the page.

    Args:
        text: What is read.
        path: Relative to the page, not quoted.
    """
    # A first part with a colon in it would be read as a scheme.
    return element("a", text, href=quote(f"./{path}"))


def _attribute(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")


def _escape(value: str | int | float) -> str:
    return html.escape(str(value))
