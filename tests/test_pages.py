"""A page is one file that opens from disk, and holds what it was given as it was given."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
from html_pages import ReadPage, dumped, needs_chromium
from plotly.offline import get_plotlyjs

from trainer import pages
from trainer.errors import MissingDependencyError
from trainer.pages import (
    Cell,
    Figure,
    Section,
    bullets,
    copyable,
    element,
    facts,
    legend,
    link,
    mark_link,
    plot_text,
    render_page,
    table,
)
from trainer.pages.drawing import drawing_of, write_pictures
from trainer.pages.figures import compressed_plotly

WILD = """</script><script>alert(1)</script><!-- <b>&amp; "quoted" 'twice'"""


def a_figure(name: str = "line", **more: object) -> Figure:
    trace = {"type": "scatter", "x": [1, 2, 3], "y": [1, 4, 9], "name": name, **more}
    return Figure("A line", [trace], {"xaxis": {"title": {"text": "x"}}})


def page_of(*blocks: object) -> str:
    return render_page("A page", "All is well.", [Section("One", blocks)])  # type: ignore[arg-type]


def test_every_text_is_read_as_it_was_written() -> None:
    page = ReadPage(
        page_of(
            WILD,
            element("p", WILD, title=WILD),
            table([WILD], [[WILD]], label=WILD),
            facts({WILD: WILD}),
            bullets([WILD]),
            copyable(WILD, WILD),
            legend([("solid", "red", WILD)], scale=(WILD, WILD)),
            link(WILD, "file"),
        )
    )

    assert page.words.count(WILD) == 14  # thrice in a table and in a legend
    assert {"title": WILD} in [attributes for _, attributes in page.elements]
    assert len(page.scripts) == 1


def test_a_title_and_a_verdict_are_read_as_they_were_written() -> None:
    page = ReadPage(render_page(WILD, WILD, [Section(WILD, [])], footer=WILD))

    assert page.words.count(WILD) == 6  # the title twice, a section's heading and its link


def test_a_name_in_a_figure_cannot_end_its_script() -> None:
    page = ReadPage(page_of(a_figure(WILD)))

    (figure,) = page.figures
    assert figure["wide"]["data"][0]["name"] == WILD
    assert len(page.scripts) == 3


def test_plotly_is_told_to_show_tags_as_text() -> None:
    assert plot_text("<b>a</b> & b") == "&lt;b&gt;a&lt;/b&gt; &amp; b"


def test_what_is_not_finite_is_missing_in_a_figure() -> None:
    page = ReadPage(page_of(a_figure(y=[1.5, math.nan, math.inf, -math.inf])))

    assert page.figures[0]["wide"]["data"][0]["y"] == [1.5, None, None, None]


def test_a_figure_for_narrow_screens_comes_along() -> None:
    figure = Figure("Wide", [], {}, narrow=Figure("", [], {"title": {"text": "n"}}, height=99))

    (read,) = ReadPage(page_of(figure)).figures

    assert read["narrow"]["layout"] == {"title": {"text": "n"}, "height": 99}


def test_large_data_that_both_screens_share_are_written_once() -> None:
    data = [{"type": "scatter", "y": [1, 2]}]
    figure = Figure("Wide", data, {}, narrow=Figure("", data, {"title": {"text": "n"}}))

    (read,) = ReadPage(page_of(figure)).figures

    assert read["wide"]["data"] == data
    assert set(read["narrow"]) == {"layout"}


def test_a_figure_has_a_button_for_each_of_its_views() -> None:
    figure = Figure("Few", [], {}, name="few", views=[Figure("", [], {"x": 1}, name=WILD)])

    page = ReadPage(page_of(figure))

    buttons = [a for name, a in page.elements if name == "button"]
    assert [(b["data-view"], b["aria-pressed"]) for b in buttons] == [("0", "true"), ("1", "false")]
    assert f"few{WILD}" in page.words
    assert page.figures[0]["views"][0]["wide"]["layout"] == {"x": 1, "height": 420}


def test_a_link_names_the_mark_and_its_figure_has_it() -> None:
    shape = {"type": "rect", "x0": 1}
    figure = Figure("Marked", [], {}, anchor="plot", marks={"one": [shape]})

    page = ReadPage(page_of(figure, mark_link("see", "plot", "one", WILD)))

    (link_,) = [a for name, a in page.elements if "data-mark" in a]
    assert link_ == {"href": "#plot", "data-mark": "one", "data-meaning": WILD}
    assert ("figure", {"id": "plot"}) in page.elements
    assert page.figures[0]["marks"] == {"one": [shape]}


def test_the_library_is_carried_once_whole_and_fits_with_room_to_spare() -> None:
    text = page_of(a_figure(), a_figure(), a_figure())

    assert ReadPage(text).plotly == get_plotlyjs()
    assert len(text.encode()) < 2.5e6


def test_a_page_without_a_plot_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    compressed_plotly.cache_clear()

    assert len(page_of("Nothing to draw.").encode()) < 50_000


def test_a_page_asks_for_nothing_from_outside() -> None:
    page = ReadPage(page_of(a_figure(), link("there", "a folder/x?.html")))

    assert set(page.addresses()) == {"#one", "./a%20folder/x%3F.html"}
    policies = [
        attributes["content"]
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none';")
    assert "http" not in str(policies[0])


def test_the_same_page_has_the_same_bytes() -> None:
    first = page_of(a_figure())
    compressed_plotly.cache_clear()

    assert page_of(a_figure()) == first


def test_without_plotly_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    compressed_plotly.cache_clear()

    with pytest.raises(MissingDependencyError, match=r"needs plotly .*setup_env.sh report"):
        page_of(a_figure())


def test_every_section_can_be_jumped_to() -> None:
    sections = [Section("First things", []), Section("Second: more", [])]
    page = ReadPage(render_page("A page", "Well.", sections))

    ids = {f"#{attributes['id']}" for name, attributes in page.elements if name == "section"}
    assert ids == set(page.addresses()) == {"#first-things", "#second-more"}


def test_a_cell_is_sorted_by_its_key_and_one_without_is_last() -> None:
    page = ReadPage(
        page_of(table(["a", "b"], [["x", Cell("1 k", 1000)], ["y", Cell("")]], label="t"))
    )

    keys = [a.get("data-key") for name, a in page.elements if name in ("td", "th")]
    assert keys == [None, None, None, "1000", None, ""]


def test_a_table_scrolls_in_its_own_box_and_can_be_reached_by_keyboard() -> None:
    page = ReadPage(page_of(table(["a"], [["x"]], label="All of it")))

    (box,) = [a for _, a in page.elements if a.get("class") == "scroll"]
    assert (box["tabindex"], box["role"], box["aria-label"]) == ("0", "region", "All of it")


@needs_chromium
@pytest.mark.parametrize(("width", "kind"), [(1280, "false"), (520, "true")])
def test_a_browser_draws_every_plot_without_a_word(tmp_path: Path, width: int, kind: str) -> None:
    path = tmp_path / "a page.html"
    heat = Figure(
        "Heat",
        [{"type": "heatmap", "z": [[1, None], [2, 3]], "colorscale": "scale"}],
        {"font": {"color": "var(--accent)"}},
    )
    path.write_text(page_of(a_figure(WILD), heat), encoding="utf-8")

    page, console = dumped(path, tmp_path, width)

    assert console == ""
    assert ("html", {"lang": "en", "data-plots": "drawn"}) in page.elements
    plots = [a for _, a in page.elements if "js-plotly-plot" in (a.get("class") or "").split()]
    assert [plot["data-narrow"] for plot in plots] == [kind, kind]
    assert any(name == "path" and "js-line" in (a.get("class") or "") for name, a in page.elements)


def test_a_picture_takes_no_name_for_a_formula(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = "100 $ of $x_{ &lt;b&gt;"
    line = {"type": "scatter", "x": ["a", name], "y": [1, 2], "line": {"color": "var(--ink)"}}
    axis = {"categoryarray": ["a", name], "tickvals": [name], "ticktext": [name]}
    figure = Figure("A line", [line], {"xaxis": axis}, legend=[("solid", "var(--bad)", "$a_{")])

    [path] = write_pictures({"one": drawing_of(figure)}, tmp_path, "svg")

    assert "100 $ of $x_{ &lt;b&gt;" in path.read_text()
    assert "$a_{" in path.read_text()


def test_a_picture_has_the_powers_and_the_colours_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    line = {"type": "scatter", "x": [1, 2], "y": [-3, 0], "line": {"color": "var(--accent)"}}
    axis = {"tickvals": [-3], "ticktext": ["10<sup>\u22123</sup>"], "range": [-4, 1]}

    [path] = write_pictures(
        {"one": drawing_of(Figure("A line", [line], {"yaxis": axis}))}, tmp_path, "svg"
    )

    css = (Path(pages.__file__).parent / "page.css").read_text()
    [accent, *_] = re.findall(r"--accent: (#[0-9a-f]{6})", css)
    assert f"stroke: {accent}" in path.read_text()
    assert "$10^{-3}$" in path.read_text()
