"""The story of one export, from a run to a version that is proven."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.config import Config, load_config
from trainer.data.sources import Split, load_split
from trainer.data.splits import split_off_validation
from trainer.errors import DataError, ExportError
from trainer.evaluate import load_run_model, predict_logits, softmax
from trainer.export.card import model_card
from trainer.export.formats import Format
from trainer.export.health import gradient_health
from trainer.export.proof import ProofSet, Proven, Subject, Tolerance, prove
from trainer.export.saved_model import BYTES, PIXELS, write_saved_model
from trainer.export.serving_model import build_serving_model, float32_twin
from trainer.export.versions import new_version
from trainer.run_dir import RunDir, read_history, read_json, write_json, write_text

EXPORT_FILE = "export.json"
CARD_FILE = "model_card.md"

_CALIBRATION_IMAGES = 500
_EXACT = Tolerance(max_difference=1e-5, undecided=2e-5)
_MIXED = Tolerance(max_difference=5e-3, undecided=1e-2)


@dataclass(frozen=True)
class Export:
    """What an export came to.

    Attributes:
        path: Of the version.
        facts: The content of `export.json`.
    """

    path: Path
    facts: dict[str, Any]

    @property
    def failures(self) -> dict[str, str]:
        """Formats that are not there, with the reason."""
        return {
            name: entry["problem"]
            for name, entry in self.facts["formats"].items()
            if entry["problem"]
        }


def export(
    run: RunDir,
    formats: Sequence[Format] = (),
    root: Path | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Export:
    """Export a run's model as a SavedModel and other formats, and prove them.

    Args:
        run: A finished run.
        formats: Beside the SavedModel. One that cannot be made, or fails its proof, is left
            out and named; the others stand.
        root: Folder of the versions; that of the run by default.
        say: Called with a line for people before each part.

    Raises:
        RunDirectoryError: If the run lacks a model, or the export cannot be written.
        DataError: If the images to prove it with are missing.
        ExportError: If the SavedModel fails its proof; no version is left behind.
    """
    config = load_config(run.config)
    data, environment = read_json(run.data), read_json(run.environment)
    class_names: list[str] = data["class_names"]
    if data["image_shape"][-1] != 3:
        raise ExportError(
            f"{run.path}: what is exported reads files as RGB, and this model takes images of "
            f"{data['image_shape'][-1]} channels"
        )
    model = load_run_model(run)
    say("asking the trained model")
    sets, calibration = _proof_sets(config, model, class_names)

    def serving(of: keras.Model) -> keras.Model:
        return build_serving_model(of, tuple(data["image_shape"]), config.evaluation.views)

    with new_version(root or run.saved_model) as version:
        directory = version.directory
        say("writing the SavedModel")
        try:
            write_saved_model(directory, serving(model), class_names, config.name)
        except tf.errors.OpError as error:
            raise OSError(error.message) from error
        tolerance = _EXACT if environment["precision"] == "float32" else _MIXED
        signatures = [
            Subject(name, "saved_model", directory, tolerance, name, takes_bytes=name == BYTES)
            for name in (PIXELS, BYTES)
        ]
        converted: list[Subject] = []
        problems: dict[str, str] = {}
        if formats:
            twin = cache(lambda: serving(float32_twin(model)))
            converted, problems = _convert(directory, formats, twin, calibration, tolerance, say)
        proven = {p.name: p for p in prove([*signatures, *converted], sets, class_names, say)}
        for name in (PIXELS, BYTES):
            if problem := proven[name].problem:
                raise ExportError(
                    f"{name}: the exported model does not answer like the trained one: "
                    f"{problem}. Nothing was exported"
                )
        for subject in converted:
            if problem := proven[subject.name].problem:
                problems[subject.name] = problem
                _remove(subject.path)
        facts = _facts(run, config, data, version.number, proven, formats, problems, directory)
        write_text(directory / CARD_FILE, model_card(facts))
        facts["files"] = _checksums(directory)
        write_json(directory / EXPORT_FILE, facts)
    return Export(version.path, facts)


def _convert(
    directory: Path,
    formats: Sequence[Format],
    serving: Callable[[], keras.Model],
    calibration: np.ndarray,
    tolerance: Tolerance,
    say: Callable[[str], object],
) -> tuple[list[Subject], dict[str, str]]:
    """Write the formats, and return what is to be proven, and why the others could not be had."""
    converted, problems = [], {}
    for form in formats:
        say(f"converting to {form.name}")
        path = directory / form.file_name
        path.parent.mkdir(exist_ok=True)
        try:
            path.write_bytes(form.convert(serving(), calibration))
        # Converters raise nearly anything; the formats that work must not be lost.
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            problems[form.name] = f"it cannot be converted: {type(error).__name__}: {lines[0]}"
            _remove(path)
        else:
            converted.append(Subject(form.name, form.kind, path, form.tolerance or tolerance))
    return converted, problems


def _remove(path: Path) -> None:
    """Remove a format's file, and its folder if nothing else is in it."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def _proof_sets(
    config: Config, model: keras.Model, class_names: Sequence[str]
) -> tuple[list[ProofSet], np.ndarray]:
    """Return the validation and the test set with the model's answers, and training images."""
    split = load_split(config.data, "train", config.seed)
    train, validation = split_off_validation(split, config.data.validation_split, config.seed)
    splits = {"validation": validation, "test": load_split(config.data, "test", config.seed)}
    for each in splits.values():
        if each is not None and list(each.class_names) != list(class_names):
            raise DataError(
                "the data must have the classes that the run was trained on. Received: "
                f"{', '.join(each.class_names)}; trained on {', '.join(class_names)}"
            )
    sets = [
        _proof_set(name, each, config, model) for name, each in splits.items() if each is not None
    ]
    chosen = np.linspace(0, train.num_images - 1, min(_CALIBRATION_IMAGES, train.num_images))
    return sets, train.images[chosen.astype(int)]


