"""LiteRT and ONNX files, asked by their own runtimes, and formats that cannot be had."""

from __future__ import annotations

import importlib.util
import json
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from exported_runs import call, contents, many_images, probabilities_of, split_of, train_tiny

from trainer.config import load_config
from trainer.data.splits import split_off_validation
from trainer.errors import MissingDependencyError
from trainer.evaluate import load_run_model
from trainer.export import probe
from trainer.export.exporting import Export, export, format_export
from trainer.export.formats import FORMATS, chosen_formats
from trainer.export.serving_model import float32_twin
from trainer.run_dir import RunDir, read_json

# The largest difference of a probability. Integers of 8 bits: 256 levels of every activation.
DIFFERENCE = {
    "litert-float32": 1e-5,
    "litert-float16": 2e-2,
    "litert-dynamic": 5e-2,
    "litert-int8": 0.15,
    "onnx-float32": 1e-5,
    "onnx-int8": 0.15,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_tiny(tmp_path_factory.mktemp("formats"))


@pytest.fixture(scope="module")
def exported(run: RunDir) -> Export:
    return export(run, chosen_formats(["litert", "onnx"]))


def answer_of(path: Path, images: np.ndarray) -> np.ndarray:
    """Answer as the documentation of each runtime shows it."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        [answer] = session.run(None, {"images": images.astype(np.float32)})
        return answer
    interpreter = Interpreter(str(path))
    [inputs], [outputs] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(inputs["index"], images.shape)
    interpreter.allocate_tensors()
    scale, zero = inputs["quantization"]
    # One level of a pixel is one level of the input, or the file would need a conversion.
    assert (scale, zero) in ((0, 0), (pytest.approx(1, abs=1e-3), 0))
    interpreter.set_tensor(inputs["index"], images.astype(inputs["dtype"]))
    interpreter.invoke()
    answer = interpreter.get_tensor(outputs["index"])
    scale, zero = outputs["quantization"]
    return (answer.astype(np.float32) - zero) * scale if scale else answer


def tensors_of(path: Path) -> list[dict[str, Any]]:
    return Interpreter(str(path)).get_tensor_details()


def test_every_format_is_exported(exported: Export) -> None:
    assert exported.failures == {}
    found = {name for name in contents(exported.path) if name.startswith(("litert/", "onnx/"))}
    assert found == {entry["file"] for entry in exported.facts["formats"].values()}
    assert set(exported.facts["formats"]) == set(FORMATS) == set(DIFFERENCE)


@pytest.mark.parametrize("name", DIFFERENCE)
def test_a_format_answers_nearly_as_the_trained_model(
    run: RunDir, exported: Export, name: str
) -> None:
    path = exported.path / FORMATS[name].file_name
    images = many_images(run)
    expected = probabilities_of(run, images)
    found = answer_of(path, images)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=DIFFERENCE[name])
    for size in (1, 7):
        np.testing.assert_allclose(answer_of(path, images[:size]), found[:size], atol=1e-5)


@pytest.mark.parametrize("name", DIFFERENCE)
def test_the_figures_of_a_format_are_those_of_its_own_runtime(
    run: RunDir, exported: Export, name: str
) -> None:
    entry = exported.facts["formats"][name]
    path = exported.path / entry["file"]
    assert entry["problem"] is None
    assert entry["bytes"] == path.stat().st_size
    assert entry["images_per_second"] > 0
    split = split_of(run)
    expected = probabilities_of(run, split.images)
    found = answer_of(path, split.images)
    parity = entry["parity"]["test"]
    assert parity["num_images"] == split.num_images
    assert parity["accuracy"] == pytest.approx(np.mean(found.argmax(axis=1) == split.labels))
    assert parity["max_difference"] == pytest.approx(np.abs(found - expected).max(), abs=1e-5)
    assert parity["max_difference"] <= DIFFERENCE[name]
    card = (exported.path / "model_card.md").read_text()
    row = f"| `{name}` | test | {parity['max_difference']:.1e} | {parity['agreement']:.2%} |"
    assert f"{row} {parity['accuracy']:.4f} |" in card


def test_int8_files_compute_in_integers(exported: Export) -> None:
    tensors = tensors_of(exported.path / "litert" / "model_int8.tflite")
    dtypes = {np.dtype(each["dtype"]).name for each in tensors}
    assert "int8" in dtypes
    assert "float32" not in {
        np.dtype(each["dtype"]).name for each in tensors if len(each["shape"]) == 4
    }
    [inputs] = exported.facts["formats"]["litert-int8"]["inputs"].values()
    assert inputs[0] == "uint8"
    graph = onnx.load(exported.path / "onnx" / "model_int8.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert onnx.TensorProto.INT8 in {each.data_type for each in graph.initializer}


def test_float16_files_hold_halves(exported: Export) -> None:
    kernels = [
        np.dtype(each["dtype"]).name
        for each in tensors_of(exported.path / "litert" / "model_float16.tflite")
    ]
    assert "float16" in kernels


def test_dynamic_files_hold_integers_and_take_floats(exported: Export) -> None:
    [inputs] = exported.facts["formats"]["litert-dynamic"]["inputs"].values()
    assert inputs == ["float32", [None, 32, 32, 3]]


def test_onnx_files_are_sound_and_take_any_batch(exported: Export) -> None:
    for name in ("float32", "int8"):
        model = onnx.load(exported.path / "onnx" / f"model_{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        [images] = model.graph.input
        first, *rest = images.type.tensor_type.shape.dim
        assert not first.dim_value
        assert [each.dim_value for each in rest] == [32, 32, 3]
        assert exported.facts["formats"][f"onnx-{name}"]["inputs"] == {
            "images": ["float", [None, 32, 32, 3]]
        }


def test_a_mixed_run_with_views_is_converted_from_its_float32_twin(tmp_path: Path) -> None:
    mixed = ("runtime.precision=mixed_bfloat16", "evaluation.views=mirror_shift")
    run = train_tiny(tmp_path, *mixed)
    found = export(run, chosen_formats(["litert-float32", "onnx-float32"]))
    assert found.failures == {}
    images = split_of(run).images
    expected = probabilities_of(run, images, "mirror_shift")
    for entry in found.facts["formats"].values():
        assert entry["tolerance"]["max_difference"] == 5e-3
        answer = answer_of(found.path / entry["file"], images)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, rtol=0, atol=5e-3)

    model = load_run_model(run)
    twin = float32_twin(model)
    assert {layer.compute_dtype for layer in twin._flatten_layers()} == {"float32"}
    assert "bfloat16" in {layer.compute_dtype for layer in model._flatten_layers()}
    for mine, theirs in zip(twin.weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def failing_convert(serving: keras.Model, calibration: np.ndarray) -> bytes:
    raise RuntimeError("operator NOVEL is not known\nand much more")


@pytest.fixture
def folder(run: RunDir, tmp_path: Path) -> Path:
    """Where exports of the run go that must not be mixed with the first."""
    return tmp_path / "versions"


def test_formats_that_fail_are_named_and_nothing_else_is_lost(
    run: RunDir, exported: Export, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole, coarse = (
        (exported.path / FORMATS[name].file_name).read_bytes()
        for name in ("litert-float16", "litert-int8")
    )
    for name, convert in {
        "onnx-float32": failing_convert,
        "litert-float32": lambda serving, calibration: coarse,
        "litert-float16": lambda serving, calibration: whole,
        "litert-int8": lambda serving, calibration: b"no model",
    }.items():
        monkeypatch.setitem(FORMATS, name, replace(FORMATS[name], convert=convert))
    wanted = ("onnx-float32", "litert-float32", "litert-float16", "litert-int8")
    options = [word for name in wanted for word in ("--format", name)]

    code = call("export", run.path, "--output", folder, *options, monkeypatch=monkeypatch)

    assert code == 1
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines()[:-1])) <= 80
    facts = read_json(folder / "1" / "export.json")
    card = (folder / "1" / "model_card.md").read_text()
    reasons = {
        "onnx-float32": "it cannot be converted: RuntimeError: operator NOVEL is not known",
        "litert-float32": "probabilities differ by up to",
        "litert-int8": "ValueError",
    }
    for name, reason in reasons.items():
        entry = facts["formats"][name]
        assert reason in entry["problem"]
        assert entry["file"] is None and entry["bytes"] is None
        assert f"- `{name}`: {entry['problem']}" in card
        # Within 80 columns.
        assert f"{name} not exported: {entry['problem']}" in " ".join(output.split())
        assert not (folder / "1" / FORMATS[name].file_name).exists()
    assert facts["formats"]["litert-float16"]["problem"] is None
    assert (folder / "1" / "litert" / "model_float16.tflite").read_bytes() == whole
    assert {"saved_model.pb", "litert/model_float16.tflite"} < set(facts["files"])
    assert output.rstrip().endswith(str(folder / "1"))
    tf.saved_model.load(str(folder / "1"))
    assert not (folder / "1" / "onnx").exists(), "an empty folder is rubbish"


def test_a_format_whose_answers_have_a_wrong_shape_costs_only_itself(
    run: RunDir, folder: Path
) -> None:
    def convert(serving: keras.Model, calibration: np.ndarray) -> bytes:
        @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)])
        def answer(images: tf.Tensor) -> tf.Tensor:
            return tf.reduce_mean(images, axis=(1, 2))

        functions = [answer.get_concrete_function()]
        return tf.lite.TFLiteConverter.from_concrete_functions(functions, tf.Module()).convert()

    found = export(run, [replace(FORMATS["litert-float32"], convert=convert)], folder)
    assert found.failures["litert-float32"]


def test_a_format_that_kills_its_runtime_costs_only_itself(
    run: RunDir, exported: Export, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "dying_probe.py"
    script.write_text(
        textwrap.dedent(f"""
            import os, runpy, sys
            found = runpy.run_path({probe.__file__!r})
            found["OPENERS"]["litert"] = lambda task: os._exit(1)
            found["main"](sys.argv[1:])
        """)
    )
    content = (exported.path / "litert" / "model_float32.tflite").read_bytes()
    dying = replace(FORMATS["litert-float32"], convert=lambda serving, calibration: content)
    monkeypatch.setattr(probe, "__file__", str(script))
    found = export(run, [dying], folder)
    assert set(found.failures) == {"litert-float32"}
    assert (found.path / "saved_model.pb").is_file()


def test_a_disk_that_fills_while_a_format_is_written_leaves_no_half_file(
    run: RunDir, exported: Export, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (exported.path / "litert" / "model_float32.tflite").read_bytes()
    write_bytes = Path.write_bytes

    def fill(path: Path, data: bytes) -> int:
        if path.suffix != ".tflite":
            return write_bytes(path, data)
        write_bytes(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    small = replace(FORMATS["litert-float32"], convert=lambda serving, calibration: content)
    monkeypatch.setitem(FORMATS, small.name, small)
    monkeypatch.setattr(Path, "write_bytes", fill)
    options = ("--output", folder, "--format", small.name)
    assert call("export", run.path, *options, monkeypatch=monkeypatch) in (1, 2)
    assert not list(folder.rglob("*.tflite"))


def test_calibration_sees_training_images_only(run: RunDir, folder: Path) -> None:
    seen = []

    def remember(serving: keras.Model, calibration: np.ndarray) -> bytes:
        seen.append(calibration)
        raise RuntimeError("enough")

    export(run, [replace(FORMATS["litert-int8"], convert=remember)], folder)
    [calibration] = seen
    config = load_config(run.config)
    train = split_off_validation(split_of(run, "train"), config.data.validation_split, config.seed)[
        0
    ]
    training = {image.tobytes() for image in train.images}
    assert calibration.dtype == np.uint8
    assert len(calibration) == min(500, train.num_images)
    assert {image.tobytes() for image in calibration} <= training


def test_a_missing_package_is_named_with_its_cure_before_anything_is_written(
    run: RunDir, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "tf2onnx" else find_spec(name, package),
    )
    options = ("--output", folder, "--format", "litert-float32", "--format", "onnx")
    assert call("export", run.path, *options, "--json", monkeypatch=monkeypatch) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"] == (
        "onnx-float32 needs tf2onnx, which is not installed. Install it: scripts/setup_env.sh onnx"
    )
    assert not folder.exists()
    with pytest.raises(MissingDependencyError):
        chosen_formats(["onnx-int8"])
    assert [each.name for each in chosen_formats(["litert-int8"])] == ["litert-int8"]


def test_an_unknown_format_is_refused_with_the_known_ones(
    run: RunDir, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    options = ("--output", folder, "--format", "coreml")
    assert call("export", run.path, *options, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    for name in ("coreml", "litert-float32", "onnx-int8"):
        assert name in error
    assert not folder.exists()


def test_a_kind_stands_for_all_of_its_formats_and_none_comes_twice() -> None:
    names = [each.name for each in chosen_formats(["litert-int8", "litert", "litert-int8"])]
    assert sorted(names) == sorted(name for name in FORMATS if name.startswith("litert-"))


def test_the_table_keeps_within_80_columns(exported: Export) -> None:
    assert max(map(len, format_export(exported).splitlines())) <= 80
