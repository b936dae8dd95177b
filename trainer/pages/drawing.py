"""The pictures of a page as files, drawn by matplotlib, an optional dependency.

`draw` reads what the figures of the pages have of plotly's JSON: lines and bars on axes with
domains, ranges, ticks and titles. What needs more than that draws itself.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainer.errors import MissingDependencyError
from trainer.pages.figures import Figure
from trainer.run_dir import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Ending = Literal["png", "svg"]
Drawing = Callable[["Canvas"], bool]
"""Draws onto an empty canvas, and says whether there was anything to draw."""

_DOTS_PER_INCH = 160
_WIDTH_INCHES = 7.5
_PIXELS_PER_INCH = 105
# Where axes lie on the canvas; what stands beside them is cut out with them.
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.09, 0.98, 0.1, 0.98
_BESIDE = 0.05
_DASHES = {"solid": "-", "dash": "--", "dot": ":", "thick": "-"}
_SYMBOLS = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "x": "X"}
_GRID = "line"
# Of three columns of a legend.
_MOST_LETTERS = 80


def write_pictures(drawings: Mapping[str, Drawing], folder: Path, ending: Ending) -> list[Path]:
    """Draw pictures, each into a file of its own.

    Args:
        drawings: By the name of the file, without its ending.
        folder: Made if missing; files of the same names are replaced.
        ending: Of the files.

    Returns:
        The files of those that had anything to draw.

    Raises:
        MissingDependencyError: If matplotlib is not there.
        RunDirectoryError: If a file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingDependencyError(
            f"pictures as files need matplotlib ({error}). Run: scripts/setup_env.sh report"
        ) from None
    written = []
    # Text of an SVG stays text, and the same run has the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "trainer", "font.size": 9}):
        for name, drawing in drawings.items():
            canvas = Canvas(dpi=_DOTS_PER_INCH)
            if drawing(canvas):
                path = folder / f"{name}.{ending}"
                write_atomically(path, _saving(canvas, ending))
                written.append(path)
    return written


def _saving(canvas: Canvas, ending: Ending) -> Callable[[Path], None]:
    metadata = {"Date": None} if ending == "svg" else None
    return lambda path: canvas.savefig(
        path, format=ending, metadata=metadata, bbox_inches="tight", pad_inches=0.1
    )


@lru_cache(maxsize=1)
def _colours() -> dict[str, str]:
    """Return the colours of the page, in the light."""
    text = files("trainer.pages").joinpath("page.css").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for name, value in re.findall(r"--([a-z]+): (#[0-9a-f]{6})\b", text):
        found.setdefault(name, value)
    return found


def colour(name: str) -> str:
    """Return a colour of the page for matplotlib: of `ink`, or of `var(--ink)`."""
    # The one colour that is half transparent on the page.
    name = name.removeprefix("var(--").removesuffix(")").replace("faint", "zero")
    return name if name.startswith("#") else _colours()[name]


def drawing_of(figure: Figure | None) -> Drawing:
    """Return what draws a figure of a page; nothing, if there is none."""

    def drawing(canvas: Canvas) -> bool:
        if figure is None:
            return False
        draw(figure, canvas)
        return True

    return drawing


def draw(figure: Figure, canvas: Canvas) -> None:
    """Draw a figure of lines or bars."""
    canvas.set_size_inches(_WIDTH_INCHES, figure.height / _PIXELS_PER_INCH)
    places: dict[tuple[str, str], Axes] = {}
    for trace in figure.data:
        key = (trace.get("xaxis", "x"), trace.get("yaxis", "y"))
        if key not in places:
            places[key] = _axes(canvas, figure.layout, key, places)
        _draw_trace(places[key], trace, _axis(figure.layout, key[0]))
    for key, place in places.items():
        _scale(place, figure.layout, key)
    for shape in figure.layout.get("shapes", ()):
        _draw_shape(places, shape)
    for note in figure.layout.get("annotations", ()):
        _annotate(canvas, places, note)
    if figure.legend:
        _legend(canvas, figure.legend)


