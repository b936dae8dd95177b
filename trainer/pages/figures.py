"""Figures as plain dicts in plotly's JSON, and plotly.js itself.

Colours are names that the page resolves, so that one figure serves light and dark: a custom
property of `page.css`, as `var(--ink)`, or a place on the scale, as `scale(0.7)`, where 1
stands out most from the background. `"colorscale": "scale"` is the whole scale.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from trainer.errors import MissingDependencyError
from trainer.pages.html import Html, element
from trainer.run_dir import json_safe


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        label: What it shows, for those who cannot see it.
        data: Traces.
        layout: Of plotly; fonts, grid and backgrounds are the page's.
        height: CSS pixels.
        caption: What to see in it.
        legend: What its lines mean; see `blocks.legend`, which shows it.
        narrow: The same for a narrow place, if that is another figure; its label, caption and
            legend do not count.
        narrow_below: CSS pixels of width, below which a place is narrow.
        is_brushed: Whether dragging over points leaves only the traces that pass there.
        anchor: What a link to it ends with, after the `#`.
        marks: Shapes of plotly's layout that are drawn on top, by what they mark; a link made
            by `mark_link` asks for one of them.
        name: Of this view, where there are others.
        views: Further figures that a button each shows in this one's place; of them, labels,
            captions and anchors do not count.
    """

    label: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 420
    caption: str | Html = ""
    legend: Sequence[tuple[str, str, str]] = ()
    narrow: Figure | None = None
    narrow_below: int = 600
    is_brushed: bool = False
    anchor: str | None = None
    marks: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    name: str = ""
    views: Sequence[Figure] = ()

    def as_html(self) -> Html:
        """Return it for a page."""
        views = (self, *self.views)
        return element(
            "figure",
            _switch(views) if self.views else None,
            element("p", class_="marked-now", hidden=True),
            element(
                "div",
                element("p", "This plot is drawn by JavaScript.", class_="pending"),
                class_="plot",
                role="img",
                aria_label=self.label,
                style=f"min-height:{self.height}px",
            ),
            element("script", script_json(_of_views(views)), type="application/json"),
            element("figcaption", self.caption) if self.caption else None,
            id=self.anchor,
        )

    def _drawn(self) -> dict[str, Any]:
        drawn: dict[str, Any] = {
            "wide": self._of_screen(),
            "brushed": self.is_brushed,
            "narrowBelow": self.narrow_below,
        }
        if self.narrow is not None:
            drawn["narrow"] = self.narrow._of_screen()
            if self.narrow.data is self.data:
                # Only the layout differs: large data are written once.
                del drawn["narrow"]["data"]
        if self.marks:
            drawn["marks"] = self.marks
        return drawn

    def _of_screen(self) -> dict[str, Any]:
        return {"data": self.data, "layout": {**self.layout, "height": self.height}}


def _of_views(views: Sequence[Figure]) -> dict[str, Any]:
    first, *others = (view._drawn() for view in views)
    return {**first, "views": others} if others else first


def _switch(views: Sequence[Figure]) -> Html:
    buttons = [
        element(
            "button",
            view.name,
            type="button",
            data_view=index,
            aria_pressed="false" if index else "true",
        )
        for index, view in enumerate(views)
    ]
    return element("div", buttons, class_="switch", role="group", aria_label="What is drawn")


def mark_link(text: str, anchor: str, mark: str, meaning: str, *, is_marked: bool = False) -> Html:
    """Return a link to a figure that marks something there.

    Args:
        text: What is read.
        anchor: Of the figure.
        mark: A key of its `marks`; other figures that have it mark it too.
        meaning: What the marks are, said above them.
        is_marked: Whether it is marked before anybody asks.
    """
    return element(
        "a",
        text,
        href=f"#{anchor}",
        data_mark=mark,
        data_meaning=meaning,
        data_marked=is_marked,
    )


def script_json(value: Any) -> Html:
    """Return JSON that can stand inside a script element; NaN and infinities become null."""
    text = json.dumps(json_safe(value), separators=(",", ":"), allow_nan=False)
    # `</script>` in a name would end the element, and `<!--` would hide its end.
    return Html(text.replace("<", "\\u003c"))


def plot_text(text: str) -> str:
    """Return a text so that plotly shows it as it is: it reads a few HTML tags."""
    return html.escape(text, quote=False)


def rounded(value: float | None, digits: int = 5) -> float | None:
    """Return a number with fewer digits than nobody sees in a plot; NaN becomes None."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.{digits}g}")


@lru_cache(maxsize=1)
def compressed_plotly() -> str:
    """Return plotly.js, compressed by gzip, in base64: 2 MB of the 5 that it has.

    Raises:
        MissingDependencyError: If the package is not there.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingDependencyError(
            f"a page with plots needs plotly ({error}). Run: scripts/setup_env.sh report"
        ) from None
    # Without the time, the same page has the same bytes.
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
