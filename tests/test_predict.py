"""What becomes of image files: each its own row, whatever is wrong with it or its neighbours."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from exported import Exported, export_tiny_run
from image_files import BAD, GOOD
from PIL import Image
from test_cli import call
from test_terminal import run_on_a_terminal
from tiny import environment, run_trainer, trainer_command

from trainer.classifiers import open_classifier
from trainer.predict import predict, sources_of

Rows = list[dict[str, Any]]


class Predicted(NamedTuple):
    """The exit code of `trainer predict`, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> Rows:
        return list(json.loads(self.out)["predictions"])


Ask = Callable[..., Predicted]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_tiny_run(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def ask(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ask:
    """Return a function that runs `trainer predict MODEL`, with bytes on standard input.

    The model is an ONNX file, which is open in an instant.
    """

    def run(*arguments: str | Path, standard_input: bytes = b"") -> Predicted:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(standard_input)))
        code = call("predict", exported.onnx, *arguments, monkeypatch=monkeypatch)
        return Predicted(code, *capsys.readouterr())

    return run


def found(rows: Rows) -> np.ndarray:
    return np.array([list(row["probabilities"].values()) for row in rows])


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_nothing_on_standard_input_is_one_message(content: bytes, ask: Ask) -> None:
    answer = ask("-", standard_input=content)

    message = "error: at least one image is needed, and there is none in standard input\n"
    assert answer == (2, "", message)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_an_image_on_standard_input_is_answered_like_its_file(
    form: str, exported: Exported, ask: Ask, tmp_path: Path
) -> None:
    file = tmp_path / f"image.{form.lower()}"
    Image.fromarray(exported.images[1]).save(file)

    answer = ask("-", file, "--json", standard_input=file.read_bytes())

    piped, read = answer.rows
    assert (answer.code, piped["path"], piped["error"]) == (0, "-", None)
    assert piped["label"] == read["label"]
    np.testing.assert_allclose(found([piped]), found([read]), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["with some spaces.png", "B\u00e4r/Gr\u00f6\u00dfe.png", "\u65e5\u672c.png"]
)
@pytest.mark.parametrize("is_piped", [True, False])
def test_a_name_is_read_and_told_as_it_is(
    name: str, is_piped: bool, exported: Exported, ask: Ask, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(exported.images[2]).save(file)

    answer = ask("-" if is_piped else file, "--json", standard_input=f"{file}\n".encode())

    assert [row["path"] for row in answer.rows] == [str(file)]
    np.testing.assert_allclose(found(answer.rows), exported.probabilities[2:3], atol=1e-5)


@pytest.mark.parametrize("is_piped", [True, False])
def test_a_name_that_is_no_unicode_gets_its_row(
    is_piped: bool, exported: Exported, tmp_path: Path
) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes((exported.folder / "0.png").read_bytes())

    done = subprocess.run(
        trainer_command("predict", exported.onnx, "-" if is_piped else tmp_path),
        input=name,
        capture_output=True,
        # As in any locale but C.
        env={**environment(), "PYTHONIOENCODING": "utf-8:strict"},
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(bytes(range(256)) * 4, id="bytes"),
        pytest.param(np.random.default_rng(0).bytes(20_000), id="random bytes"),
        pytest.param(b"II*\0" + bytes(100), id="TIFF"),
    ],
)
def test_standard_input_that_is_neither_image_nor_text_has_an_answer(
    content: bytes, exported: Exported, ask: Ask
) -> None:
    answer = ask(exported.folder / "0.png", "-", "--json", standard_input=content)

    assert answer.code == 1
    assert answer.rows[0]["error"] is None
    assert len(answer.rows) > 1
    assert all(row["error"] for row in answer.rows[1:])


def test_a_name_that_no_file_can_have_costs_only_its_own_row(exported: Exported, ask: Ask) -> None:
    answer = ask("x" * 5000 + ".png", exported.folder / "0.png", "--json")

    assert answer.code == 1
    assert [bool(row["error"]) for row in answer.rows] == [True, False]


