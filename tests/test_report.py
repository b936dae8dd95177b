"""The report of a run says what its files say, whatever became of the run."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from html_pages import ReadPage, dumped, needs_chromium
from PIL import Image
from tiny import environment, run_trainer, write_tiny_config

from trainer.errors import MissingDependencyError, RunDirectoryError
from trainer.gradient_log import GradientLog, GradientLogWriter, LogHeader, VariableInfo
from trainer.log_frames import LogWindow
from trainer.mistakes import Mistakes
from trainer.recorded_steps import MOMENTS, NORMS, STEP_DTYPE, RecordedSteps, is_shorter
from trainer.report import Report, write_report
from trainer.report.columns import MOST_COLUMNS, Columns, Picture, gradient_picture
from trainer.report.finding_blocks import patch_as_yaml
from trainer.run_dir import RunDir

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from benchmark_diagnosis import write as write_drawn_log

WILD = "</script><script>alert('x')</script> <b>&amp;"

# One process trains all runs: importing TensorFlow takes longer than they do.
TRAIN = """
import sys
from pathlib import Path
from trainer.config import load_config
from trainer.errors import TrainerError
from trainer.evaluate import evaluate
from trainer.run_dir import RunDir
from trainer.train import train

folder = Path(sys.argv[1])
command = ["trainer", "train", "tiny.yaml"]

def made(name, *overrides):
    config = load_config(folder / "tiny.yaml", [f"name={name}", *overrides])
    return train(config, runs_dir=folder / "runs", command=command)

evaluate(made("sound", "fit.epochs=2"))
lost = ("optimizer.kind=sgd", "optimizer.clipnorm=null", "optimizer.learning_rate=1e38",
        "schedule.kind=constant", "schedule.warmup_epochs=0", "fit.epochs=1")
try:
    made("lost", *lost, "model.block.normalization=none")
except TrainerError:
    pass