def _axis(layout: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The axis `x2` of a layout is in its `xaxis2`."""
    axis: Mapping[str, Any] = layout.get(f"{name[0]}axis{name[1:]}", {})
    return axis


def _on_canvas(x: float, y: float) -> tuple[float, float]:
    """From plotly's paper to the canvas."""
    return _LEFT + x * (_RIGHT - _LEFT), _BOTTOM + y * (_TOP - _BOTTOM)


def _axes(
    canvas: Canvas,
    layout: Mapping[str, Any],
    key: tuple[str, str],
    others: Mapping[tuple[str, str], Axes],
) -> Axes:
    """Return new axes, along which time or depth runs as in others of the same."""
    along = _axis(layout, key[0]).get("matches", key[0])
    shared = next((each for (x, _), each in others.items() if x == along), None)
    across, down = (_axis(layout, name).get("domain", (0.0, 1.0)) for name in key)
    left, bottom = _on_canvas(across[0], down[0])
    right, top = _on_canvas(across[1], down[1])
    if across[0] > 0 and "title" in _axis(layout, key[1]):
        # A title needs more room here than on the page.
        left += _BESIDE
    place: Axes = canvas.add_axes((left, bottom, right - left, top - bottom), sharex=shared)
    place.grid(color=colour(_GRID), linewidth=0.6)
    place.set_axisbelow(True)
    place.spines[:].set_visible(False)
    place.tick_params(which="both", length=0, labelcolor=colour("soft"))
    return place


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if each is None else each for each in values], np.float64)


def _draw_trace(place: Axes, trace: Mapping[str, Any], axis: Mapping[str, Any]) -> None:
    x, y = trace["x"], _numbers(trace["y"])
    if "categoryarray" in axis:
        index = {name: number for number, name in enumerate(axis["categoryarray"])}
        x = [index[name] for name in x]
    if trace["type"] == "bar":
        place.bar(x, y, width=0.65, color=colour(trace["marker"]["color"]))
        return
    line = trace["line"]
    ink, opacity = colour(line["color"]), trace.get("opacity", 1)
    dash = _DASHES[line.get("dash", "solid")]
    place.plot(x, y, dash, color=ink, linewidth=0.7 * line.get("width", 2), alpha=opacity)
    if "markers" not in trace.get("mode", "lines"):
        return
    marker = trace.get("marker", {})
    for (symbol, shade), chosen in _by_marker(marker, ink, len(y)).items():
        place.plot(
            np.asarray(x)[chosen],
            y[chosen],
            _SYMBOLS.get(symbol.removesuffix("-open"), "o"),
            color=shade,
            markerfacecolor="none" if symbol.endswith("-open") else shade,
            markersize=3.5,
            alpha=opacity,
        )


def _by_marker(marker: Mapping[str, Any], ink: str, count: int) -> dict[tuple[str, str], list[int]]:
    """Which points have which symbol and colour; those of no size have none."""

    def each(key: str, default: Any) -> list[Any]:
        value = marker.get(key, default)
        return list(value) if isinstance(value, list) else [value] * count

    found: dict[tuple[str, str], list[int]] = {}
    shades, symbols = each("color", ink), each("symbol", "circle")
    for index, size in enumerate(each("size", 6)):
        if size:
            found.setdefault((symbols[index], colour(shades[index])), []).append(index)
    return found


