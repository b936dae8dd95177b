"""Each rule about data on a source that was made ill on purpose, and all on a healthy one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.config import load_config
from trainer.config.schema import DataConfig
from trainer.data import sources
from trainer.data.label_noise import with_label_noise
from trainer.data.sources import Part, Split, register_source
from trainer.data.splits import split_off_validation
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import Finding
from trainer.diagnosis.judge import Diagnosis, diagnose, format_diagnosis
from trainer.run_dir import RunDir, read_history, read_json, write_json
from trainer.train import train

CONFIG = """\
name: ill
data: {source: made, validation_split: 0.25}
model: {stem: {filters: 4}, stages: [{filters: 4, blocks: 1}], block: {normalization: none}}
optimizer: {kind: adam, learning_rate: 1e-3}
fit: {epochs: 1, batch_size: 20}
gradients: {record: false}
runtime: {devices: cpu}
"""
RULES = ("data_range", "input_scale", "data_balance", "data_labels", "data_duplicates")


@pytest.fixture(autouse=True, scope="module")
def own_registry() -> Iterator[None]:
    before = dict(sources._SOURCES)
    yield
    sources._SOURCES.clear()
    sources._SOURCES.update(before)


def noise(num_images: int = 240, num_classes: int = 3, brightest: int = 255) -> Split:
    """Images of nothing, 8x8, with as many of each class."""
    random = np.random.default_rng(5)
    images = random.integers(0, brightest + 1, (num_images, 8, 8, 3), dtype=np.uint8)
    labels = (np.arange(num_images) % num_classes).astype(np.int32)
    return Split(images, labels, ("cat", "dog", "owl")[:num_classes], "a test", True)


def run_on(split: Split, folder: Path, *overrides: str) -> RunDir:
    sources._SOURCES.pop("made", None)

    @register_source("made")
    def made(data: DataConfig, part: Part, seed: int) -> Split:
        return split

    path = folder / "ill.yaml"
    path.write_text(CONFIG)
    config = load_config(path, overrides)
    return train(config, runs_dir=folder / "runs", command=["trainer", "train"])


def diagnosed(split: Split, folder: Path, *overrides: str) -> Diagnosis:
    return diagnose(Evidence.of_run(run_on(split, folder, *overrides)))


def of_rule(diagnosis: Diagnosis, rule: str) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.rule == rule]


def test_healthy_data_are_judged_by_every_rule_and_have_no_finding(tmp_path: Path) -> None:
    diagnosis = diagnosed(noise(), tmp_path)
    assert not set(RULES) & set(diagnosis.not_judged)
    assert [finding for rule in RULES for finding in of_rule(diagnosis, rule)] == []


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    """Of a run on images with every fault that leaves something to learn."""
    split = noise(480)
    # One owl in every twenty-four images, so 12 of 16 owls in training.
    split.labels[:] = np.arange(480) % 2
    split.labels[::30] = 2
    split.images[..., 1] = 77
    # A third of the images are seven pictures, whatever their labels.
    split.images[:160] = split.images[320 + np.arange(160) % 7]
    split.images[200:240] = np.array([3, 77, 9])
    return diagnosed(split, tmp_path_factory.mktemp("ill"), "data.normalize=none")


def test_one_class_that_is_rare_is_a_warning_with_its_name(ill: Diagnosis) -> None:
    (found,) = of_rule(ill, "data_balance")
    assert found.severity == "warning"
    assert found.message.endswith("12 of owl")
    assert found.numbers["largest_over_smallest"] == pytest.approx(180 / 12)


def test_a_channel_of_one_level_and_images_of_one_colour_are_a_warning(ill: Diagnosis) -> None:
    (found,) = of_rule(ill, "data_range")
    assert found.severity == "warning"
    assert "channel 1 of 3 has one level" in found.message
    assert "of the training images have one colour only" in found.message


def test_pixels_that_enter_unscaled_are_a_warning_and_the_remedy_scales_them(
    ill: Diagnosis,
) -> None:
    (found,) = of_rule(ill, "input_scale")
    assert found.severity == "warning"
    assert found.numbers["size"] > 100
    assert [remedy.options for remedy in found.remedies] == ["--set data.normalize=per_channel"]


def test_equal_images_with_different_labels_are_a_warning(ill: Diagnosis) -> None:
    (found,) = of_rule(ill, "data_labels")
    assert found.severity == "warning"
    assert found.numbers["contradictory_share"] > 0.3


def test_validation_images_that_were_trained_on_are_a_warning_and_copies_a_note(
    ill: Diagnosis,
) -> None:
    seen, repeated = of_rule(ill, "data_duplicates")
    assert (seen.severity, repeated.severity) == ("warning", "note")
    assert "validation flatters the model" in seen.message


def test_no_fault_that_leaves_something_to_learn_is_an_error(ill: Diagnosis) -> None:
    assert {finding.severity for finding in ill.findings} == {"warning", "note"}
    # Its run recorded no gradients, so that it is not called healthy either.
    assert ill.exit_code == 2


def test_a_finding_about_data_speaks_of_no_window(ill: Diagnosis) -> None:
    text = format_diagnosis(ill)
    assert "windows" not in text
    assert "largest_over_smallest 15 (bound 10)" in text


def test_a_few_faults_are_notes(tmp_path: Path) -> None:
    split = noise(1200)
    # So many copies that validation has one or two of them, and so few that it has no more.
    split.images[:5] = split.images[0]
    diagnosis = diagnosed(split, tmp_path)
    seen = of_rule(diagnosis, "data_duplicates")
    contradictory = of_rule(diagnosis, "data_labels")
    assert [finding.severity for finding in seen + contradictory] == ["note", "note"]


def test_images_of_one_colour_alone_are_an_error(tmp_path: Path) -> None:
    split = noise()
    split.images[:] = np.arange(240).reshape(-1, 1, 1, 1)
    (found,) = of_rule(diagnosed(split, tmp_path), "data_range")
    assert found.severity == "error"
    assert "100.0% of the training images have one colour only" in found.message


def test_pixels_of_one_level_are_an_error_that_names_it(tmp_path: Path) -> None:
    split = noise()
    split.images[:] = [0, 1, 2]
    diagnosis = diagnosed(split, tmp_path)
    (found,) = of_rule(diagnosis, "data_range")
    assert found.severity == "error"
    assert "every pixel of the training images is [0, 1, 2]" in found.message
    assert diagnosis.exit_code == 1


def test_pixels_that_were_scaled_before_they_became_whole_numbers_are_found(
    tmp_path: Path,
) -> None:
    diagnosis = diagnosed(noise(brightest=1), tmp_path, "data.normalize=unit")
    (found,) = of_rule(diagnosis, "data_range")
    assert found.severity == "warning"
    assert "levels 0 to 1 of 0 to 255" in found.message
    (scale,) = of_rule(diagnosis, "input_scale")
    assert scale.numbers["deviation"] == pytest.approx(0.5 / 255, rel=1e-2)
    for each in (found, scale):
        assert each.remedies[0].patch == {"data.normalize": "per_channel"}


@pytest.mark.parametrize(
    "override", ["model.block.normalization=batch", "model.stem={kind: whitening, kernel_size: 1}"]
)
def test_a_scale_that_the_stem_undoes_is_a_note(override: str, tmp_path: Path) -> None:
    overrides = (override, "data.normalize=none", "model.block.shortcut=projection")
    (found,) = of_rule(diagnosed(noise(), tmp_path, *overrides), "input_scale")
    assert found.severity == "note"


def test_a_class_that_no_label_names_any_more_is_an_error(tmp_path: Path) -> None:
    split = noise(12)

    def draws_over_a_class(seed: int) -> bool:
        kept = split_off_validation(split, 0.5, seed)[0]
        return len(set(with_label_noise(kept, 1, seed).labels.tolist())) < 3

    seed = next(filter(draws_over_a_class, range(100)))
    overrides = ("data.validation_split=0.5", "data.label_noise=1", f"seed={seed}")
    diagnosis = diagnosed(split, tmp_path, *overrides, "fit.batch_size=6")
    (found,) = of_rule(diagnosis, "data_balance")
    assert found.severity == "error"
    assert found.message.startswith("there is no training image of ")


def test_images_in_folders_are_judged_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, count in (("cat", 44), ("dog", 4)):
        folder = tmp_path / "images" / "train" / name
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    path = tmp_path / "images"
    data = {"source": "directory", "path": str(path), "image_size": [8, 8]}
    run = run_on(noise(), tmp_path, f"data={json.dumps(data)}", "data.validation_split=0.25")
    (found,) = of_rule(diagnose(Evidence.of_run(run)), "data_balance")
    assert "33 training images of cat, 3 of dog" in found.message


@pytest.fixture(scope="module")
def memorizing(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that learns random labels of random images by heart."""
    return run_on(
        noise(400, 2),
        tmp_path_factory.mktemp("memorizing"),
        "data.label_noise=1",
        "data.validation_split=0.5",
        "model.stages=[{filters: 32, blocks: 1}]",
        "model.head.pooling=flatten",
        "fit={epochs: 8, batch_size: 20}",
        "optimizer.learning_rate=0.005",
    )


