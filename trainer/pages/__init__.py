"""Self-contained pages: one HTML file that opens from disk, without a server or a network.

A page is sections of blocks; a figure is a plain dict in plotly's JSON, drawn by plotly.js,
which the page carries compressed. Every text is escaped unless it is `Html`.
"""

from trainer.pages.blocks import Cell, bullets, copyable, facts, legend, table
from trainer.pages.figures import Figure, mark_link, plot_text, rounded
from trainer.pages.html import Html, element, link
from trainer.pages.page import Section, render_page

__all__ = [
    "Cell",
    "Figure",
    "Html",
    "Section",
    "bullets",
    "copyable",
    "element",
    "facts",
    "legend",
    "link",
    "mark_link",
    "plot_text",
    "render_page",
    "rounded",
    "table",
]
