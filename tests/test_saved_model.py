"""The SavedModel as a server uses it: two signatures, odd images, warm-up and real messages."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from exported_runs import ask, encoded, many_images, probabilities_of, train_tiny
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from trainer.evaluate import load_run_model
from trainer.export.saved_model import BYTES, PIXELS, write_saved_model
from trainer.export.serving_model import build_serving_model
from trainer.export.warmup import WARMUP_FILE
from trainer.run_dir import RunDir, read_json

PLAIN = "model.block={kind: plain, dropout: 0.1}"
MOVING_AVERAGE = "optimizer.ema_momentum=0.9"
MIXED = "runtime.precision=mixed_bfloat16"
# What was trained, the views that are averaged, and the largest difference that is allowed.
CASES: dict[str, tuple[tuple[str, ...], str, float]] = {
    "residual": ((), "single", 1e-5),
    "plain-moving_average-mirror": ((PLAIN, MOVING_AVERAGE), "mirror", 1e-5),
    "plain-mirror_shift": ((PLAIN,), "mirror_shift", 1e-5),
    "residual-mixed_bfloat16-mirror_shift": ((MIXED,), "mirror_shift", 5e-3),
}


@dataclass(frozen=True)
class Saved:
    """A SavedModel on the disk and loaded, and how its images should be answered."""

    path: Path
    run: RunDir
    model: Any
    names: list[str]
    images: np.ndarray
    expected: np.ndarray
    tolerance: float


def save(folder: Path, case: str) -> Saved:
    overrides, views, tolerance = CASES[case]
    run = train_tiny(folder, *overrides)
    facts = read_json(run.data)
    path = folder / "1"
    serving = build_serving_model(load_run_model(run), tuple(facts["image_shape"]), views)
    write_saved_model(path, serving, facts["class_names"], "tiny")
    images = many_images(run)
    expected = probabilities_of(run, images, views)
    model = tf.saved_model.load(str(path))
    return Saved(path, run, model, facts["class_names"], images, expected, tolerance)


@pytest.fixture(scope="module")
def saved_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    return functools.cache(lambda case: save(tmp_path_factory.mktemp("case"), case))


@pytest.fixture(params=CASES)
def each(request: pytest.FixtureRequest, saved_of: Callable[[str], Saved]) -> Saved:
    return saved_of(request.param)


@pytest.fixture
def saved(saved_of: Callable[[str], Saved]) -> Saved:
    return saved_of("residual")


def check(answers: dict[str, np.ndarray], saved: Saved, rows: slice = slice(None)) -> None:
    """Hold answers against the trained model's."""
    expected = saved.expected[rows]
    assert set(answers) == {"probabilities", "class_index", "class_name"}
    assert answers["probabilities"].dtype == np.float32
    assert answers["class_index"].dtype == np.int64
    assert answers["probabilities"].shape == expected.shape
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=saved.tolerance)
    np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1, atol=1e-5)
    index = answers["class_index"]
    np.testing.assert_array_equal(index, answers["probabilities"].argmax(axis=1))
    # Where the trained model is decided, there is one right class.
    ordered = np.sort(expected, axis=1)
    decided = ordered[:, -1] - ordered[:, -2] > 2 * saved.tolerance
    np.testing.assert_array_equal(index[decided], expected.argmax(axis=1)[decided])
    assert [name.decode() for name in answers["class_name"]] == [saved.names[i] for i in index]


def test_the_signature_of_pixels_answers_as_the_trained_model(each: Saved) -> None:
    check(ask(each.model, PIXELS, each.images), each)


def test_the_signature_of_files_answers_as_the_trained_model(each: Saved) -> None:
    check(ask(each.model, BYTES, [encoded(image) for image in each.images]), each)


def test_no_images_get_no_answers(each: Saved) -> None:
    for signature, batch in ((PIXELS, each.images[:0]), (BYTES, np.array([], object))):
        answers = ask(each.model, signature, batch)
        assert answers["probabilities"].shape == (0, len(each.names))
        assert answers["class_index"].shape == answers["class_name"].shape == (0,)


@pytest.mark.parametrize("size", [1, 7])
def test_an_answer_does_not_depend_on_the_images_beside_it(each: Saved, size: int) -> None:
    rows = slice(40, 40 + size)
    check(ask(each.model, PIXELS, each.images[rows]), each, rows)
    check(ask(each.model, BYTES, [encoded(image) for image in each.images[rows]]), each, rows)


def test_the_probabilities_of_the_runs_are_not_all_alike(each: Saved) -> None:
    """Else the comparisons above would say little."""
    assert len(set(each.expected.argmax(axis=1))) > 1
    assert each.expected.std(axis=0).max() > 0.01
    ordered = np.sort(each.expected, axis=1)
    assert np.mean(ordered[:, -1] - ordered[:, -2] > 2 * each.tolerance) > 0.5