made("single", "fit.epochs=1", "fit.batch_size=200", "data.validation_split=0",
     "gradients.record=true")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs made by the real trainer, by name."""
    folder = tmp_path_factory.mktemp("report")
    write_tiny_config(folder)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRAIN), str(folder)],
        check=True,
        capture_output=True,
        env=environment(),
    )
    return {path.name.split("-")[0]: path for path in (folder / "runs").iterdir()}


@pytest.fixture
def copied(trained: dict[str, Path], tmp_path: Path) -> Callable[[str], RunDir]:
    """Copy a run, to be damaged."""

    def copy(name: str = "sound") -> RunDir:
        shutil.copytree(trained[name], tmp_path / "run")
        return RunDir(tmp_path / "run")

    return copy


def read(run: RunDir | Path) -> tuple[Report, ReadPage]:
    report = write_report(run.path if isinstance(run, RunDir) else run)
    return report, ReadPage(report.path.read_text(encoding="utf-8"))


def figure_with(page: ReadPage, title: str) -> dict[str, Any]:
    """Return the figure that has an axis or an annotation of this name."""
    (found,) = [f for f in page.figures if f'"{title}"' in json.dumps(f["wide"]["layout"])]
    return found


def heatmaps(page: ReadPage) -> list[dict[str, Any]]:
    figure = figure_with(page, "<b>gradient norm</b>")
    return [trace for trace in figure["wide"]["data"] if trace["type"] == "heatmap"]


def anchors(page: ReadPage) -> set[str]:
    return {str(a["id"]) for _, a in page.elements if "id" in a}


def test_the_report_lies_in_the_run_and_answers_programs(trained: dict[str, Path]) -> None:
    answer = run_trainer("report", trained["sound"], "--json")

    value = json.loads(answer.stdout)
    assert answer.returncode == 0, answer.stderr
    path = Path(value["report"])
    assert path == trained["sound"] / "report.html"
    assert value["bytes"] == path.stat().st_size < 5e6
    assert value["missing"] == {}
    verdict = value["verdict"].replace("\u00a0", " ")
    assert verdict in ReadPage(path.read_text(encoding="utf-8")).words


def test_the_last_line_for_people_is_the_file(copied: Callable[..., RunDir]) -> None:
    output = copied().path.parent / "elsewhere.html"

    answer = run_trainer("report", output.parent / "run", "--output", output)

    assert answer.stdout.splitlines()[-1] == str(output)
    assert output.is_file()


def test_the_command_line_writes_a_report_without_tensorflow(trained: dict[str, Path]) -> None:
    script = (
        "import sys; from trainer.report import write_report; write_report(sys.argv[1]); "
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(trained["sound"])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "[]"


def test_the_verdict_says_what_was_trained_how_well_and_whether_it_is_in_order(
    trained: dict[str, Path],
) -> None:
    report, _ = read(trained["sound"])

    accuracy = json.loads((trained["sound"] / "evaluation.json").read_text())["accuracy"]
    assert report.verdict.startswith(
        "sound, a residual network of 2 blocks on shapes, trained for 2 epochs and gets "
        f"{100 * accuracy:.2f}\u00a0% of the test images right; "
    )


def test_every_section_is_there_in_its_order(trained: dict[str, Path]) -> None:
    _, page = read(trained["sound"])

    titles = [a["id"] for name, a in page.elements if name == "section"]
    assert titles == [
        "loss-and-accuracy",
        "the-gradient-picture",
        "profile-by-depth",
        "clipping",
        "findings",
        "classes",
        "speed-and-memory",
        "config",
        "environment",
        "run-it-again",
    ]


def test_the_picture_shows_what_the_log_holds(trained: dict[str, Path]) -> None:
    _, page = read(trained["sound"])

    log = GradientLog.read(trained["sound"] / "gradients")
    norm, ratio, spread = [trace for trace in heatmaps(page) if "coloraxis" in trace]
    paths = [f"{label}/kernel" for label in norm["y"]]
    indices = [log.header.paths.index(path) for path in paths]
    assert paths[0] == "stem_conv/kernel"
    assert paths[-1] == "head_logits/kernel"
    for trace, stat in ((norm, "raw_norm/median"), (ratio, "update_ratio/median")):
        expected = np.log10(log.stat(stat)[:, indices].T.astype(np.float64))
        np.testing.assert_allclose(np.array(trace["z"], float), expected, atol=0.0051)
    assert spread["y"] == list(log.header.activations)
    edges = [*log.window_steps[:, 0].tolist(), int(log.window_steps[-1, 1]) + 1]
    assert norm["x"] == ratio["x"] == spread["x"] == edges


def test_the_three_pictures_share_their_time_axis(trained: dict[str, Path]) -> None:
    figure = figure_with(read(trained["sound"])[1], "<b>gradient norm</b>")

    for layout in (figure["wide"]["layout"], figure["narrow"]["layout"]):
        assert [layout[f"xaxis{n}"]["matches"] for n in (2, 3)] == ["x", "x"]


def test_a_button_shows_all_variables(trained: dict[str, Path]) -> None:
    _, page = read(trained["sound"])

    log = GradientLog.read(trained["sound"] / "gradients")
    figure = figure_with(page, "<b>gradient norm</b>")
    (others,) = figure["views"]
    assert len(figure["wide"]["data"][0]["y"]) == len(log.kernels)
    assert len(others["wide"]["data"][0]["y"]) == len(log.header.variables)
    buttons = [a for name, a in page.elements if name == "button" and "data-view" in a]
    assert [b["aria-pressed"] for b in buttons] == ["true", "false"]


def test_the_curves_are_those_of_the_history(trained: dict[str, Path]) -> None:
    figure = figure_with(read(trained["sound"])[1], "learning rate")

    rows = (trained["sound"] / "history.csv").read_text().splitlines()
    names = rows[0].split(",")
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        values = [float(row.split(",")[names.index(name)]) for row in rows[1:]]
        assert any(
            trace["x"] == [1, 2] and trace["y"] == pytest.approx(values, rel=1e-4)
            for trace in figure["wide"]["data"]
        ), name


def test_clipping_is_drawn_as_it_was_recorded(trained: dict[str, Path]) -> None:
    figure = figure_with(read(trained["sound"])[1], "clipped")

    steps = GradientLog.read(trained["sound"] / "gradients").steps
    shares, _, left = (trace["y"] for trace in figure["wide"]["data"])
    first = steps[:4]
    assert shares[0] == np.mean(first["clipped_norm"] < first["raw_norm"] * 0.999)
    expected = np.median(first["clipped_norm"] / first["raw_norm"])
    assert left[0] == pytest.approx(float(expected), rel=1e-3)


def test_rounding_is_no_clipping() -> None:
    raw = np.array([1.0, 1.0, np.inf, 0.0], np.float32)
    clipped = np.array([np.nextafter(np.float32(1), np.float32(0)), 0.9, 1.0, 0.0], np.float32)

    assert is_shorter(clipped, raw).tolist() == [False, True, False, False]


def test_the_confusion_matrix_and_the_worst_mistakes_are_shown(
    trained: dict[str, Path],
) -> None:
    _, page = read(trained["sound"])

    evaluation = json.loads((trained["sound"] / "evaluation.json").read_text())
    figure = figure_with(page, "predicted")
    assert figure["wide"]["data"][0]["customdata"] == evaluation["confusion"]
    kept = Mistakes.read(trained["sound"] / "mistakes.npz")
    images = [a for name, a in page.elements if name == "img"]
    assert len(images) == len(kept) == 24
    assert np.all(np.diff(kept.probabilities) <= 0)
    assert np.all(kept.labels != kept.predicted)
    png = base64.b64decode(str(images[0]["src"]).removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), kept.images[0])


def test_mistakes_are_those_that_are_most_certain() -> None:
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [np.nan, np.nan]], np.float32)
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)

    found = Mistakes.among(probabilities, images, np.array([1, 1, 1, 0]), most=1)

    assert found.images.ravel().tolist() == [1]
    assert (found.labels[0], found.predicted[0]) == (1, 0)


def test_the_config_and_the_commands_repeat_the_run(trained: dict[str, Path]) -> None:
    _, page = read(trained["sound"])

    path = trained["sound"] / "config.yaml"
    assert re.sub(r"\s+", " ", path.read_text()).strip() in page.words
    assert f"trainer train {path}" in page.words
    assert "trainer train tiny.yaml" in page.words


def test_a_run_that_went_non_finite_at_once_opens_and_says_so(trained: dict[str, Path]) -> None:
    report, page = read(trained["lost"])

    assert "nonfinite" in report.findings
    assert "its gradients are not in order" in report.verdict
    lost = [trace for trace in heatmaps(page) if colours(trace) == ["var(--bad)"]]
    assert lost
    assert all(None not in row for row in lost[0]["z"])
    assert "loss not finite from here" in json.dumps(page.figures)
    assert "NaN" not in json.dumps(page.figures)


def colours(trace: dict[str, Any]) -> list[str]:
    scale = trace.get("colorscale")
    return sorted({colour for _, colour in scale}) if isinstance(scale, list) else []


def test_every_finding_of_the_log_leads_to_a_plot_that_marks_it(trained: dict[str, Path]) -> None:
    report, page = read(trained["lost"])

    links = [a for name, a in page.elements if name == "a" and "data-mark" in a]
    assert len(links) >= 1
    assert len(links) + page.words.count("Seen in no plot") == len(report.findings)
    for each in links:
        anchor = str(each["href"]).removeprefix("#")
        assert anchor in anchors(page)
        assert any(each["data-mark"] in figure.get("marks", {}) for figure in page.figures)
    assert "data-marked" in links[0]


def test_a_single_step_without_validation_opens_and_says_what_is_missing(
    trained: dict[str, Path],
) -> None:
    report, page = read(trained["single"])

    assert len(GradientLog.read(trained["single"] / "gradients").steps) == 1
    assert "validation" in report.missing
    assert "The run was not evaluated on the test set" in page.words
    assert "of the training images right" in report.verdict


def test_a_killed_run_says_that_it_was(copied: Callable[..., RunDir]) -> None:
    run = copied()
    run.status.write_text('{"state": "running", "pid": 999999999}')
    run.evaluation.unlink()
    run.model.unlink()

    report, page = read(run)

    assert "was killed after 2 of 2 epochs" in report.verdict
    assert "the end of the run" in report.missing
    assert "What is missing" in page.words


def test_a_run_that_was_killed_before_its_first_epoch_opens(copied: Callable[..., RunDir]) -> None:
    run = copied()
    for path in (run.history, run.gradients / "windows.bin", run.evaluation):
        path.unlink()

    report, page = read(run)

    assert {"log", "loss and accuracy by epoch"} <= set(report.missing)
    assert page.figures == []
    assert "no window was recorded yet" in page.words


def test_a_run_without_recorder_opens_and_says_so(copied: Callable[..., RunDir]) -> None:
    run = copied()
    shutil.rmtree(run.gradients)

    report, page = read(run)

    assert "its gradients were not recorded" in report.verdict
    assert "gradients.record: false" in page.words
    assert figure_with(page, "learning rate")


def test_a_truncated_log_shows_its_sound_windows(copied: Callable[..., RunDir]) -> None:
    run = copied()
    windows = run.gradients / "windows.bin"
    whole = len(GradientLog.read(run.gradients).window_steps)
    windows.write_bytes(windows.read_bytes()[:-50])

    report, page = read(run)

    assert len(heatmaps(page)[0]["x"]) == whole  # edges of one window less
    assert str(windows) in report.missing["the end of the log"]


def test_a_log_that_is_noise_is_said_to_be(copied: Callable[..., RunDir]) -> None:
    run = copied()
    (run.gradients / "windows.bin").write_bytes(b"\xff" * 5000)

    report, page = read(run)

    assert "log" in report.missing
    assert "There is none" in page.words


@pytest.mark.parametrize(
    "name", ["history.csv", "evaluation.json", "environment.json", "status.json", "data.json"]
)
def test_a_damaged_file_is_named_and_the_rest_stands(
    copied: Callable[..., RunDir], name: str
) -> None:
    run = copied()
    (run.path / name).write_text("epoch,loss\n1,x\n" if name.endswith("csv") else "{")

    report, page = read(run)

    assert str(run.path / name) in " ".join(report.missing.values())
    assert heatmaps(page)


def test_an_evaluation_of_a_model_that_is_not_finite_is_not_damaged(
    copied: Callable[..., RunDir],
) -> None:
    run = copied()
    evaluation = json.loads(run.evaluation.read_text())
    run.evaluation.write_text(json.dumps({**evaluation, "loss": None}))

    _, page = read(run)

    assert "loss not finite." in page.words
    assert figure_with(page, "predicted")


def test_damaged_mistakes_are_left_out(copied: Callable[..., RunDir]) -> None:
    run = copied()
    run.mistakes.write_bytes(b"PK\x03\x04 torn")

    _, page = read(run)

    assert "The most confident mistakes are not shown" in page.words
    assert figure_with(page, "predicted")


def test_a_config_of_another_version_costs_only_what_needs_it(
    copied: Callable[..., RunDir],
) -> None:
    run = copied()
    run.config.write_text("no_such_section: 1\n")

    report, page = read(run)

    assert "this version cannot read it" in report.missing["config"]
    assert heatmaps(page)
    assert figure_with(page, "accuracy")


def test_a_bare_log_is_enough(copied: Callable[..., RunDir]) -> None:
    run = copied()

    report, page = read(run.gradients)

    assert report.path == run.gradients / "report.html"
    assert report.verdict.startswith("A training has ")
    assert heatmaps(page)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no run directory"):
        write_report(tmp_path)


def test_names_are_shown_as_they_were_written(copied: Callable[..., RunDir]) -> None:
    run = copied()
    config = yaml.safe_load(run.config.read_text())
    run.config.write_text(yaml.safe_dump({**config, "name": "plain"}))
    evaluation = json.loads(run.evaluation.read_text())
    evaluation["classes"][0]["name"] = WILD
    run.evaluation.write_text(json.dumps(evaluation))
    run.environment.write_text(json.dumps({"cpu": WILD, "command": ["trainer", WILD]}))

    _, page = read(run)

    assert page.words.count(WILD) >= 2
    assert sum(text.strip().startswith("alert") for _, text in page.scripts) == 0
    assert all(not each.startswith("http") for each in page.addresses())


def test_nothing_is_asked_for_from_outside(trained: dict[str, Path]) -> None:
    _, page = read(trained["sound"])

    assert all(each.startswith(("#", "data:image/png;base64,")) for each in page.addresses())


def write_log(folder: Path, num_windows: int, norms: Callable[[int], list[float]]) -> GradientLog:
    """Write a log with two steps a window, through the writer."""
    count = len(norms(0))
    header = LogHeader(tuple(VariableInfo(f"layer{i}/kernel", (2, 2)) for i in range(count)))
    writer = GradientLogWriter(folder, header)
    for window in range(num_windows):
        steps = np.zeros(2, STEP_DTYPE)
        steps["step"] = 2 * window + np.arange(2)
        table = np.ones((2, count, len(NORMS)), np.float32)
        table[:, :, 0] = norms(window)
        moments = np.zeros((2, count, len(MOMENTS)), np.float32)
        writer.append(LogWindow.of(RecordedSteps(steps, table, moments)))
    return GradientLog.read(folder)


def test_zeros_and_what_is_not_finite_have_no_logarithm(tmp_path: Path) -> None:
    log = write_log(tmp_path, 3, lambda window: [[0.0, 10.0, math.nan, math.inf][window], 1.0])

    picture = gradient_picture(log, Columns.of(log))

    assert picture.is_zero[0].tolist() == [True, False, False]
    assert picture.is_nonfinite[0].tolist() == [False, False, True]
    np.testing.assert_array_equal(picture.log10[0], [np.nan, 1.0, np.nan])
    assert picture.extent == (0.0, 1.0)


def test_a_long_log_is_reduced_to_medians_that_miss_no_lost_window(tmp_path: Path) -> None:
    def norms(window: int) -> list[float]:
        return [math.inf if window == 700 else 1000.0 if window == 3 else 10.0]

    log = write_log(tmp_path, 1000, norms)

    columns = Columns.of(log)
    picture = gradient_picture(log, columns)

    assert len(columns) == MOST_COLUMNS
    assert (columns.edges[0], columns.edges[-1]) == (0, 2000)
    assert picture.is_nonfinite.sum() == 1
    (lost,) = np.flatnonzero(picture.is_nonfinite[0])
    assert columns.bounds[lost] <= 700 < columns.bounds[lost + 1]
    assert np.nanmax(picture.log10) == 1.0  # one loud window of four is no median


def test_a_long_run_of_a_deep_network_is_reported_in_seconds_and_five_megabytes(
    tmp_path: Path,
) -> None:
    write_drawn_log(tmp_path, layers=110, num_steps=50_000)
    started = time.process_time()

    report = write_report(tmp_path)

    assert time.process_time() - started < 20
    assert report.path.stat().st_size < 5e6


def test_a_picture_of_nothing_but_zeros_has_a_scale() -> None:
    columns = Columns(np.array([0, 1]), np.array([0, 1]))

    picture = Picture.of(columns, np.zeros((1, 3)), np.zeros((1, 3), bool))

    assert picture.is_zero.all()
    assert picture.extent == (-1.0, 0.0)


def test_the_profile_says_of_each_window_what_the_picture_says(trained: dict[str, Path]) -> None:
    _, page = read(trained["lost"])

    profile = figure_with(page, "gradient norm")
    (ratio,) = [t for t in heatmaps(page) if t["xaxis"] == "x2" and colours(t) == ["var(--bad)"]]
    last = [trace for trace in profile["wide"]["data"] if trace["yaxis"] == "y2"][-1]
    assert [text == "not finite" for text in last["text"]] == [
        row[-1] is not None for row in ratio["z"][: len(last["x"])]
    ]


def test_a_patch_is_a_piece_of_a_config() -> None:
    patch = {"model.block.kind": "residual", "model.block.dropout": 0.1, "optimizer.clipnorm": None}

    assert yaml.safe_load(patch_as_yaml(patch)) == {
        "model": {"block": {"kind": "residual", "dropout": 0.1}},
        "optimizer": {"clipnorm": None},
    }


@pytest.mark.parametrize("name", ["sound", "lost", "single"])
def test_each_picture_is_a_file_too(trained: dict[str, Path], tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")

    report = write_report(trained[name], tmp_path / "r.html", png=tmp_path / "pictures")

    expected = {"loss", "gradient_picture", "profile"}
    more = {
        "sound": {"clipping", "confusion", "speed"},
        "lost": {"speed"},
        "single": {"clipping", "speed"},
    }
    assert {each.stem for each in report.pictures} == expected | more[name]
    for path in report.pictures:
        with Image.open(path) as image:
            assert image.width > 500
            assert len(np.unique(np.asarray(image))) > 10


def test_an_svg_holds_its_words_and_has_the_same_bytes_again(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")

    first = write_report(trained["sound"], tmp_path / "r.html", svg=tmp_path / "one").pictures
    again = write_report(trained["sound"], tmp_path / "r.html", svg=tmp_path / "two").pictures

    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in again]
    assert "update ratio" in (tmp_path / "one" / "gradient_picture.svg").read_text()


def test_without_matplotlib_the_error_says_what_to_install(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(MissingDependencyError, match=r"need matplotlib .*setup_env.sh report"):
        write_report(trained["sound"], tmp_path / "r.html", png=tmp_path)


@needs_chromium
def test_a_browser_draws_a_report_and_marks_the_first_finding(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    report, _ = read(trained["lost"])

    page, console = dumped(report.path, tmp_path)

    assert console == ""
    assert ("html", {"lang": "en", "data-plots": "drawn"}) in page.elements
    assert "Marked: nonfinite" in page.words


@needs_chromium
def test_a_finding_marks_its_layers_and_the_button_copies_the_patch(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    report, read_page = read(trained["lost"])
    links = [a for name, a in read_page.elements if name == "a" and "data-mark" in a]
    script = """
    <script>
    const copied = [];
    const writeText = async (text) => copied.push(text);
    Object.defineProperty(navigator, "clipboard", {value: {writeText}});
    const timer = setInterval(async () => {
      if (document.documentElement.dataset.plots !== "drawn") return;
      clearInterval(timer);
      const marked = [];
      for (const link of document.querySelectorAll("a[data-mark]")) {
        link.click();
        await new Promise((done) => setTimeout(done, 300));
        const figure = document.querySelector(link.getAttribute("href"));
        const isSaid = !figure.querySelector(".marked-now").hidden;
        marked.push(isSaid && figure.querySelector(".plot").layout.shapes.length > 0);
      }
      document.querySelector(".unmark").click();
      document.querySelector("button[data-view='1']").click();
      document.querySelector(".finding .copy").click();
      await new Promise((done) => setTimeout(done, 300));
      const rows = document.querySelector("#gradient-picture .plot").data[0].y.length;
      const told = {marked, copied, rows, place: location.hash};
      document.documentElement.dataset.told = JSON.stringify(told);
    }, 50);
    </script></body>"""
    driven = tmp_path / "driven.html"
    driven.write_text(report.path.read_text(encoding="utf-8").replace("</body>", script))

    page, console = dumped(driven, tmp_path)

    assert console == ""
    (root,) = [a for name, a in page.elements if name == "html"]
    told = json.loads(str(root["data-told"]))
    assert told["marked"] == [True] * len(links)
    assert told["place"] == links[-1]["href"]
    log = GradientLog.read(trained["lost"] / "gradients")
    assert told["rows"] == len(log.header.variables)
    (patch,) = told["copied"]
    assert yaml.safe_load(patch)