@pytest.fixture(scope="module")
def mixed(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    """Return what is said of good and bad files in turn, and of one that is missing."""
    folder = tmp_path_factory.mktemp("mixed")
    contents = {name: content for name, (content, _) in (BAD | GOOD).items()}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = [folder / name for name in (*sorted(contents), "nowhere.png")]
    done = run_trainer("predict", exported.onnx, *files, "--json", "--batch-size", "4")
    answer = Predicted(done.returncode, done.stdout, done.stderr)
    assert [row["path"] for row in answer.rows] == [str(file) for file in files], answer.err
    return answer


def row_of(name: str, answer: Predicted) -> dict[str, Any]:
    [row] = [row for row in answer.rows if Path(row["path"]).name == name]
    return row


@pytest.mark.parametrize("name", [*BAD, "nowhere.png"])
def test_a_bad_file_says_what_is_wrong_in_its_own_row(name: str, mixed: Predicted) -> None:
    row = row_of(name, mixed)

    assert (BAD[name][1] if name in BAD else "No such file") in row["error"]
    assert name in row["error"]
    assert (row["label"], row["probability"], row["probabilities"]) == (None, 0.0, {})


@pytest.mark.parametrize("name", GOOD)
def test_a_file_of_any_mode_and_size_is_answered_beside_bad_ones(
    name: str, exported: Exported, mixed: Predicted
) -> None:
    row = row_of(name, mixed)

    expected = open_classifier(exported.onnx).probabilities_of(GOOD[name][1][None])
    assert row["error"] is None
    # JPEG changes a colour by a level or two.
    tolerance = 2e-2 if name.endswith("jpg") else 1e-5
    np.testing.assert_allclose(found([row]), expected, atol=tolerance)


def test_bad_files_make_exit_code_1_and_no_noise(mixed: Predicted) -> None:
    assert (mixed.code, mixed.err) == (1, "")


def test_good_files_make_exit_code_0(exported: Exported, ask: Ask) -> None:
    assert ask(exported.folder).code == 0


def test_files_that_are_all_bad_are_answered_too(ask: Ask, tmp_path: Path) -> None:
    answer = ask(tmp_path / "a.png", tmp_path / "b.png", "--json", "--batch-size", "1")

    assert answer.code == 1
    assert all(row["error"] for row in answer.rows)


def test_a_folder_without_images_beside_others_is_told(
    exported: Exported, ask: Ask, tmp_path: Path
) -> None:
    answer = ask(tmp_path, exported.folder / "0.png", "--json")

    assert answer.code == 1
    empty, image = answer.rows
    assert (empty["path"], bool(empty["error"])) == (str(tmp_path), True)
    assert image["error"] is None


@pytest.mark.parametrize("size", [20, 1000])
def test_a_truncated_image_on_standard_input_has_a_row(
    size: int, exported: Exported, ask: Ask
) -> None:
    content = (exported.folder / "0.png").read_bytes()[:size]

    answer = ask("-", "--json", standard_input=content)

    assert answer.code == 1
    [row] = answer.rows
    assert row["path"] == "-" and row["error"].startswith("- ")


def test_json_is_one_object_that_names_the_model(exported: Exported, ask: Ask) -> None:
    answer = json.loads(ask(exported.folder, "--json").out)

    assert list(answer) == ["model", "predictions"]
    assert answer["model"] == str(exported.onnx)
    keys = ["path", "label", "probability", "probabilities", "error"]
    assert all(list(row) == keys for row in answer["predictions"])


def test_json_lines_are_the_rows_of_json_in_their_order(
    exported: Exported, ask: Ask, tmp_path: Path
) -> None:
    arguments = (tmp_path / "nowhere.png", exported.folder, "--batch-size", "2")

    lines = ask(*arguments, "--json-lines")

    assert lines.code == 1
    assert [json.loads(line) for line in lines.out.splitlines()] == ask(*arguments, "--json").rows


def test_json_and_json_lines_together_are_refused(exported: Exported, ask: Ask) -> None:
    assert ask(exported.folder, "--json", "--json-lines").code == 2


def test_the_table_is_a_line_an_image_within_80_columns(
    exported: Exported, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported.folder)

    lines = ask(".").out.splitlines()

    expected = zip(exported.probabilities.argmax(axis=1), exported.probabilities, strict=True)
    for index, (line, (best, probabilities)) in enumerate(zip(lines, expected, strict=True)):
        assert len(line) <= 80
        probability, label, path = line.split()
        assert (label, path) == (exported.class_names[best], f"{index}.png")
        assert float(probability) == pytest.approx(probabilities[best], abs=6e-4)


def test_a_bad_file_in_the_table_is_one_line_that_names_it_once(
    exported: Exported, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"no image")

    bad, good = ask("bad.png", exported.folder / "0.png").out.splitlines()

    assert bad.count("bad.png") == 1
    assert bad.index("bad.png") == good.index(str(exported.folder))


def test_a_batch_is_answered_before_the_next_is_read(exported: Exported) -> None:
    classifier = open_classifier(exported.onnx)
    sizes: list[int] = []

    def counted(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return classifier.probabilities_of(images)

    sources = sources_of([str(exported.folder)])
    predictions = predict(replace(classifier, probabilities_of=counted), sources, batch_size=2)

    assert [(next(predictions).path, list(sizes)) for _ in range(5)] == [
        (source.name, seen)
        for source, seen in zip(sources, ([2], [2], [2, 2], [2, 2], [2, 2, 1]), strict=True)
    ]


@contextmanager
def stuck_at_third(exported: Exported, folder: Path, *options: str) -> Iterator[subprocess.Popen]:
    """Start a prediction whose third file is a pipe: it waits there until someone writes."""
    pipe = folder / "pipe.png"
    os.mkfifo(pipe)
    files = [exported.folder / f"{index}.png" for index in range(4)]
    command = trainer_command("predict", exported.onnx, *files[:2], pipe, *files[2:], *options)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment(), **streams) as process:
        # A prediction that is never heard of again must not hold up the tests.
        alarm = threading.Timer(60, process.kill)
        alarm.start()
        yield process
        alarm.cancel()


def test_json_lines_come_batch_by_batch(exported: Exported, tmp_path: Path) -> None:
    options = ("--json-lines", "--batch-size", "2")
    with stuck_at_third(exported, tmp_path, *options) as process:
        first = [json.loads(process.stdout.readline()) for _ in range(2)]
        os.close(os.open(tmp_path / "pipe.png", os.O_WRONLY))
        rest = [json.loads(line) for line in process.stdout]

    assert [Path(row["path"]).name for row in first] == ["0.png", "1.png"]
    assert [bool(row["error"]) for row in rest] == [True, False, False]
    assert process.returncode == 1


def test_a_reader_that_goes_away_ends_the_lines_without_a_traceback(exported: Exported) -> None:
    picture = next(path for path in sorted(exported.folder.iterdir()) if path.suffix == ".png")
    process = subprocess.Popen(
        trainer_command("predict", exported.onnx, "-", "--json-lines"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin and process.stdout and process.stderr
    # More lines than a pipe holds: it cannot be done when the reader leaves.
    process.stdin.write(f"{picture}\n" * 1000)
    process.stdin.close()
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as stream:
        printed = stream.read()

    assert process.wait() == 1
    assert printed == ""


def test_a_progress_bar_takes_no_row_from_standard_output(exported: Exported, ask: Ask) -> None:
    arguments = (exported.folder, "--json-lines")

    printed, shown = run_on_a_terminal(trainer_command("predict", exported.onnx, *arguments))

    assert printed == ask(*arguments).out
    assert "classifying" in shown
