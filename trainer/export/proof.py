"""Prove that exported files answer like the trained model, by answers from another process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.export import probe


@dataclass(frozen=True)
class Tolerance:
    """What may differ between an exported file and the trained model.

    Attributes:
        max_difference: Largest difference of a probability.
        undecided: Where the trained model itself sets two classes no further apart than
            this, either may be said. Two probabilities may move towards each other: twice
            `max_difference`, where that says something.
        min_agreement: Smallest share of images on which both say the same class.
    """

    max_difference: float
    undecided: float = 0.0
    min_agreement: float = 1.0


@dataclass(frozen=True)
class ProofSet:
    """Images with the answers of the trained model.

    Attributes:
        name: Of the split.
        images: Shape (num_images, height, width, 3), uint8.
        labels: Shape (num_images,), integers.
        probabilities: Of the trained model, shape (num_images, num_classes), float32.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Subject:
    """What is to be proven.

    Attributes:
        name: Of the signature or the format.
        kind: saved_model, litert or onnx.
        path: File or directory.
        tolerance: What may differ.
        signature: Of a SavedModel.
        takes_bytes: The signature takes encoded images.
    """

    name: str
    kind: str
    path: Path
    tolerance: Tolerance
    signature: str | None = None
    takes_bytes: bool = False


@dataclass(frozen=True)
class Parity:
    """How far answers are from those of the trained model, on one split.

    Attributes:
        num_images: Of the split.
        max_difference: Largest difference of any probability.
        agreement: Share of images with the trained model's most probable class, or one that
            this model sets no further behind than `Tolerance.undecided`.
        accuracy: Share of images whose most probable class is right.
    """

    num_images: int
    max_difference: float
    agreement: float
    accuracy: float


@dataclass(frozen=True)
class Proven:
    """What the other process found out about a subject.

    Attributes:
        name: Of the subject.
        problem: Why the proof failed, None if it holds.
        tolerance: What was allowed.
        images_per_second: Of one pass over all images, batches of 128, without the first.
        inputs, outputs: [dtype, shape] by name.
        parity: By split.
    """

    name: str
    problem: str | None
    tolerance: Tolerance
    images_per_second: float = float("nan")
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    parity: dict[str, Parity] = field(default_factory=dict)


def prove(
    subjects: Sequence[Subject],
    sets: Sequence[ProofSet],
    class_names: Sequence[str],
    say: Callable[[str], object],
) -> list[Proven]:
    """Answer for all images with every subject, in a process without Keras and this package.

    Args:
        subjects: What is to be proven.
        sets: Images and the answers that are expected.
        class_names: In the order of the probabilities.
        say: Called with a line for people before each subject.

    Returns:
        One for each subject, in their order.
    """
    with tempfile.TemporaryDirectory(prefix="trainer-proof-") as name:
        folder = Path(name)
        _write_inputs(folder, subjects, np.concatenate([each.images for each in sets]))
        proven: list[Proven] = []
        while len(proven) < len(subjects):
            # A subject that kills its process is judged, and another process takes the rest.
            remaining = subjects[len(proven) :]
            for subject, reply in _replies(folder, len(proven), remaining, say):
                answers = folder / f"{len(proven)}.npz"
                proven.append(_judge(subject, reply, answers, sets, class_names))
    return proven