def test_labels_that_say_nothing_are_learned_by_heart_and_found(memorizing: RunDir) -> None:
    diagnosis = diagnose(Evidence.of_run(memorizing))
    (found,) = of_rule(diagnosis, "memorizing")
    assert diagnosis.findings[0] is found
    assert found.severity == "error"
    assert found.numbers["training_skill"] > 0.2
    assert [remedy.patch for remedy in found.remedies] == [{"data.label_noise": 0.0}]


@pytest.mark.parametrize(
    ("batch_size", "momentum", "reason"),
    [
        (4, 0.9, "batch normalization over 4 images can look like it"),
        (20, 0.9999, "moving statistics that are 99% their start can look like it"),
    ],
)
def test_where_normalization_can_ruin_an_evaluation_labels_are_not_accused(
    memorizing: RunDir, batch_size: int, momentum: float, reason: str
) -> None:
    overrides = [
        f"model.block.normalization={{batch: {{momentum: {momentum}}}}}",
        f"fit.batch_size={batch_size}",
    ]
    evidence = Evidence.of_run(memorizing)
    other = replace(evidence, config=load_config(memorizing.config, overrides))
    assert diagnose(other).not_judged["memorizing"] == reason


def test_batch_normalization_over_two_images_is_a_warning(tmp_path: Path) -> None:
    overrides = ("model.block.normalization=batch", "gradients.record=true")
    few = run_on(noise(), tmp_path, *overrides, "fit.batch_size=2", "data.validation_split=0")
    diagnosis = diagnose(Evidence.of_run(few))
    (found,) = of_rule(diagnosis, "batch_statistics")
    assert found.severity == "warning"
    assert found.numbers == {"images": 2.0}
    # Groups of eight do not fit four filters, and are left out.
    assert [each.patch for each in found.remedies] == [
        {"model.block.normalization": "layer"},
        {"fit.batch_size": 32},
    ]
    assert of_rule(diagnosed(noise(), tmp_path, *overrides), "batch_statistics") == []


