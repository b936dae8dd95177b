"""The proof: what is wrong with a file is found out, in a process without Keras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from trainer.errors import RunDirectoryError
from trainer.export import probe
from trainer.export.proof import ProofSet, Proven, Subject, Tolerance, compare, prove
from trainer.export.versions import new_version, versions_of

NAMES = ("ant", "bee", "K\u00e4fer, beetle")
KERNEL = np.random.default_rng(1).normal(size=(4 * 4 * 3, 3)).astype(np.float32)
TOLERANCE = Tolerance(max_difference=1e-5, undecided=2e-5)


def proof_set(name: str, num_images: int, seed: int) -> ProofSet:
    """Return images with the probabilities of a linear model, by NumPy."""
    images = np.random.default_rng(seed).integers(0, 256, (num_images, 4, 4, 3), dtype=np.uint8)
    logits = images.reshape(num_images, -1) / 255 @ KERNEL.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    labels = probabilities.argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 3  # Three quarters are right.
    return ProofSet(name, images, labels, probabilities.astype(np.float32))


# More than one batch, and an incomplete one, across the border between the sets.
SETS = [proof_set("validation", 100, 2), proof_set("test", 60, 3)]

Answer = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]


def write(path: Path, change: Answer = lambda answers: answers) -> Subject:
    """Write the linear model as a SavedModel whose answers are changed."""

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        flat = tf.reshape(tf.cast(images, tf.float32) / 255.0, (-1, len(KERNEL)))
        probabilities = tf.nn.softmax(flat @ KERNEL)
        index = tf.argmax(probabilities, axis=1)
        names = tf.gather(tf.constant(NAMES), index)
        return change({"probabilities": probabilities, "class_index": index, "class_name": names})

    module = tf.Module()
    spec = tf.TensorSpec((None, 4, 4, 3), tf.uint8, name="images")
    module.answer = tf.function(answer, input_signature=[spec])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.answer})
    return Subject(path.name, "saved_model", path, TOLERANCE, "serving_default")


def changed(key: str, change: Callable[[tf.Tensor], tf.Tensor]) -> Answer:
    return lambda answers: {**answers, key: change(answers[key])}


def without(key: str) -> Answer:
    return lambda answers: {name: value for name, value in answers.items() if name != key}


def judge(subjects: list[Subject]) -> list[Proven]:
    return prove(subjects, SETS, NAMES, lambda line: None)


def one_row_for_none(probabilities: tf.Tensor) -> tf.Tensor:
    is_empty = tf.cast(tf.equal(tf.shape(probabilities)[0], 0), tf.int32)
    return tf.pad(probabilities, [[0, is_empty], [0, 0]])


def names_in_reverse(answers: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {**answers, "class_name": tf.gather(tf.constant(NAMES[::-1]), answers["class_index"])}


# What is wrong, and what must be said of it.
WRONG: dict[str, tuple[Answer, str]] = {
    "nan": (changed("probabilities", lambda p: p * float("nan")), "nan"),
    "one nan": (
        changed("probabilities", lambda p: tf.where(p < 0.02, float("nan"), p)),
        "nan",
    ),
    "a little off": (changed("probabilities", lambda p: p + 3e-5), "differ by up to 3e-05"),
    "classes in reverse": (changed("probabilities", lambda p: p[:, ::-1]), "differ"),
    "names in reverse": (names_in_reverse, "class_name is not that of class_index"),
    "index of another class": (
        changed("class_index", lambda i: (i + 1) % 3),
        "class_index is not that of the largest probability",
    ),
    "not empty": (changed("probabilities", one_row_for_none), "an empty batch gets probabilities"),
}


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Proven]:
    """All subjects in one process: a bad one must not cost the others their proof."""
    folder = tmp_path_factory.mktemp("subjects")
    damaged = write(folder / "damaged")
    (damaged.path / "saved_model.pb").write_bytes(b"no graph")
    text = folder / "model.tflite"
    text.write_text("no model")
    subjects = [
        *(write(folder / name.replace(" ", "_"), change) for name, (change, _) in WRONG.items()),
        replace(write(folder / "no_signature"), signature="another"),
        Subject("missing", "saved_model", folder / "nowhere", TOLERANCE, "serving_default"),
        damaged,
        Subject("text_litert", "litert", text, TOLERANCE),
        Subject("text_onnx", "onnx", text, TOLERANCE),
        write(folder / "right"),
    ]
    return {each.name: each for each in judge(subjects)}


def test_a_right_model_after_many_wrong_ones_is_proven(proven: dict[str, Proven]) -> None:
    right = proven["right"]
    assert right.problem is None
    assert right.images_per_second > 0
    assert right.inputs == {"images": ["uint8", [None, 4, 4, 3]]}
    assert right.outputs["class_index"] == ["int64", [None]]
    assert {name: parity.num_images for name, parity in right.parity.items()} == {
        "validation": 100,
        "test": 60,
    }
    for parity in right.parity.values():
        assert parity.max_difference < 1e-6
        assert parity.agreement == 1
        assert parity.accuracy == 0.75


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_found_out(proven: dict[str, Proven], name: str) -> None:
    problem = proven[name.replace(" ", "_")].problem
    assert problem is not None
    assert WRONG[name][1] in problem


@pytest.mark.parametrize("name", ["no_signature", "missing", "damaged", "text_litert", "text_onnx"])
def test_a_file_that_cannot_be_loaded_is_a_problem_with_a_reason(
    proven: dict[str, Proven], name: str
) -> None:
    assert proven[name].problem
    assert not proven[name].parity


@pytest.mark.parametrize(
    "change",
    [
        changed("class_index", lambda i: i + len(NAMES)),
        changed("probabilities", lambda p: p[1:]),
        changed("probabilities", lambda p: tf.concat([p, p], axis=1)),
        changed("probabilities", lambda p: p[:, :1]),
        without("probabilities"),
    ],
    ids=["index past the end", "a row too few", "too many classes", "one class", "none"],
)
def test_answers_of_a_wrong_shape_are_a_problem_and_no_crash(
    tmp_path: Path, change: Answer
) -> None:
    [bad, right] = judge([write(tmp_path / "bad", change), write(tmp_path / "right")])
    assert bad.problem
    assert right.problem is None


def test_what_ends_its_process_is_named_and_the_others_are_proven(tmp_path: Path) -> None:
    def ended(probabilities: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([tf.raw_ops.Abort(exit_without_error=True)]):
            return tf.identity(probabilities)

    fatal = write(tmp_path / "fatal", changed("probabilities", ended))
    before, ill, after = judge([write(tmp_path / "a"), fatal, write(tmp_path / "b")])
    assert ill.problem is not None
    assert ill.problem.startswith("the process that loads it ended")
    assert (before.problem, after.problem) == (None, None)


def test_the_process_finds_neither_keras_nor_this_package(tmp_path: Path) -> None:
    """Whatever it loads, and however hard it tries."""
    subject = write(tmp_path / "model")
    np.save(tmp_path / "images.npy", SETS[0].images)
    np.savez(tmp_path / "encoded.npz", data=np.empty(0, np.uint8), ends=np.empty(0, np.int64))
    task = {"path": str(subject.path), "kind": "saved_model", "signature": "serving_default"}
    (tmp_path / "tasks.json").write_text(json.dumps([task]))
    program = textwrap.dedent("""
        import importlib, runpy, sys
        script, folder, root = sys.argv[1:]
        sys.path.insert(0, root)
        sys.argv = [script, folder, "0"]
        runpy.run_path(script, run_name="__main__")
        for name in ("keras", "tf_keras", "trainer"):
            try:
                importlib.import_module(name)
            except ImportError:
                print("refused", name, file=sys.stderr)
        print(sum(name.startswith(("keras.", "trainer.")) for name in sys.modules), file=sys.stderr)
    """)
    root = Path(probe.__file__).parents[2]
    command = [sys.executable, "-I", "-c", program, probe.__file__, str(tmp_path), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    [reply] = done.stdout.splitlines()
    assert json.loads(reply)["blocked_modules"] == []
    assert "error" not in json.loads(reply)
    *_, first, second, third, left = done.stderr.splitlines()
    assert [first, second, third] == ["refused keras", "refused tf_keras", "refused trainer"]
    assert left == "0"
    with np.load(tmp_path / "0.npz") as answers:
        np.testing.assert_allclose(
            answers["probabilities"], SETS[0].probabilities, atol=TOLERANCE.max_difference
        )


def set_of(probabilities: Any, labels: Any) -> ProofSet:
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ProofSet("a", images, np.array(labels), np.array(probabilities, np.float32))


def test_figures_are_counted_by_image() -> None:
    expected = set_of(
        [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]], [0, 1, 0, 0]
    )
    found = np.array(
        [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5], [0.55, 0.35, 0.1]], np.float32
    )
    parity = compare(found, expected, Tolerance(1e-5))
    assert parity.num_images == 4
    assert parity.max_difference == pytest.approx(0.4)
    assert parity.agreement == 0.75
    assert parity.accuracy == 0.5


def test_at_a_tie_of_the_trained_model_either_class_may_be_said() -> None:
    expected = set_of([[0.4, 0.4, 0.2]], [0])
    second = np.array([[0.399999, 0.400001, 0.2]], np.float32)
    third = np.array([[0.3, 0.3, 0.4]], np.float32)
    assert compare(second, expected, TOLERANCE).agreement == 1
    assert compare(third, expected, TOLERANCE).agreement == 0


@pytest.mark.parametrize(("lead", "agreement"), [(0.03, 1), (0.05, 0)])
def test_the_trained_model_counts_as_undecided_up_to_what_is_allowed(
    lead: float, agreement: int
) -> None:
    expected = set_of([[0.5 + lead / 2, 0.5 - lead / 2]], [0])
    found = np.array([[0.4, 0.6]], np.float32)
    assert compare(found, expected, Tolerance(1.0, undecided=0.04)).agreement == agreement


def test_nan_is_never_within_the_bounds() -> None:
    for expected, found in (([[0.6, 0.4]], [[np.nan, np.nan]]), ([[np.nan] * 2], [[0.6, 0.4]])):
        parity = compare(np.array(found, np.float32), set_of(expected, [0]), TOLERANCE)
        assert not parity.max_difference <= 1


def test_versions_are_numbers_and_nothing_else(tmp_path: Path) -> None:
    for name in ("2", "10", "9", "v3", "-4", "1.5", ".unfinished-1", "notes"):
        (tmp_path / name).mkdir()
    assert versions_of(tmp_path) == [2, 9, 10]
    assert versions_of(tmp_path / "nowhere") == []


def test_a_version_appears_at_once_and_whole(tmp_path: Path) -> None:
    with new_version(tmp_path / "root") as version:
        (version.directory / "a").write_text("a")
        assert versions_of(tmp_path / "root") == []
        assert version.number == 1
    assert [path.name for path in version.path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["1"]


def test_a_version_that_another_process_finished_first_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="cannot be written"), new_version(tmp_path) as late:
        (late.directory / "a").write_text("late")
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "a").write_text("first")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert (tmp_path / "1" / "a").read_text() == "first"


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = os.getppid()
    for pid in (dead.pid, living):
        (tmp_path / f".unfinished-{pid}").mkdir()
        (tmp_path / f".unfinished-{pid}" / "saved_model.pb").write_text("half")
    with new_version(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".unfinished-{living}", "1"]


def test_a_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    with (
        pytest.raises(RunDirectoryError, match="cannot be written"),
        new_version(tmp_path / "root"),
    ):
        pass
    assert (tmp_path / "root").read_text() == "a file"
