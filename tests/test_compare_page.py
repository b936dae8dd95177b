"""The page of a comparison draws what the runs have recorded, and asks for nothing else."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from compared_runs import (
    PLAIN,
    RESIDUAL,
    Make,
    compared,
    figure_with,
    maker,
    results_of,
    seeds,
    traces_of,
)
from html_pages import ReadPage, dumped, needs_chromium
from made_runs import STEPS_OF_AN_EPOCH

from trainer.compare import write_comparison
from trainer.compare.curves import curves_figure
from trainer.compare.overlay import STYLES
from trainer.pages.drawing import draw
from trainer.run_dir import read_json, write_json


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return maker(tmp_path)


def test_curves_are_those_of_each_history(make: Make) -> None:
    _, page = compared(
        make("a", PLAIN, val_accuracy=[0.1, 0.2, 0.3]), make("b", RESIDUAL, val_accuracy=[0.5])
    )

    first, second = traces_of(figure_with(page, "validation accuracy"), "validation accuracy")
    assert (first["name"], first["x"], first["y"]) == ("plain", [1, 2, 3], [0.1, 0.2, 0.3])
    assert (second["name"], second["x"], second["y"]) == ("residual", [1], [0.5])
    assert "markers" in second["mode"]


def test_no_two_groups_look_alike() -> None:
    assert len({colour for _, colour, _ in STYLES}) == len(STYLES) == 8
    assert len({symbol for _, _, symbol in STYLES}) == 8


def test_seeds_are_thin_and_their_mean_is_thick(make: Make) -> None:
    runs = [*seeds(make, "plain", [0.2, 0.4]), make("r", RESIDUAL, val_accuracy=[0.1, 0.5])]

    _, page = compared(*runs)

    *thin, mean, other = traces_of(figure_with(page, "training accuracy"), "training accuracy")
    assert [trace["line"]["width"] for trace in thin] == [1, 1]
    assert mean["line"]["width"] > 1
    assert mean["y"] == pytest.approx([0.15, 0.35])
    assert mean["line"]["color"] == thin[0]["line"]["color"] != other["line"]["color"]


def test_a_mean_ends_where_the_shortest_seed_does(make: Make) -> None:
    long = make("a", "fit.epochs=3", "seed=0", val_accuracy=[0.1, 0.2, 0.3])
    short = make("b", "fit.epochs=3", "seed=1", val_accuracy=[0.3])

    _, page = compared(long, short)

    mean = traces_of(figure_with(page, "validation accuracy"), "validation accuracy")[-1]
    assert mean["x"] == [1]
    assert mean["y"] == pytest.approx([0.2])


def test_profiles_show_first_middle_and_last_window_of_both_quantities(make: Make) -> None:
    _, page = compared(
        make("a", PLAIN, norms=[1e-4, 1e-2, 1.0]), make("b", RESIDUAL, norms=[1.0, 1.0, 1.0])
    )

    figure = figure_with(page, "update ratio")
    data = figure["wide"]["data"]
    assert len(data) == 2 * 3 * 2
    plain = [trace for trace in data if trace["name"] == "plain"]
    # Four windows: the first one is halved twice until the third, thrice until the last.
    for trace, halvings in zip(plain[:3], (0, 2, 3), strict=True):
        assert trace["x"] == ["layer0", "layer1", "layer2"]
        assert trace["y"] == pytest.approx([-4 + halvings * math.log10(0.5), -2, 0], abs=1e-3)
    assert all(trace["y"] == pytest.approx([-3, -3, -3]) for trace in plain[3:])
    assert "data" not in figure["narrow"]


def test_networks_of_other_depths_are_laid_from_first_to_last(make: Make) -> None:
    _, page = compared(
        make("a", PLAIN, "name=shallow", norms=[1.0, 1.0]),
        make("b", "name=deep", norms=[1.0] * 5),
    )

    data = figure_with(page, "update ratio")["wide"]["data"]
    places = {trace["name"]: trace["x"] for trace in data}
    assert places == {"shallow": [0, 1], "deep": [0, 0.25, 0.5, 0.75, 1]}
    assert "layer3" in data[1]["text"][3]
    assert "networks differ in their layers" in page.words


def test_a_projection_more_does_not_make_another_depth(make: Make) -> None:
    names = ["stem", "conv1", "conv2", "head"]
    more = ["stem", "conv1", "shortcut", "conv2", "head"]
    _, page = compared(
        make("a", PLAIN, "name=plain", norms=[1.0] * 4, paths=names),
        make("b", "name=projected", norms=[1.0] * 5, paths=more),
    )

    figure = figure_with(page, "update ratio")
    assert figure["wide"]["layout"]["xaxis"]["categoryarray"] == more
    assert figure["wide"]["data"][0]["x"] == names


def test_the_ratio_by_time_is_first_over_last(make: Make) -> None:
    _, page = compared(make("a", PLAIN, norms=[1e-3, 1, 1]), make("b", RESIDUAL))

    figure = figure_with(page, "first over last layer")
    plain, residual = traces_of(figure, "first over last layer")
    halved = np.arange(4) * math.log10(0.5)
    np.testing.assert_allclose(plain["y"], -3 + halved, atol=1e-3)
    np.testing.assert_allclose(residual["y"], halved, atol=1e-3)
    middles = (np.arange(4) * 4 + 2) / STEPS_OF_AN_EPOCH
    np.testing.assert_allclose(plain["x"], middles, rtol=1e-5)
    levels = [shape["y0"] for shape in figure["wide"]["layout"]["shapes"]]
    assert levels == pytest.approx([0, -3])


def test_a_gradient_of_zero_and_one_that_is_not_finite_stand_outside_the_scale(
    make: Make,
) -> None:
    zero = make("a", PLAIN, "name=zero", norms=[0.0, 1.0])
    lost = make("b", "name=lost", norms=[math.inf, 1.0])

    _, page = compared(zero, lost)

    first, second = traces_of(figure_with(page, "first over last layer"), "first over last layer")
    ticks = figure_with(page, "first over last layer")["wide"]["layout"]["yaxis"]
    assert set(first["y"]) == {ticks["tickvals"][ticks["ticktext"].index("0")]}
    assert set(second["y"]) == {ticks["tickvals"][ticks["ticktext"].index("not finite")]}


def test_seeds_whose_gradient_is_zero_have_a_mean_of_zero_and_no_other(make: Make) -> None:
    norms = ([0.0, 0.0, 1.0], [0.0, 1e-2, 1.0])
    runs = [make(f"a{seed}", f"seed={seed}", norms=norm) for seed, norm in enumerate(norms)]

    _, page = compared(*runs)

    first, _, mean = traces_of(figure_with(page, "update ratio"), "gradient norm")[:3]
    assert mean["y"] == [first["y"][0], None, 0]


def test_learning_rates_far_apart_are_drawn_by_powers_of_ten(make: Make) -> None:
    runs = [make("a", PLAIN), make("b", RESIDUAL)]
    history = runs[1] / "history.csv"
    history.write_text(history.read_text().replace(",0.1,10", ",0.001,10"))
    for run in runs:
        shutil.rmtree(run / "gradients")

    layout = figure_with(compared(*runs)[1], "learning rate")["wide"]["layout"]

    (axis,) = [v for k, v in layout.items() if k[0] == "y" and "rate" in v["title"]["text"]]
    assert axis["type"] == "log"


def test_reports_of_the_runs_are_linked(make: Make, tmp_path: Path) -> None:
    runs = [make("a", PLAIN), make("b", RESIDUAL)]
    (runs[0] / "report.html").write_text("")

    written = write_comparison(runs, tmp_path / "pages" / "both.html")

    page = ReadPage(written.path.read_text(encoding="utf-8"))
    links = [each for each in page.addresses() if not each.startswith("#")]
    assert links == ["./../a/report.html"]


def test_wild_names_are_shown_as_they_are(make: Make) -> None:
    wild = "</script><b>&amp;"
    runs = [make(f"run{index}", norms=[1.0, 1.0], paths=[wild, "x"]) for index in range(2)]
    for run, name in zip(runs, ("<i>%{y}", "&lt;"), strict=True):
        (run / "config.yaml").write_text("no_such_section: 1\n")
        shutil.move(run, run.parent / name)

    written = write_comparison([runs[0].parent / "<i>%{y}", runs[0].parent / "&lt;"],
                               runs[0].parent / "page.html")  # fmt: skip

    page = ReadPage(written.path.read_text(encoding="utf-8"))
    assert "<i>%{y}" in page.words
    assert "i" not in {name for name, _ in page.elements}
    names = {trace["name"] for figure in page.figures for trace in figure["wide"]["data"]}
    assert names == {"&lt;i&gt;%{y}", "&amp;lt;"}


def test_the_page_asks_for_nothing_from_outside(make: Make) -> None:
    _, page = compared(make("a", PLAIN), make("b", RESIDUAL))

    assert all(each.startswith("#") for each in page.addresses())


@needs_chromium
def test_a_browser_draws_the_page_without_a_word(make: Make, tmp_path: Path) -> None:
    runs = seeds(make, "plain", [0.2, 0.3], norms=[1e-6, 1e-3, 1.0])
    written, read = compared(*runs, make("r", RESIDUAL), make("k", "seed=9", val_accuracy=[]))

    page, console = dumped(written.path, tmp_path)

    assert console == ""
    assert ("html", {"lang": "en", "data-plots": "drawn"}) in page.elements
    drawn = [a for _, a in page.elements if "js-line" in (a.get("class") or "")]
    lines = [t for f in read.figures for t in f["wide"]["data"] if len(t["x"]) > 1]
    assert len(drawn) == len(lines)


def test_each_picture_of_a_comparison_is_a_file_too(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [make("one", PLAIN), make("two", RESIDUAL)]

    written = write_comparison(runs, tmp_path / "c.html", svg=tmp_path / "pictures")

    assert [each.name for each in written.pictures] == ["curves.svg", "profiles.svg", "ratio.svg"]
    texts = [each.read_text() for each in written.pictures]
    for text in texts:
        assert all(label in text for label in ("plain", "residual"))
    assert "validation accuracy" in texts[0]
    assert "middle window" in texts[1]
    assert "first over last layer" in texts[2]


def test_a_picture_shows_the_values_of_the_plot_of_the_page(make: Make) -> None:
    canvas = pytest.importorskip("matplotlib.figure").Figure()
    groups = results_of(make("one", PLAIN), make("two", RESIDUAL)).groups
    figure = curves_figure(groups)
    assert figure is not None

    draw(figure, canvas)

    drawn = [[*line.get_ydata()] for place in canvas.axes for line in place.lines]
    for trace in figure.data:
        assert trace["y"] in drawn
    [validation] = [each for each in canvas.axes if each.get_ylabel() == "validation accuracy"]
    assert validation.get_ylim()[0] < 0.3 < 0.4 < validation.get_ylim()[1]


def test_of_two_findings_of_a_rule_the_graver_one_is_shown(make: Make) -> None:
    run = make("a", PLAIN)
    known = read_json(run / "data.json")
    splits = {"train": {"num_images": 160}, "validation": {"num_images": 40}}
    duplicates = {"validation_in_train": 20, "within_train": 80}
    write_json(run / "data.json", {**known, "splits": splits, "duplicates": duplicates})

    _, page = compared(run, make("b", RESIDUAL))

    assert "20 validation images (50.00%) are training images too" in page.words
    _, _, table = page.words.partition("what it says of the first that has it")
    assert "data_duplicateswarning" in table
