"""One page: a verdict, sections, and all that it needs to be drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from trainer.pages.figures import Figure, compressed_plotly
from trainer.pages.html import Child, Html, element

# The page is told to load nothing at all. Plotly puts style sheets and images into it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading.

    Attributes:
        title: Its heading, unique on the page.
        content: Blocks and figures, from top to bottom; a plain string is a paragraph.
    """

    title: str
    content: Sequence[str | Html | Figure]

    @property
    def anchor(self) -> str:
        """What a link to it ends with, after the `#`."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render_page(
    title: str,
    verdict: Child,
    sections: Sequence[Section],
    *,
    summary: Child = None,
    footer: Child = None,
) -> str:
    """Return a page that opens from disk and asks for nothing else.

    Args:
        title: Of the page.
        verdict: One sentence that says what it comes to.
        sections: What is below.
        summary: What stands between the verdict and the sections.
        footer: The last line.

    Raises:
        MissingDependencyError: If there are figures, and plotly is not there.
    """
    contents = element(
        "nav",
        element("ul", [element("li", _jump(each)) for each in sections]),
        aria_label="Sections",
    )
    has_figures = any(isinstance(block, Figure) for each in sections for block in each.content)
    library = Html(compressed_plotly()) if has_figures else None
    page = element(
        "body",
        element("header", element("h1", title), element("p", verdict, class_="verdict"), summary),
        contents,
        element("main", [_section(each) for each in sections]),
        element("footer", element("p", footer)) if footer else None,
        element("script", library, id="plotly", type="text/plain") if library else None,
        element("script", Html(_shipped("page.js"))),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(_shipped("page.css"))),
    )
    return f"<!doctype html>\n{element('html', head, page, lang='en')}\n"


def _section(section: Section) -> Html:
    heading = element("h2", section.title)
    return element("section", heading, map(_block, section.content), id=section.anchor)


def _block(block: str | Html | Figure) -> Html:
    if isinstance(block, Figure):
        return block.as_html()
    return block if isinstance(block, Html) else element("p", block)


def _jump(section: Section) -> Html:
    return element("a", section.title, href=f"#{section.anchor}")


def _shipped(name: str) -> Html:
    return Html(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))
