"""Frozen stages: what stays, what is trained, and that a run with them is a whole run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tiny import run_trainer, write_tiny_config

import trainer.layers  # noqa: F401
from trainer.config import load_config
from trainer.config.model_schema import ModelSpec
from trainer.export.exporting import export
from trainer.gradient_log import GradientLog
from trainer.model_summary import format_layers, summarize
from trainer.models import build_model
from trainer.pixels import PixelScaling
from trainer.run_dir import RunDir
from trainer.runtime import set_up
from trainer.train import resume, train

STAGES = (
    "model.stages=[{filters: 4, blocks: 1, trainable: false}, "
    "{filters: 8, blocks: 1, strides: 2, trainable: false}, {filters: 8, blocks: 1}]"
)
OVERRIDES = (
    STAGES,
    "model.stem.trainable=false",
    "model.block={shortcut: projection, activation: prelu, dropout: 0.1}",
    "model.block.kernel_regularizer={l2: 0.01}",
    "optimizer={kind: adamw, learning_rate: 0.003, weight_decay: 0.1, ema_momentum: 0.9}",
)
FROZEN = ("stem", "stage0", "stage1")


def train_frozen(folder: Path, *overrides: str) -> RunDir:
    config = load_config(write_tiny_config(folder), (*OVERRIDES, *overrides))
    return train(config, runs_dir=folder / "runs", command=["trainer", "train"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_frozen(tmp_path_factory.mktemp("frozen"))


def weights_of(run: RunDir) -> dict[str, np.ndarray]:
    model = keras.models.load_model(run.model, compile=False)
    return {weight.path: weight.numpy() for weight in model.weights}


def initial_weights(run: RunDir) -> dict[str, np.ndarray]:
    config = load_config(run.config)
    set_up(config.runtime, config.seed)
    model = build_model(config.model, (32, 32, 3), 10, PixelScaling.identity(3))
    return {weight.path: weight.numpy() for weight in model.weights}


def test_frozen_variables_stay_as_they_start_and_all_others_move(run: RunDir) -> None:
    before, after = initial_weights(run), weights_of(run)
    assert before.keys() == after.keys()
    same = {path for path in before if np.array_equal(before[path], after[path])}
    # Moving statistics too: a frozen batch normalization looks at no batch.
    assert same == {path for path in before if path.startswith(FROZEN)}
    assert any("moving_mean" in path for path in same)


def test_the_gradient_log_holds_what_is_trained(run: RunDir) -> None:
    paths = GradientLog.read(run.gradients).header.paths
    assert {path.split("_")[0] for path in paths} == {"stage2", "head"}


def spec_of(*trainable: bool, **block: Any) -> ModelSpec:
    stages = [{"filters": 4, "blocks": 1, "trainable": each} for each in trainable]
    return ModelSpec.model_validate({"stem": {"filters": 4}, "stages": stages, "block": block})


def built(spec: ModelSpec) -> keras.Model:
    keras.utils.set_random_seed(0)
    return build_model(spec, (8, 8, 3), 3, PixelScaling.identity(3))


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize("normalization", ["batch", {"batch": {"synchronized": True}}])
def test_a_frozen_stage_normalizes_as_a_frozen_layer_of_keras_does(normalization: Any) -> None:
    free, frozen = (built(spec_of(each, normalization=normalization)) for each in (True, False))
    block = free.get_layer("stage0_block0")
    block.trainable = False
    for model in (free, frozen):
        for weight in model.weights:
            if "moving_mean" in weight.path:
                weight.assign(weight + 0.5)
    np.testing.assert_array_equal(
        free(images(), training=True).numpy(), frozen(images(), training=True).numpy()
    )
    # The moving statistics are those of no batch, so that the modes of a free block differ.
    block.trainable = True
    assert not np.allclose(free(images(), training=True), frozen(images(), training=True))


def test_a_frozen_stage_has_no_regularizer() -> None:
    regularizer = {"kernel_regularizer": {"l2": 0.1}}
    num_losses = [
        len(built(spec_of(*each, **regularizer)).losses) for each in ((True, True), (False, True))
    ]
    assert num_losses == [5, 3]


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_a_loaded_model_is_as_frozen_as_the_saved_one(kind: str, tmp_path: Path) -> None:
    model = built(spec_of(False, True, kind=kind))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in loaded.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    block = loaded.get_layer("stage0_block0")
    assert not any(layer.trainable for layer in block._flatten_layers())


def test_a_frozen_block_can_be_trained_again() -> None:
    model, free = built(spec_of(False, True)), built(spec_of(True, True))
    model.get_layer("stage0_block0").trainable = True
    assert len(model.trainable_variables) == len(free.trainable_variables)


def test_the_summary_puts_what_is_frozen_in_brackets() -> None:
    frozen, free = summarize(built(spec_of(False, True))), summarize(built(spec_of(True, True)))
    assert [a.parameters + a.frozen for a in frozen] == [b.parameters for b in free]
    assert {layer.path.split("/")[0] for layer in frozen if layer.frozen} == {"stage0_block0"}
    lines = format_layers(frozen).splitlines()
    (row,) = [line for line in lines if line.startswith("stage0_block0/conv1")]
    assert row.split()[-2:] == ["(144)", "0.01M"]
    assert re.match(r"\d+ parameters and 304 frozen \(in brackets\), ", lines[-1])
    assert max(map(len, lines)) <= 80


def test_the_verb_that_shows_a_model_counts_what_is_frozen(tmp_path: Path) -> None:
    path = write_tiny_config(tmp_path)
    answer = run_trainer("model", path, "--json", "--set", STAGES)
    assert answer.returncode == 0, answer.stderr
    value = json.loads(answer.stdout)
    assert value["frozen"] == sum(layer["frozen"] for layer in value["layers"]) > 0


def test_a_stopped_run_with_frozen_stages_goes_on_to_the_same_weights(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from trainer import fitting
    from trainer.errors import InterruptedRun

    original = fitting.Bookkeeping.on_train_batch_begin

    def begin(self: fitting.Bookkeeping, batch: int, logs: None = None) -> None:
        if self._step == 13:
            signal.raise_signal(signal.SIGINT)
        original(self, batch, logs)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRun):
        patch.setattr(fitting.Bookkeeping, "on_train_batch_begin", begin)
        train_frozen(tmp_path)
    (path,) = (tmp_path / "runs").iterdir()
    stopped = RunDir(path)
    resume(stopped, command=["trainer"])
    whole, resumed = weights_of(run), weights_of(stopped)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_run_with_frozen_stages_is_exported_and_proven(run: RunDir) -> None:
    found = export(run, (), None, lambda text: None)
    assert found.failures == {}
    assert found.facts["signatures"]["serving_default"]["parity"]["test"]["agreement"] == 1