@pytest.mark.parametrize("kind", ["layer", "none"])
def test_a_normalization_that_needs_no_batch_may_have_a_small_one(
    kind: str, tmp_path: Path
) -> None:
    overrides = (f"model.block.normalization={kind}", "fit.batch_size=2")
    assert of_rule(diagnosed(noise(24), tmp_path, *overrides), "batch_statistics") == []


def test_a_network_that_generalizes_does_not_memorize(tmp_path: Path) -> None:
    split = noise(400, 2)
    # The brightness tells the class.
    split.images[split.labels == 1] //= 2
    run = run_on(
        split,
        tmp_path,
        "data.validation_split=0.5",
        "fit={epochs: 8, batch_size: 20}",
        "optimizer.learning_rate=0.02",
    )
    diagnosis = diagnose(Evidence.of_run(run))
    assert "memorizing" not in diagnosis.not_judged
    assert of_rule(diagnosis, "memorizing") == []
    assert read_history(run.history)[-1]["val_accuracy"] > 0.9


def test_a_run_whose_data_were_not_measured_is_not_judged_and_says_why(
    memorizing: RunDir, tmp_path: Path
) -> None:
    newer = ("splits", "duplicates", "label_noise", "num_wrong_labels")
    older = RunDir(tmp_path)
    older.config.write_text(memorizing.config.read_text())
    facts = read_json(memorizing.data)
    write_json(older.data, {key: facts[key] for key in facts.keys() - set(newer)})
    not_judged = diagnose(Evidence.of_run(older)).not_judged
    for rule in (*RULES, "memorizing"):
        assert not_judged[rule] == "the run was made before data were measured (data.json)"
