"""Whatever holds a trained classifier answers like it, or is refused in one message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from exported import Exported, export_tiny_run
from test_cli import call

KINDS: dict[str, Callable[[Exported], Path]] = {
    "run": lambda exported: exported.run.path,
    "version": lambda exported: exported.version,
    "versions": lambda exported: exported.run.saved_model,
    "litert": lambda exported: exported.litert,
    "onnx": lambda exported: exported.onnx,
}

Answer = Callable[..., list[dict[str, Any]]]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_tiny_run(tmp_path_factory.mktemp("classifiers"))


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Answer:
    """Return a function that runs `trainer predict` and returns its rows."""

    def predict(*arguments: str | Path) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert call("predict", *arguments, "--json", monkeypatch=monkeypatch) == 0
        return list(json.loads(capsys.readouterr().out)["predictions"])

    return predict


@pytest.fixture
def refusal(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refusal:
    """Return a function that returns the only line that `trainer predict MODEL` prints."""

    def predict(model: Path) -> str:
        capsys.readouterr()
        code = call("predict", model, exported.folder, monkeypatch=monkeypatch)
        printed = capsys.readouterr()
        assert (code, printed.out) == (2, "")
        [line] = printed.err.splitlines()
        return line

    return predict


def found(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(row["probabilities"].values()) for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_answers_like_the_trained_one(
    kind: str, exported: Exported, answer: Answer
) -> None:
    rows = answer(KINDS[kind](exported), exported.folder)

    np.testing.assert_allclose(found(rows), exported.probabilities, atol=1e-5)
    labels = [exported.class_names[index] for index in exported.probabilities.argmax(axis=1)]
    assert [row["label"] for row in rows] == labels
    assert [row["probability"] for row in rows] == list(found(rows).max(axis=1))
    assert all(list(row["probabilities"]) == exported.class_names for row in rows)


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_size_does_not_change_an_answer(
    kind: str, batch_size: int, exported: Exported, answer: Answer
) -> None:
    rows = answer(KINDS[kind](exported), exported.folder, "--batch-size", str(batch_size))

    np.testing.assert_allclose(found(rows), exported.probabilities, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_image_is_answered(kind: str, exported: Exported, answer: Answer) -> None:
    rows = answer(KINDS[kind](exported), exported.folder / "3.png")

    np.testing.assert_allclose(found(rows), exported.probabilities[3:4], atol=1e-5)


def test_the_newest_version_is_the_largest_number(
    exported: Exported, answer: Answer, tmp_path: Path
) -> None:
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "saved_model.pb").write_bytes(b"older")
    shutil.copytree(exported.version, tmp_path / "10")

    rows = answer(tmp_path, exported.folder)

    np.testing.assert_allclose(found(rows), exported.probabilities, atol=1e-5)


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_the_class_names_are_found_wherever_the_command_is_given(
    kind: str, exported: Exported, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = KINDS[kind](exported)
    monkeypatch.chdir(path.parent)

    rows = answer(path.name, exported.folder)

    assert list(rows[0]["probabilities"]) == exported.class_names


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_a_file_that_was_moved_away_from_its_names_numbers_the_classes(
    kind: str, exported: Exported, answer: Answer, tmp_path: Path
) -> None:
    path = KINDS[kind](exported)
    shutil.copy(path, tmp_path)

    rows = answer(tmp_path / path.name, exported.folder)

    assert list(rows[0]["probabilities"]) == [str(index) for index in range(10)]
    np.testing.assert_allclose(found(rows), exported.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    "content",
    ['{"class_names": [', "[]", "{}", '{"class_names": null}', '{"class_names": ["cat", "dog"]}'],
)
def test_names_that_do_not_belong_to_the_model_are_an_error_that_names_their_file(
    content: str, exported: Exported, refusal: Refusal, tmp_path: Path
) -> None:
    shutil.copy(exported.onnx, tmp_path)
    (tmp_path / "export.json").write_text(content)

    assert refusal(tmp_path / exported.onnx.name).startswith(f"error: {tmp_path / 'export.json'}: ")


def copy_of(source: Path, folder: Path, **changes: bytes | None) -> Path:
    """Return a copy of a folder in which files are overwritten or, with None, removed."""
    copy = Path(shutil.copytree(source, folder / "copy"))
    for name, content in changes.items():
        path = copy / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    return copy


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


RANDOM = np.random.default_rng(0).bytes(3000)


def test_a_path_that_does_not_exist_is_told_with_the_rule(refusal: Refusal, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == (
        f"error: {tmp_path / 'nowhere'}: a model must be a run directory, a SavedModel, "
        "a .tflite or an .onnx file, and this does not exist"
    )


@pytest.mark.parametrize("name", ["folder/", "picture.png", "folder.onnx/"])
def test_something_that_holds_no_model_is_told_with_the_rule(
    name: str, refusal: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    else:
        path.touch()

    line = refusal(path)

    assert line.startswith(f"error: {path}: a model must be a run directory, a SavedModel")
    assert line.endswith("and this is none of these")


@pytest.mark.parametrize("kind", ["litert", "onnx"])
@pytest.mark.parametrize("damage", [lambda _: RANDOM, lambda _: b"", lambda b: b[: len(b) // 2]])
def test_a_damaged_file_is_one_message(
    kind: str,
    damage: Callable[[bytes], bytes],
    exported: Exported,
    refusal: Refusal,
    tmp_path: Path,
) -> None:
    whole = KINDS[kind](exported)
    path = written(tmp_path / whole.name, damage(whole.read_bytes()))

    assert refusal(path).startswith(f"error: {path}: the model cannot be loaded (")


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_truncated_saved_model_is_one_message(
    is_inside: bool, exported: Exported, refusal: Refusal, tmp_path: Path
) -> None:
    content = (exported.version / "saved_model.pb").read_bytes()[:5000]
    version = tmp_path / "2"
    copy_of(exported.version, tmp_path, **{"saved_model.pb": content}).rename(version)

    line = refusal(version if is_inside else tmp_path)

    assert line.startswith(f"error: {version}: the model cannot be loaded (")


def test_a_saved_model_without_its_weights_is_one_message(
    exported: Exported, refusal: Refusal, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(exported.version, tmp_path / "copy"))
    shutil.rmtree(path / "variables")

    assert refusal(path).startswith(f"error: {path}: the model cannot be loaded (")


def test_a_run_without_a_model_says_how_to_go_on(
    exported: Exported, refusal: Refusal, tmp_path: Path
) -> None:
    run = copy_of(exported.run.path, tmp_path, **{"model.keras": None})

    assert refusal(run) == (
        f"error: {run / 'model.keras'}: the run has no trained model, it is done. "
        f"Train it again: trainer train {run / 'config.yaml'}"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.keras", RANDOM), ("data.json", b"{"), ("data.json", b"{}"), ("data.json", None)],
)
def test_a_damaged_artifact_of_a_run_is_named(
    name: str, content: bytes | None, exported: Exported, refusal: Refusal, tmp_path: Path
) -> None:
    run = copy_of(exported.run.path, tmp_path, **{name: content})

    assert refusal(run).startswith(f"error: {run / name}: ")


def write_foreign_onnx(
    path: Path, shape: list[int | str], axes: list[int], num_classes: int, inputs: int = 1
) -> Path:
    """Write a network that another program could have made: a mean over some axes."""
    from onnx import TensorProto, helper, save_model

    images = [
        helper.make_tensor_value_info(f"images{index}", TensorProto.FLOAT, shape)
        for index in range(inputs)
    ]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [shape[0], num_classes])
    node = helper.make_node("ReduceMean", ["images0"], ["output"], axes=axes, keepdims=0)
    graph = helper.make_graph([node], "foreign", images, [output])
    opset = [helper.make_opsetid("", 13)]
    save_model(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


@pytest.mark.parametrize(
    "form",
    [
        pytest.param((["batch", 3, 32, 32], [2, 3], 3), id="channels first"),
        pytest.param((["batch", "height", "width", 3], [1, 2], 3), id="any size"),
        pytest.param((["batch", 32, 32, 1], [1, 2], 1), id="grey"),
        pytest.param(([2, 32, 32, 3], [1, 2], 3), id="two images at a time"),
        pytest.param((["batch", 32, 32, 3], [1, 2], 3, 2), id="two inputs"),
        pytest.param((["batch", 4, 8], [2], 4), id="no images"),
    ],
)
def test_a_foreign_onnx_file_of_other_inputs_is_one_message(
    form: tuple[Any, ...], refusal: Refusal, tmp_path: Path
) -> None:
    path = write_foreign_onnx(tmp_path / "foreign.onnx", *form)

    assert refusal(path).startswith(f"error: {path}: ")


def test_a_foreign_saved_model_is_answered_or_refused_in_one_message(
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(images)
    keras.Model(images, keras.layers.Softmax()(pooled)).export(tmp_path / "foreign", verbose=False)
    capsys.readouterr()

    code = call("predict", tmp_path / "foreign", exported.folder, monkeypatch=monkeypatch)

    printed = capsys.readouterr()
    if code == 0:
        assert len(printed.out.splitlines()) == 5
    else:
        assert (code, printed.out) == (2, "")
        assert printed.err.startswith(f"error: {tmp_path / 'foreign'}: ")


@pytest.mark.parametrize(
    ("kind", "module"), [("litert", "ai_edge_litert"), ("onnx", "onnxruntime")]
)
def test_a_package_that_is_not_installed_is_named_with_how_to_install_it(
    kind: str, module: str, exported: Exported, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    path = KINDS[kind](exported)
    assert refusal(path) == (
        f"error: {path}: reading it needs {module}, which is not installed. "
        f"Install it: scripts/setup_env.sh {kind}"
    )


@pytest.mark.parametrize("kind", ["litert", "onnx", "nothing"])
def test_what_needs_no_tensorflow_does_not_import_it(
    kind: str, exported: Exported, tmp_path: Path
) -> None:
    program = """if True:
        import sys
        from trainer import cli
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code
        print(code, [name for name in ("tensorflow", "keras") if name in sys.modules])
    """
    path = tmp_path / "nowhere" if kind == "nothing" else KINDS[kind](exported)
    arguments = ["predict", path, exported.folder]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == f"{2 if kind == 'nothing' else 0} []"