def test_a_process_that_cannot_import_keras_gets_the_same_answers(
    saved: Saved, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", saved.images[:20])
    program = """if True:
        import sys
        class Without:
            def __init__(self, finder):
                self.finder = finder
            def __getattr__(self, name):
                return getattr(self.finder, name)
            def find_spec(self, name, *rest):
                is_missing = name.split(".")[0] in ("keras", "tf_keras", "trainer")
                return None if is_missing else self.finder.find_spec(name, *rest)
        sys.meta_path[:] = map(Without, sys.meta_path)
        import numpy as np, tensorflow as tf
        model = tf.saved_model.load(sys.argv[1])
        answers = model.signatures["serving_default"](images=tf.constant(np.load("images.npy")))
        np.save("probabilities.npy", answers["probabilities"].numpy())
        print(sorted({"keras", "tf_keras", "trainer"} & set(sys.modules)))
    """
    command = [sys.executable, "-I", "-c", program, str(saved.path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    found = np.load(tmp_path / "probabilities.npy")
    np.testing.assert_allclose(found, saved.expected[:20], atol=1e-5)


def saved_model_cli(*arguments: str | Path, folder: Path) -> str:
    command = [Path(sys.executable).with_name("saved_model_cli"), *arguments]
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_saved_model_cli_shows_both_signatures(saved: Saved, tmp_path: Path) -> None:
    shown = saved_model_cli("show", "--dir", saved.path, "--all", folder=tmp_path)
    for text in (
        "signature_def['serving_default']",
        "inputs['images'] tensor_info:\n        dtype: DT_UINT8\n        shape: (-1, 32, 32, 3)",
        "signature_def['serve_bytes']",
        "inputs['image_bytes'] tensor_info:\n        dtype: DT_STRING\n        shape: (-1)",
        "outputs['probabilities'] tensor_info:\n        dtype: DT_FLOAT\n        shape: (-1, 10)",
        "outputs['class_index'] tensor_info:\n        dtype: DT_INT64\n        shape: (-1)",
        "outputs['class_name'] tensor_info:\n        dtype: DT_STRING\n        shape: (-1)",
    ):
        assert text in shown


@pytest.mark.parametrize("signature", [PIXELS, BYTES])
def test_saved_model_cli_runs_both_signatures(saved: Saved, signature: str, tmp_path: Path) -> None:
    images = saved.images[:5]
    # No PNG ends with a zero byte, which an array of fixed length would cut off.
    batch = images if signature == PIXELS else np.array([encoded(image) for image in images], "S")
    np.save(tmp_path / "batch.npy", batch)
    name = "images" if signature == PIXELS else "image_bytes"
    saved_model_cli(
        *("run", "--dir", saved.path, "--tag_set", "serve", "--signature_def", signature),
        *("--inputs", f"{name}=batch.npy", "--outdir", "."),
        folder=tmp_path,
    )
    answers = {
        key: np.load(tmp_path / f"{key}.npy", allow_pickle=True)
        for key in ("probabilities", "class_index", "class_name")
    }
    check(answers, saved, slice(5))


def request_of(signature: str, batch: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "tiny"
    request.model_spec.signature_name = signature
    name = "images" if signature == PIXELS else "image_bytes"
    request.inputs[name].CopyFrom(tf.make_tensor_proto(batch))
    return request


def answer_request(saved: Saved, message: bytes) -> predict_pb2.PredictResponse:
    """Do with a message what a server does with it."""
    request = predict_pb2.PredictRequest.FromString(message)
    signature = saved.model.signatures[request.model_spec.signature_name]
    response = predict_pb2.PredictResponse()
    response.model_spec.CopyFrom(request.model_spec)
    inputs = {name: tf.constant(tf.make_ndarray(t)) for name, t in request.inputs.items()}
    for name, value in signature(**inputs).items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
    return response


@pytest.mark.parametrize("signature", [PIXELS, BYTES])
def test_a_request_of_the_serving_api_is_answered(saved: Saved, signature: str) -> None:
    images = saved.images[:7]
    batch = images if signature == PIXELS else [encoded(image) for image in images]
    message = request_of(signature, batch).SerializeToString()
    answered = answer_request(saved, message).SerializeToString()
    response = predict_pb2.PredictResponse.FromString(answered)
    answers = {name: tf.make_ndarray(value) for name, value in response.outputs.items()}
    check(answers, saved, slice(7))


def warmup_records(saved: Saved) -> list[bytes]:
    dataset = tf.data.TFRecordDataset(str(saved.path / WARMUP_FILE))
    return [record.numpy() for record in dataset]


def test_the_warm_up_file_is_what_the_real_message_classes_write(saved: Saved) -> None:
    assert str(WARMUP_FILE) == "assets.extra/tf_serving_warmup_requests"
    blank = np.zeros((1, 32, 32, 3), np.uint8)
    png = tf.io.encode_png(blank[0]).numpy()
    expected = []
    for signature, batch in ((PIXELS, blank), (BYTES, [png])):
        log = prediction_log_pb2.PredictionLog()
        log.predict_log.request.CopyFrom(request_of(signature, batch))
        expected.append(log.SerializeToString(deterministic=True))
    assert warmup_records(saved) == expected


def test_every_warm_up_request_is_answered_by_the_signature_it_names(saved: Saved) -> None:
    requests = [
        prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        for record in warmup_records(saved)
    ]
    assert [each.model_spec.signature_name for each in requests] == [PIXELS, BYTES]
    for request in requests:
        response = answer_request(saved, request.SerializeToString())
        assert tf.make_ndarray(response.outputs["probabilities"]).shape == (1, 10)
