"""An x-ray sees what a network is ill with before it trains, and nothing in a healthy one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import TINY_CONFIG, run_trainer, write_tiny_config

from trainer import xray as xray_module
from trainer.config import Config, load_config
from trainer.data.pipeline import steps_per_epoch, training_batches
from trainer.data.splits import load_training_data
from trainer.diagnosis.judge import Diagnosis
from trainer.diagnosis.xray_evidence import XRay, gradient_noise_scale
from trainer.diagnosis.xray_report import XRAY_RULES, format_xray, judge_xray
from trainer.gradient_log import GradientLog
from trainer.runtime import set_up
from trainer.train import build_compiled, train
from trainer.xray import MICRO_BATCHES, NUM_STEPS, take_xray

PLAIN = "kind: plain, normalization: none, dropout: 0.0"
DEEP = "model.stages=[{filters: 4, blocks: 6}]"


def tiny(folder: Path, *overrides: str) -> Config:
    return load_config(write_tiny_config(folder), list(overrides))


def xray_of(config: Config) -> XRay:
    return take_xray(config, load_training_data(config).train)


def judged(folder: Path, *overrides: str) -> Diagnosis:
    # Traced in half of the time that Adam's step takes.
    optimizer = "optimizer={kind: sgd, learning_rate: 0.01}"
    return judge_xray(xray_of(tiny(folder, optimizer, *overrides)))


def rules_of(diagnosis: Diagnosis, severity: str = "error") -> list[str]:
    return [each.rule for each in diagnosis.findings if each.severity == severity]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> XRay:
    return xray_of(tiny(tmp_path_factory.mktemp("healthy")))


def test_a_healthy_residual_network_has_no_findings(healthy: XRay) -> None:
    diagnosis = judge_xray(healthy)
    assert diagnosis.findings == ()
    assert diagnosis.exit_code == 0
    assert diagnosis.num_rules + len(diagnosis.not_judged) == len(XRAY_RULES)


def test_every_array_has_the_shape_that_its_docstring_says(healthy: XRay) -> None:
    assert healthy.blocks == ("stem_act", "stage0_block0", "stage1_block0", "head_logits")
    for name in ("output_std", "image_std", "saturated", "gradient_rms"):
        assert getattr(healthy, name).shape == (MICRO_BATCHES, 4), name
    assert healthy.kernel_gradient_norms.shape == (MICRO_BATCHES, len(healthy.kernels))
    assert healthy.steps.update_ratios.shape == (NUM_STEPS, len(healthy.kernels))


def test_the_ten_steps_are_those_of_the_training(healthy: XRay, tmp_path: Path) -> None:
    # Dropout, a bound, a warm-up and augmentation: all of it has to be the training's own.
    run = train(tiny(tmp_path), runs_dir=tmp_path / "runs", command=[])
    steps = GradientLog.read(run.gradients).steps[:NUM_STEPS]
    ours = healthy.steps
    # The graph of `fit` is optimized, which rounds otherwise.
    np.testing.assert_allclose(ours.loss, steps["loss"], rtol=1e-3)
    np.testing.assert_allclose(ours.learning_rate, steps["learning_rate"], rtol=1e-6)
    np.testing.assert_allclose(ours.raw_norm, steps["raw_norm"], rtol=1e-2)
    np.testing.assert_allclose(ours.clipped_norm, steps["clipped_norm"], rtol=1e-2)


def test_gradients_of_the_last_outputs_are_those_of_calculus(healthy: XRay) -> None:
    config = healthy.config
    runtime = set_up(config.runtime, config.seed)
    split = load_training_data(config).train
    model = build_compiled(
        config, split, runtime, steps_per_epoch(split.num_images, config.fit.batch_size)
    )
    images, labels = next(
        iter(
            training_batches(
                split.images,
                split.labels,
                split.num_classes,
                batch_size=healthy.batch_size,
                seed=config.seed,
                augment=config.data.augment,
            )
        )
    )
    last_block = model.get_layer("stage1_block0").output
    outputs, logits = keras.Model(model.inputs, [last_block, *model.outputs])(images, training=True)
    outputs, logits = outputs.numpy().astype(float), logits.numpy().astype(float)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = odds / odds.sum(axis=1, keepdims=True) - labels.numpy()
    kernel = model.get_layer("head_logits").kernel.numpy()
    height, width = outputs.shape[1:3]
    per_position = error @ kernel.T / (height * width)

    assert healthy.gradient_rms[0, -1] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    expected = np.sqrt(np.mean(per_position**2))
    assert healthy.gradient_rms[0, -2] == pytest.approx(expected, rel=1e-4)
    pooled = outputs.mean(axis=(1, 2))
    assert healthy.kernel_gradient_norms[0, -1] == pytest.approx(
        np.linalg.norm(pooled.T @ error) / len(error), rel=1e-4
    )
    assert healthy.output_std[0, -2] == pytest.approx(outputs.std(), rel=1e-4)
    between = np.sqrt(np.mean(outputs.var(axis=0)))
    assert healthy.image_std[0, -2] == pytest.approx(between, rel=1e-4)
    cross_entropy = -np.log(np.sum((error + labels.numpy()) * labels.numpy(), axis=1)).mean()
    assert healthy.cross_entropies[0] == pytest.approx(cross_entropy, rel=1e-4)


def test_a_stack_of_sigmoids_vanishes_both_ways(tmp_path: Path) -> None:
    diagnosis = judged(
        tmp_path,
        f"model.block={{{PLAIN}, activation: sigmoid, kernel_initializer: glorot_uniform}}",
        DEEP,
    )
    assert rules_of(diagnosis)[:2] == ["vanishing", "initialization"]
    found = diagnosis.findings[0]
    assert found.layers[0] == "stem_act"
    assert found.numbers["ratio"] < 1e-5
    assert "below a thousandth at stage0_block" in found.message
    assert {"model.block.kind": "residual"} in [remedy.patch for remedy in found.remedies]


def test_too_large_kernels_explode_both_ways_without_normalization(tmp_path: Path) -> None:
    initializer = "kernel_initializer: {random_normal: {stddev: 0.8}}"
    diagnosis = judged(tmp_path, f"model.block={{{PLAIN}, {initializer}}}", DEEP)
    assert rules_of(diagnosis)[:2] == ["exploding", "initialization"]
    assert "over a thousandfold at stage0_block" in diagnosis.findings[0].message


def test_kernels_of_zeros_are_stuck(tmp_path: Path) -> None:
    diagnosis = judged(tmp_path, f"model.block={{{PLAIN}, kernel_initializer: zeros}}")
    assert rules_of(diagnosis)[0] == "stuck"
    assert "some kernels start at zero" in diagnosis.findings[0].message


def test_relus_below_zero_are_dead(tmp_path: Path) -> None:
    bias = "bias_initializer: {constant: {value: -50}}"
    diagnosis = judged(tmp_path, f"model.block={{{PLAIN}, {bias}}}")
    assert rules_of(diagnosis)[0] == "dead"
    assert diagnosis.findings[0].layers[0] == "stem_act"


def test_tanh_behind_large_kernels_is_saturated(tmp_path: Path) -> None:
    initializer = "kernel_initializer: {random_normal: {stddev: 3.0}}"
    diagnosis = judged(tmp_path, f"model.block={{{PLAIN}, activation: tanh, {initializer}}}")
    assert rules_of(diagnosis)[0] == "saturated"


def test_too_large_steps_are_found(tmp_path: Path) -> None:
    optimizer = "optimizer={kind: adam, learning_rate: 30.0}"
    diagnosis = judged(tmp_path, optimizer, "schedule={kind: constant}")
    [found] = [each for each in diagnosis.findings if each.rule == "large_updates"]
    assert "too large" in found.message


def test_small_steps_of_a_warm_up_are_no_illness(tmp_path: Path) -> None:
    # The first of 10,000 steps has a rate of 1e-7.
    diagnosis = judged(
        tmp_path,
        "optimizer={kind: adam, learning_rate: 1e-3}",
        "schedule={kind: constant, warmup_steps: 10000}",
        "fit.epochs=2000",
    )
    assert diagnosis.findings == ()


def test_a_bound_that_chokes_comes_before_the_small_steps_it_makes(tmp_path: Path) -> None:
    optimizer = "optimizer={kind: sgd, learning_rate: 0.1, global_clipnorm: 1e-5}"
    diagnosis = judged(tmp_path, optimizer, "schedule={kind: constant}")
    assert rules_of(diagnosis) == ["clipping", "small_updates"]
    assert "too small" in diagnosis.findings[1].message


def test_a_step_that_is_not_finite_is_named(tmp_path: Path) -> None:
    diagnosis = judged(
        tmp_path,
        # Its slope is never 0: no ReLU dies of the step and hides it.
        f"model.block={{{PLAIN}, activation: leaky_relu}}",
        "optimizer={kind: sgd, learning_rate: 1e6}",
        "schedule={kind: constant}",
    )
    found = diagnosis.findings[0]
    assert found.rule == "nonfinite"
    assert f"at step {found.steps[0]}" in found.message
    assert found.steps[0] >= 1


def test_l2_that_wins_over_the_data_is_found(tmp_path: Path) -> None:
    diagnosis = judged(tmp_path, "model.block.kernel_regularizer={l2: 3.0}")
    assert rules_of(diagnosis)[0] == "regularizer"


def test_the_first_loss_is_held_against_the_logarithm_of_the_classes(tmp_path: Path) -> None:
    initializer = "model.head.kernel_initializer={random_normal: {stddev: 5.0}}"
    diagnosis = judged(tmp_path, initializer)
    [found] = [each for each in diagnosis.findings if each.rule == "initialization"]
    assert found.thresholds["first_loss"] in (math.log(10) + 2, math.log(10) + 10)


def test_a_frozen_stem_and_early_crops_are_looked_at_too(tmp_path: Path) -> None:
    xray = xray_of(
        tiny(
            tmp_path,
            "model.stem={kind: whitening}",
            "model.block.kind=plain",
            "data.early_crops={size: 24, epochs: 1}",
            "optimizer={kind: muon}",
        )
    )
    assert (xray.gradient_rms > 0).all()
    assert not any("stem" in path for path in xray.kernels)
    assert judge_xray(xray).exit_code == 0


def test_smaller_batches_than_the_trainings_are_of_images_drawn_with_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[np.ndarray, np.ndarray]] = []

    def spy(images: np.ndarray, labels: np.ndarray, *rest: Any, **more: Any) -> Any:
        given.append((images, labels))
        return training_batches(images, labels, *rest, **more)

    monkeypatch.setattr(xray_module, "_COST_OF_BATCH", 0)
    monkeypatch.setattr(xray_module, "training_batches", spy)
    config = tiny(tmp_path, "optimizer={kind: sgd, learning_rate: 0.01}")
    split = load_training_data(config).train

    found = take_xray(config, split)

    assert found.batch_size == 16 < config.fit.batch_size
    assert len(found.steps.loss) == NUM_STEPS
    [(images, labels)] = given
    assert len(images) == NUM_STEPS * 16 < split.num_images
    places = {image.tobytes(): index for index, image in enumerate(split.images)}
    drawn = [places[image.tobytes()] for image in images]
    np.testing.assert_array_equal(labels, split.labels[drawn])
    # Not the first ones, which may be of one class, and none twice.
    assert len(set(drawn)) == len(drawn)
    assert drawn != sorted(drawn)


def test_gradients_of_float16_are_unscaled(tmp_path: Path) -> None:
    xray = xray_of(
        tiny(
            tmp_path,
            "runtime.precision=mixed_float16",
            "fit.batch_size=4",
            "model.stages=[{filters: 4, blocks: 1, strides: 2}]",
        )
    )
    keras.config.set_dtype_policy("float32")
    # Probabilities less labels, of ten classes; the scale is 32,768.
    assert (xray.gradient_rms[:, -1] < 1).all()
    assert (xray.gradient_rms[:, -1] > 0.1).all()
    assert (xray.micro_norms < 100).all()


def test_one_seed_gives_one_xray(healthy: XRay, tmp_path: Path) -> None:
    again = xray_of(tiny(tmp_path))
    for name in ("output_std", "gradient_rms", "kernel_gradient_norms", "cross_entropies"):
        np.testing.assert_allclose(getattr(again, name), getattr(healthy, name), rtol=1e-5)
    np.testing.assert_allclose(again.steps.loss, healthy.steps.loss, rtol=1e-4)


def test_graphs_are_optimized_again_afterwards(healthy: XRay) -> None:
    options = tf.config.optimizer.get_experimental_options()
    assert not options.get("disable_meta_optimizer", False)


def test_the_noise_scale_is_that_of_known_noise() -> None:
    random = np.random.default_rng(0)
    gradient, noise = random.normal(0, 1, 400), 6.0
    # One image's gradient deviates by 6 in each of 400 components of size 1.
    expected = 400 * noise**2 / np.sum(gradient**2)
    micro = gradient + random.normal(0, noise / math.sqrt(8), (200, 400))
    found = gradient_noise_scale(
        np.linalg.norm(micro, axis=1), float(np.linalg.norm(micro.mean(axis=0))), 8
    )
    assert found == pytest.approx(expected, rel=0.05)


def test_a_gradient_lost_in_noise_has_an_infinite_noise_scale() -> None:
    assert gradient_noise_scale(np.array([1.0, 1.0]), 0.5, 8) == math.inf


def test_the_table_has_a_row_a_block_within_80_columns(healthy: XRay) -> None:
    lines = format_xray(healthy, judge_xray(healthy)).splitlines()
    assert max(map(len, lines)) <= 80
    for block in healthy.blocks:
        assert any(line.startswith(block) for line in lines), block
    assert any(f"ln(10) = {math.log(10):.3f}" in line for line in lines)


@pytest.mark.parametrize("check", XRAY_RULES, ids=lambda check: check.__name__)
def test_every_rule_documents_itself(check: Any) -> None:
    for part in ("Formula: ", "Threshold: ", "Source: ", "Wrong when: "):
        assert part in check.__doc__, part


def test_the_verb_answers_in_json_with_exit_code_1_for_a_sick_config(tmp_path: Path) -> None:
    path = write_tiny_config(tmp_path)
    answer = run_trainer(
        "xray", path, "--set", f"model.block={{{PLAIN}, kernel_initializer: zeros}}", "--json"
    )
    assert answer.returncode == 1, answer.stderr
    value = json.loads(answer.stdout)
    assert value["verdict"] == "unhealthy"
    assert value["findings"][0]["remedies"][0]["options"].startswith("--set ")
    assert [block["name"] for block in value["blocks"]][-1] == "head_logits"
    assert len(value["steps"]) == NUM_STEPS


def test_missing_data_are_named_with_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "cifar.yaml"
    path.write_text(TINY_CONFIG.replace("source: shapes, train_size: 200, test_size: 53, ", ""))
    answer = run_trainer("xray", path, "--set", f"data.path={tmp_path / 'absent'}")
    assert answer.returncode == 2
    assert answer.stderr.strip().splitlines()[-1].startswith("error: data.path must name")
