"""Read a page as a browser does, with nothing of what wrote it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)


class ReadPage(HTMLParser):
    """A page's text, elements and scripts.

    Args:
        text: Of the file.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles = ""
        self._seen: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = (attributes, before + data)
        elif self._inside == "style":
            self.styles += data
        else:
            self._seen.append(data)

    @property
    def words(self) -> str:
        """All that is read, with single spaces."""
        return re.sub(r"\s+", " ", "".join(self._seen))

    @property
    def figures(self) -> list[dict[str, Any]]:
        """What plotly is to draw."""
        return [
            json.loads(text)
            for attributes, text in self.scripts
            if attributes.get("type") == "application/json"
        ]

    @property
    def plotly(self) -> str:
        """The library that the page carries."""
        (packed,) = [text for attributes, text in self.scripts if attributes.get("id") == "plotly"]
        return gzip.decompress(base64.b64decode(packed)).decode()

    def addresses(self) -> Iterator[str]:
        """All that the page refers to: its links, and what it would load."""
        for _, attributes in self.elements:
            for name in ("href", "src", "srcset", "action", "data", "poster"):
                if attributes.get(name) is not None:
                    yield str(attributes[name])
        yield from re.findall(r"url\(([^)]*)\)", self.styles)
        yield from re.findall(r"@import\s+(\S+)", self.styles)


def dumped(path: Path, tmp_path: Path, width: int = 1280) -> tuple[ReadPage, str]:
    """Open a page in a headless browser.

    Returns:
        The page as it is once it is drawn, and what the console said.
    """
    assert CHROMIUM is not None
    process = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--window-size={width},900",
            "--virtual-time-budget=30000",
            "--enable-logging=stderr",
            "--dump-dom",
            path.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    console = [line for line in process.stderr.splitlines() if ":CONSOLE" in line]
    return ReadPage(process.stdout), "\n".join(console)