def _scale(place: Axes, layout: Mapping[str, Any], key: tuple[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

    for name, axis_of, other in ((key[0], place.xaxis, key[1]), (key[1], place.yaxis, key[0])):
        axis = _axis(layout, name)
        is_log = axis.get("type") == "log"
        if is_log:
            place.set(**{f"{name[0]}scale": "log"})
        if "range" in axis:
            low, high = axis["range"]
            place.set(**{f"{name[0]}lim": (10**low, 10**high) if is_log else (low, high)})
        elif axis.get("rangemode") == "tozero" and not is_log:
            place.set(**{f"{name[0]}lim": (0, None)})
        if "tickvals" in axis:
            index = {name: number for number, name in enumerate(axis.get("categoryarray", ()))}
            places = [index.get(each, each) for each in axis["tickvals"]]
            seen = place.get_xlim() if name[0] == "x" else place.get_ylim()
            axis_of.set_ticks(places, [plain_text(each) for each in axis["ticktext"]], minor=False)
            axis_of.set_tick_params(which="minor", labelleft=False)
            # Ticks beyond the values would make room for themselves.
            place.set(**{f"{name[0]}lim": seen})
        elif axis.get("tickformat", "").endswith("%"):
            axis_of.set_major_formatter(PercentFormatter(1.0, 0))
        elif not is_log:
            is_whole = axis.get("title", {}).get("text") in ("epoch", "step")
            axis_of.set_major_locator(
                MultipleLocator(axis["dtick"])
                if "dtick" in axis
                else MaxNLocator(axis.get("nticks", "auto"), integer=is_whole)
            )
        is_end = axis.get("anchor", other) == other
        title = axis.get("title", {}).get("text", "")
        if is_end and title:
            axis_of.set_label_text(plain_text(title), color=colour("soft"))
        if not is_end or axis.get("showticklabels") is False:
            axis_of.set_tick_params(labelbottom=False, labelleft=False)
        if axis.get("tickangle") and is_end:
            axis_of.set_tick_params(rotation=90, labelsize=6.5)
        if axis.get("showgrid") is False:
            axis_of.grid(False)


def plain_text(text: str) -> str:
    """Return what plotly's HTML says, powers in matplotlib's own notation."""
    words, *rest = re.split(r"10<sup>(.*?)</sup>", text.replace("\u2212", "-"))
    found = [_without_tags(words)]
    for exponent, words in zip(rest[::2], rest[1::2], strict=True):
        found += [f"$10^{{{exponent}}}$", _without_tags(words)]
    return "".join(found)


def _without_tags(text: str) -> str:
    return literal(html.unescape(re.sub(r"<[^>]*>", "", text.replace("<br>", "\n"))))


def literal(text: str) -> str:
    """Return a text that matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def _draw_shape(places: Mapping[tuple[str, str], Axes], shape: Mapping[str, Any]) -> None:
    line = shape.get("line", {})
    style = {
        "color": colour(line.get("color", "soft")),
        "linestyle": _DASHES[line.get("dash", "solid")],
        "linewidth": 0.7 * line.get("width", 1),
    }
    for (x, y), place in places.items():
        if shape.get("xref") == "paper" and shape.get("yref", "y") == y:
            place.axhline(shape["y0"], **style, zorder=1)
        elif shape.get("yref") == "paper" and shape.get("xref", "x") == x:
            place.axvline(shape["x0"], **style)


def _annotate(
    canvas: Canvas, places: Mapping[tuple[str, str], Axes], note: Mapping[str, Any]
) -> None:
    style = {
        "color": colour(note.get("font", {}).get("color", "soft")),
        "ha": note.get("xanchor", "center"),
        "va": note.get("yanchor", "bottom"),
    }
    text = plain_text(note["text"])
    if note.get("xref") == "paper":
        canvas.text(*_on_canvas(note["x"], note["y"]), text, **style)
        return
    first = next(place for (x, _), place in places.items() if x == note.get("xref", "x"))
    first.text(note["x"], note["y"], text, transform=first.get_xaxis_transform(), **style)


def _legend(canvas: Canvas, entries: Sequence[tuple[str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle=_DASHES[dash], color=colour(ink), label=literal(meaning))
        for dash, ink, meaning in entries
    ]
    letters = sum(len(meaning) for _, _, meaning in entries)
    canvas.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=_on_canvas(0.0, 1.03),
        ncols=min(len(handles), 3 if letters <= _MOST_LETTERS else 2),
        frameon=False,
        borderaxespad=0,
    )
