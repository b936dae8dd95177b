"""What is asked of a trained run, on one that uses every feature of the fast recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from tiny import run_trainer, write_tiny_config

import trainer.layers  # noqa: F401
from trainer.config import load_config
from trainer.data.sources import load_split
from trainer.data.splits import split_off_validation
from trainer.evaluate import evaluate, format_evaluation
from trainer.pixels import PixelScaling, whitening_kernel
from trainer.run_dir import RunDir, read_json
from trainer.train import train

OVERRIDES = (
    "model.stem={kind: whitening}",
    "model.stages=[{filters: 24, blocks: 1, pool_size: 2}, {filters: 24, blocks: 1, pool_size: 2}]",
    "model.block={kind: plain, activation: gelu, kernel_initializer: dirac}",
    "model.head.pooling=max",
    "optimizer={kind: muon, learning_rate: 0.1, kernel_norm: fixed, newton_schulz_steps: 3}",
    "schedule={kind: triangular, start_fraction: 1.0}",
    "fit.label_smoothing=0.2",
    "evaluation.views=mirror",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("fast")
    config = load_config(write_tiny_config(folder), OVERRIDES)
    return train(config, runs_dir=folder / "runs", command=["trainer", "train"])


def logits_of(run: RunDir, images: np.ndarray) -> np.ndarray:
    """Average the two views as the words say it, by nothing but Keras."""
    model = keras.models.load_model(run.model, compile=False)
    return (model.predict(images, verbose=0) + model.predict(images[:, :, ::-1], verbose=0)) / 2


def test_the_stem_whitens_the_training_images_and_is_never_trained(run: RunDir) -> None:
    config = load_config(run.config)
    split = load_split(config.data, "train", config.seed)
    images = split_off_validation(split, config.data.validation_split, config.seed)[0].images
    scaling = PixelScaling.of(images, "per_channel")
    stem = keras.models.load_model(run.model, compile=False).get_layer("stem_conv")
    np.testing.assert_array_equal(stem.kernel, whitening_kernel(images, scaling, 2, 5e-4))


def test_an_evaluation_averages_the_views_and_tells_the_single_one_too(run: RunDir) -> None:
    evaluation = evaluate(run)
    config = load_config(run.config)
    split = load_split(config.data, "test", config.seed)
    hits = logits_of(run, split.images).argmax(axis=1) == split.labels
    assert evaluation.accuracy == pytest.approx(hits.mean())
    model = keras.models.load_model(run.model, compile=False)
    single = model.predict(split.images, verbose=0).argmax(axis=1) == split.labels
    assert evaluation.single_view_accuracy == pytest.approx(single.mean())
    assert read_json(run.evaluation)["views"] == "mirror"


def test_a_model_of_nan_is_not_passed_off_as_one_that_guesses(run: RunDir, tmp_path: Path) -> None:
    copy = RunDir(Path(shutil.copytree(run.path, tmp_path / "broken")))
    model = keras.models.load_model(copy.model, compile=False)
    model.get_layer("head_logits").kernel.assign(np.full((24, 10), np.nan, np.float32))
    model.save(copy.model)
    evaluation = evaluate(copy)
    assert evaluation.num_not_finite == evaluation.num_images
    assert "are not finite: their predictions mean nothing" in format_evaluation(evaluation)
    assert evaluate(run).num_not_finite == 0


def test_predictions_average_the_views_and_a_bad_file_costs_only_its_own_row(
    run: RunDir, tmp_path: Path
) -> None:
    config = load_config(run.config)
    images = load_split(config.data, "test", config.seed).images[:3]
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "1b.png").write_bytes(b"no image")

    answer = run_trainer("predict", run.path, tmp_path, "--json")

    assert answer.returncode == 1, answer.stderr
    rows = json.loads(answer.stdout)["predictions"]
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "1b.png", "2.png"]
    assert rows[2]["error"] and rows[2]["label"] is None
    powers = np.exp(logits_of(run, images))
    expected = powers / powers.sum(axis=1, keepdims=True)
    names = read_json(run.data)["class_names"]
    for row, probabilities in zip([rows[0], rows[1], rows[3]], expected, strict=True):
        found = [row["probabilities"][name] for name in names]
        np.testing.assert_allclose(found, probabilities, atol=1e-5)
        assert row["label"] == names[probabilities.argmax()]
