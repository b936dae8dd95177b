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
from dataclasses import dataclass
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
        narrow: The same for a narrow place, if that is another figure; its label and
            caption do not count.
        narrow_below: CSS pixels of width, below which a place is narrow.
        is_brushed: Whether dragging over points leaves only the traces that pass there.
    """

    label: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 420
    caption: str | Html = ""
    narrow: Figure | None = None
    narrow_below: int = 600
    is_brushed: bool = False

    def as_html(self) -> Html:
        """Return it for a page."""
        drawn: dict[str, Any] = {"wide": self._drawn(), "brushed": self.is_brushed}
        drawn["narrowBelow"] = self.narrow_below
        if self.narrow is not None:
            drawn["narrow"] = self.narrow._drawn()
        return element(
            "figure",
            element(
                "div",
                element("p", "This plot is drawn by JavaScript.", class_="pending"),
                class_="plot",
                role="img",
                aria_label=self.label,
                style=f"min-height:{self.height}px",
            ),
            element("script", script_json(drawn), type="application/json"),
            element("figcaption", self.caption) if self.caption else None,
        )

    def _drawn(self) -> dict[str, Any]:
        return {"data": self.data, "layout": {**self.layout, "height": self.height}}


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
            f"a page with plots needs plotly ({error}). Run: pip install 'trainer[search]'"
        ) from None
    # Without the time, the same page has the same bytes.
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
