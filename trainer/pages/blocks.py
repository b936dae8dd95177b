"""What a page is made of beside figures: tables, facts, texts to copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainer.pages.html import Child, Html, element


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is sorted by another value than its text.

    Attributes:
        content: What is seen.
        key: What it is sorted by; None is always last.
    """

    content: Child
    key: float | str | None = None


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Child | Cell]],
    *,
    label: str,
    numbers: Iterable[str] = (),
    prose: Iterable[str] = (),
    marked_row: int | None = None,
    is_sortable: bool = False,
) -> Html:
    """Return a table that scrolls inside its own box; the first column stays in sight.

    Args:
        columns: Their names.
        rows: A cell a column; the first one names the row.
        label: What the table holds.
        numbers: Columns that are aligned to the right.
        prose: Columns whose text is wrapped.
        marked_row: One that stands out, counted from 0.
        is_sortable: Whether a click on a name sorts.
    """
    kinds = [
        "number" if name in set(numbers) else "prose" if name in set(prose) else None
        for name in columns
    ]
    head = [
        element(
            "th",
            element("button", name, type="button") if is_sortable else name,
            scope="col",
            class_=kind,
        )
        for name, kind in zip(columns, kinds, strict=True)
    ]
    body = [
        element(
            "tr",
            [
                _cell(cell, kind, is_first=column == 0)
                for column, (cell, kind) in enumerate(zip(row, kinds, strict=True))
            ],
            class_="marked" if index == marked_row else None,
        )
        for index, row in enumerate(rows)
    ]
    drawn = element(
        "table",
        element("caption", label, class_="unseen"),
        element("thead", element("tr", head)),
        element("tbody", body),
        class_="sortable" if is_sortable else None,
    )
    # A box that scrolls must be reachable without a mouse.
    return element("div", drawn, class_="scroll", role="region", aria_label=label, tabindex=0)


def _cell(cell: Child | Cell, kind: str | None, is_first: bool) -> Html:
    content, key = (cell.content, _sort_key(cell)) if isinstance(cell, Cell) else (cell, None)
    if is_first:
        return element("th", content, scope="row", class_=kind, data_key=key)
    return element("td", content, class_=kind, data_key=key)


def _sort_key(cell: Cell) -> str:
    return "" if cell.key is None or cell.key != cell.key else str(cell.key)


def facts(values: Mapping[str, Child]) -> Html:
    """Return a few figures that are read at a glance, by what they are."""
    pairs = [
        element("div", element("dt", name), element("dd", value)) for name, value in values.items()
    ]
    return element("dl", pairs, class_="facts")


def bullets(items: Iterable[Child]) -> Html:
    """Return a list."""
    return element("ul", [element("li", item) for item in items])


def copyable(text: str, label: str) -> Html:
    """Return a text with a button that copies it.

    Args:
        text: As it is to be copied.
        label: What it is.
    """
    return element(
        "div",
        element(
            "div",
            element("span", label),
            element("button", "Copy", type="button", class_="copy", aria_label=f"Copy {label}"),
            class_="copyable-head",
        ),
        element("pre", element("code", text), tabindex=0, aria_label=label, role="region"),
        class_="copyable",
    )


def legend(entries: Iterable[tuple[str, str, str]], *, scale: tuple[str, str] | None) -> Html:
    """Return what the lines of a plot mean.

    Args:
        entries: How a line is drawn (solid, dash, dot or thick), its colour in CSS, and its
            meaning.
        scale: What the two ends of the colour scale mean.
    """
    items = [
        element(
            "li",
            element("span", class_=f"stroke {stroke}", style=f"border-color:{colour}"),
            meaning,
        )
        for stroke, colour, meaning in entries
    ]
    if scale is not None:
        low, high = scale
        items.append(element("li", low, element("span", class_="ramp"), high))
    return element("ul", items, class_="legend")