def _replies(
    folder: Path, first: int, subjects: Sequence[Subject], say: Callable[[str], object]
) -> Iterator[tuple[Subject, dict[str, Any]]]:
    """Yield what another process says of the subjects, until it ends."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(probe.__file__)), str(folder), str(first)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            for subject in subjects:
                say(f"proving {subject.name}")
                line = process.stdout.readline()
                if line:
                    yield subject, json.loads(line)
                    continue
                code = process.wait()
                errors.seek(0)
                tail = "; ".join(errors.read().splitlines()[-3:])
                problem = f"the process that loads it ended with {code} {tail}"
                yield subject, {"error": problem, "blocked_modules": []}
                return
        finally:
            process.kill()
            process.communicate()


def _write_inputs(folder: Path, subjects: Sequence[Subject], images: np.ndarray) -> None:
    np.save(folder / "images.npy", images)
    takes_bytes = any(subject.takes_bytes for subject in subjects)
    files = [_png(image) for image in images] if takes_bytes else []
    np.savez(
        folder / "encoded.npz",
        data=np.frombuffer(b"".join(files), np.uint8),
        ends=np.cumsum([len(file) for file in files], dtype=np.int64),
    )
    tasks = [
        {
            "path": str(subject.path),
            "kind": subject.kind,
            "signature": subject.signature,
            "takes_bytes": subject.takes_bytes,
        }
        for subject in subjects
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks))


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _judge(
    subject: Subject,
    facts: dict[str, Any],
    path: Path,
    sets: Sequence[ProofSet],
    class_names: Sequence[str],
) -> Proven:
    problems = []
    if facts["blocked_modules"]:
        problems.append(f"it imported {', '.join(facts['blocked_modules'])}")
    if "error" in facts:
        return Proven(subject.name, "; ".join([facts["error"], *problems]), subject.tolerance)
    with np.load(path) as file:
        answers = dict(file)
    shape = (sum(len(each.images) for each in sets), len(class_names))
    probabilities = answers.get("probabilities", np.empty(0))
    if probabilities.shape != shape:
        problem = f"its probabilities have the shape {probabilities.shape}, not {shape}"
        return Proven(subject.name, "; ".join([problem, *problems]), subject.tolerance)
    if "class_index" in answers:
        problems += _wrong_classes(answers, class_names)
    for name, shape in facts.get("empty", {}).items():
        if shape[0] != 0:
            problems.append(f"an empty batch gets {name} of shape {shape}")
    parity, start = {}, 0
    for each in sets:
        found = probabilities[start : start + len(each.images)]
        start += len(each.images)
        parity[each.name] = compare(found, each, subject.tolerance)
        misses = _misses(parity[each.name], subject.tolerance)
        problems += [f"{miss} on the {each.name} set" for miss in misses]
    return Proven(
        subject.name,
        "; ".join(problems) or None,
        subject.tolerance,
        facts["images_per_second"],
        facts["inputs"],
        facts["outputs"],
        parity,
    )


def _wrong_classes(answers: dict[str, np.ndarray], class_names: Sequence[str]) -> list[str]:
    best = answers["probabilities"].argmax(axis=1)
    problems = []
    if not np.array_equal(answers["class_index"], best):
        problems.append("class_index is not that of the largest probability")
    elif not np.array_equal(answers["class_name"], np.array(class_names)[best]):
        problems.append("class_name is not that of class_index")
    return problems


def compare(found: np.ndarray, expected: ProofSet, tolerance: Tolerance) -> Parity:
    """Compare probabilities with those of the trained model.

    Args:
        found: Shape (num_images, num_classes).
        expected: The trained model's, with the true classes.
        tolerance: Of which `undecided` counts.
    """
    best, wanted = found.argmax(axis=1), expected.probabilities.argmax(axis=1)
    rows = np.arange(len(found))
    margin = expected.probabilities[rows, wanted] - expected.probabilities[rows, best]
    difference = np.abs(found.astype(np.float64) - expected.probabilities)
    return Parity(
        num_images=len(found),
        # NaN stays NaN, which no bound allows.
        max_difference=float(difference.max()),
        agreement=float(np.mean(margin <= tolerance.undecided)),
        accuracy=float(np.mean(best == expected.labels)),
    )


def _misses(parity: Parity, tolerance: Tolerance) -> list[str]:
    misses = []
    if not parity.max_difference <= tolerance.max_difference:
        misses.append(
            f"probabilities differ by up to {parity.max_difference:.2g}, "
            f"allowed are {tolerance.max_difference:.2g}"
        )
    if parity.agreement < tolerance.min_agreement:
        misses.append(
            f"{parity.agreement:.2%} of the classes agree, {tolerance.min_agreement:.2%} are needed"
        )
    return misses