def _proof_set(name: str, split: Split, config: Config, model: keras.Model) -> ProofSet:
    views = config.evaluation.views
    logits, _ = predict_logits(model, split.images, config.fit.batch_size, views)
    return ProofSet(name, split.images, split.labels, softmax(logits))


def _facts(
    run: RunDir,
    config: Config,
    data: dict[str, Any],
    number: int,
    proven: dict[str, Proven],
    formats: Sequence[Format],
    problems: dict[str, str],
    directory: Path,
) -> dict[str, Any]:
    def entry(form: Format) -> dict[str, Any]:
        found = proven.get(form.name)
        path = directory / form.file_name
        return {
            "file": form.file_name if path.is_file() else None,
            "bytes": path.stat().st_size if path.is_file() else None,
            **(_without_name(found) if found else {}),
            "problem": problems.get(form.name),
        }

    environment = read_json(run.environment)
    saved_model = [directory / "saved_model.pb", *directory.glob("variables/*")]
    return {
        "version": number,
        "run": run.path.name,
        "model": config.name,
        "views": config.evaluation.views,
        "image_shape": data["image_shape"],
        "class_names": data["class_names"],
        "precision": environment["precision"],
        "bytes": sum(path.stat().st_size for path in saved_model),
        "signatures": {name: _without_name(proven[name]) for name in (PIXELS, BYTES)},
        "formats": {form.name: entry(form) for form in formats},
        "data": data,
        "training": environment,
        "history": read_history(run.history)[-1:],
        "gradients": gradient_health(run),
    }


def _without_name(proven: Proven) -> dict[str, Any]:
    values = asdict(proven)
    del values["name"]
    return values


def _checksums(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file, by its path within the directory."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def format_export(found: Export) -> str:
    """Return what was exported as a table for people, within 80 columns."""
    facts = found.facts
    lines = [f"{'what':16} {'split':10} {'difference':>10} {'same class':>10} {'accuracy':>8}"]
    for name, entry in {**facts["signatures"], **facts["formats"]}.items():
        if entry["problem"]:
            text = f"{name:16} not exported: {entry['problem']}"
            lines += textwrap.wrap(text, 80, subsequent_indent=" " * 17)
            continue
        lines += [
            f"{name:16} {split:10} {parity['max_difference']:10.1e} "
            f"{parity['agreement']:10.2%} {parity['accuracy']:8.4f}"
            for split, parity in entry["parity"].items()
        ]
    return "\n".join(lines)
