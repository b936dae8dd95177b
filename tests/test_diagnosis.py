"""Each rule on a network that was made ill on purpose, and all of them on a healthy one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tiny import run_trainer, write_tiny_config

from trainer.callbacks import GradientRecorder
from trainer.config import load_config
from trainer.diagnosis.evidence import Evidence
from trainer.diagnosis.finding import SEVERITIES, Finding
from trainer.diagnosis.judge import Diagnosis, diagnose, format_diagnosis, keep_diagnosis
from trainer.diagnosis.registry import RULES
from trainer.errors import TrainerError
from trainer.gradient_log import read_windows
from trainer.recorded_steps import STEP_DTYPE, WINDOW_STATS, RecordedSteps
from trainer.run_dir import RunDir, read_json
from trainer.train import train

LAYERS = 12


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Return points of four classes that a line parts."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 400)
    centres = random.normal(0, 2, (4, 16))
    return (centres[labels] + random.normal(0, 0.5, (400, 16))).astype("float32"), labels


def stack(
    activation: str, initializer: Any, *, bias: Any = "zeros", layers: int = LAYERS
) -> keras.Sequential:
    """Return a stack of small dense layers."""
    keras.utils.set_random_seed(0)
    hidden = [
        keras.layers.Dense(
            16, activation, kernel_initializer=initializer, bias_initializer=bias, name=f"dense{i}"
        )
        for i in range(layers)
    ]
    return keras.Sequential([keras.Input((16,)), *hidden, keras.layers.Dense(4, name="head")])


def diagnosed(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    folder: Path,
    *,
    epochs: int = 6,
    window_steps: int = 10,
) -> Diagnosis:
    """Train for 20 steps an epoch and diagnose what was recorded."""
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    recorder = GradientRecorder(folder, window_steps=window_steps, warn=lambda text: None)
    model.fit(*blobs(), batch_size=20, epochs=epochs, verbose=0, callbacks=[recorder])
    return diagnose(Evidence.of_log(folder))


def sgd(rate: float = 0.05, **options: Any) -> keras.optimizers.SGD:
    return keras.optimizers.SGD(rate, **options)


def finding(diagnosis: Diagnosis, rule: str) -> Finding:
    found = [each for each in diagnosis.findings if each.rule == rule]
    assert found, [(each.rule, each.severity) for each in diagnosis.findings]
    return found[0]


def test_a_healthy_network_is_called_healthy(tmp_path: Path) -> None:
    diagnosis = diagnosed(stack("relu", "he_normal", layers=3), sgd(), tmp_path)
    assert diagnosis.findings == ()
    assert diagnosis.exit_code == 0
    assert diagnosis.num_rules + len(diagnosis.not_judged) == len(RULES)


def test_a_stack_of_sigmoids_vanishes_and_the_first_layers_are_named(tmp_path: Path) -> None:
    diagnosis = diagnosed(stack("sigmoid", "glorot_uniform"), sgd(), tmp_path)
    found = finding(diagnosis, "vanishing")
    assert diagnosis.findings[0] is found
    assert found.severity == "error"
    assert found.layers[0].split("/")[-2] in ("dense0", "dense1", "dense2")
    assert found.windows_fired == found.windows_seen == 11
    # The first window ends within the warm-up.
    norms = Evidence.of_log(tmp_path).gradients.stat("raw_norm/median")[1:]
    kernels = norms[:, ::2]
    expected = np.median(np.median(kernels[:, :3], axis=1) / kernels[:, -1])
    assert found.numbers["ratio"] == pytest.approx(expected, rel=1e-5)


def test_a_signal_that_grows_from_layer_to_layer_is_a_poor_start(tmp_path: Path) -> None:
    initializer = keras.initializers.RandomNormal(stddev=1.5, seed=0)
    optimizer = keras.optimizers.Adam(1e-5)
    found = finding(diagnosed(stack("relu", initializer), optimizer, tmp_path), "initialization")
    assert found.numbers["std_ratio"] > 1e2


def test_a_loss_that_is_not_finite_comes_first(tmp_path: Path) -> None:
    diagnosis = diagnosed(stack("linear", "he_normal", layers=4), sgd(100.0), tmp_path)
    found = diagnosis.findings[0]
    assert (found.rule, found.severity) == ("nonfinite", "error")
    steps = Evidence.of_log(tmp_path).gradients.steps
    assert (
        found.steps[0] == steps["step"][np.argmin(np.isfinite(steps["loss"] + steps["raw_norm"]))]
    )


def test_relus_below_zero_are_dead(tmp_path: Path) -> None:
    bias = keras.initializers.Constant(-50.0)
    diagnosis = diagnosed(stack("relu", "he_normal", bias=bias, layers=3), sgd(), tmp_path)
    found = finding(diagnosis, "dead")
    assert found.severity == "error"
    assert found.numbers["zero_fraction"] == 1


def test_tanh_behind_large_kernels_is_saturated(tmp_path: Path) -> None:
    initializer = keras.initializers.RandomNormal(stddev=5.0, seed=0)
    diagnosis = diagnosed(stack("tanh", initializer, layers=3), sgd(1e-4), tmp_path)
    assert finding(diagnosis, "saturated").numbers["saturated_fraction"] > 0.5


def test_kernels_of_zeros_never_move(tmp_path: Path) -> None:
    diagnosis = diagnosed(stack("relu", "zeros", layers=3), sgd(), tmp_path)
    found = finding(diagnosis, "stuck")
    assert found.severity == "error"
    assert "gradient is exactly zero" in found.message


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_a_branch_that_leads_nowhere_never_moves(tmp_path: Path) -> None:
    inputs = keras.Input((16,))
    lost = keras.layers.Dense(4, name="lost")(inputs)
    outputs = keras.layers.Dense(4, name="head")(keras.layers.Dense(8, "relu")(inputs))
    model = keras.Model(inputs, outputs + keras.ops.stop_gradient(lost))
    found = finding(diagnosed(model, sgd(), tmp_path), "stuck")
    assert "the loss does not depend on them" in found.message
    assert {path.split("/")[-2] for path in found.layers} == {"lost"}


@pytest.mark.parametrize(("rate", "word"), [(30.0, "large"), (1e-9, "small")])
def test_steps_of_the_wrong_size_are_found(rate: float, word: str, tmp_path: Path) -> None:
    model, optimizer = stack("relu", "he_normal", layers=3), keras.optimizers.Adam(rate)
    diagnosis = diagnosed(model, optimizer, tmp_path, epochs=1, window_steps=5)
    assert f"too {word}" in finding(diagnosis, f"{word}_updates").message


def test_a_bound_that_chokes_is_found_before_the_small_steps_it_makes(tmp_path: Path) -> None:
    optimizer = sgd(0.1, global_clipnorm=1e-5)
    diagnosis = diagnosed(stack("relu", "he_normal", layers=3), optimizer, tmp_path)
    assert diagnosis.findings[0].rule == "clipping"
    assert diagnosis.findings[0].numbers["clipped_share"] == 1


def test_a_bound_that_never_acts_is_a_note(tmp_path: Path) -> None:
    optimizer = sgd(global_clipnorm=1e6)
    diagnosis = diagnosed(stack("relu", "he_normal", layers=3), optimizer, tmp_path)
    assert [(f.rule, f.severity) for f in diagnosis.findings] == [("clipping", "note")]
    assert diagnosis.exit_code == 0


def test_a_loss_that_does_not_fall_is_found(tmp_path: Path) -> None:
    model = stack("relu", "he_normal", layers=3)
    diagnosis = diagnosed(model, sgd(1e-7), tmp_path, window_steps=20)
    assert finding(diagnosis, "plateau").numbers["best_over_first"] > 0.95


def trained(folder: Path, overrides: Sequence[str]) -> RunDir:
    config = load_config(write_tiny_config(folder), ["model.block.dropout=0", *overrides])
    try:
        return train(config, runs_dir=folder / "runs", command=["trainer", "train"])
    except TrainerError:
        [path] = (folder / "runs").iterdir()
        return RunDir.open(path)


def test_l2_that_wins_over_the_data_is_found(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        ["model.block.kernel_regularizer={l2: 3.0}", "optimizer={kind: sgd, learning_rate: 0.01}"],
    )
    found = finding(diagnose(Evidence.of_run(run)), "regularizer")
    assert found.remedies[0].patch == {"model.block.kernel_regularizer": {"l1": 0.0, "l2": 0.03}}


def test_a_remedy_is_taken_by_set_and_changes_the_config(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        [
            "model.block={kind: plain, activation: sigmoid, normalization: none}",
            "model.stages=[{filters: 4, blocks: 5}, {filters: 8, blocks: 5, strides: 2}]",
            "optimizer={kind: sgd, learning_rate: 0.01}",
        ],
    )
    found = finding(diagnose(Evidence.of_run(run)), "vanishing")
    assert found.remedies
    for remedy in found.remedies:
        overrides = [part.strip("' ") for part in remedy.options.split("--set ") if part]
        assert load_config(run.config, overrides) != load_config(run.config)


def test_the_verb_answers_in_text_and_json_without_tensorflow(tmp_path: Path) -> None:
    run = trained(tmp_path, ["model.block.kernel_initializer=zeros", "model.block.kind=plain"])
    answer = run_trainer("diagnose", run.path, "--json")
    assert answer.returncode == 1, answer.stderr
    value = json.loads(answer.stdout)
    assert value["verdict"] == "unhealthy"
    assert value["findings"][0]["rule"] == "stuck"
    assert value["findings"][0]["remedies"][0]["options"].startswith("--set ")
    text = run_trainer("diagnose", run.path).stdout
    assert text.startswith("ERROR stuck:")
    assert max(map(len, text.splitlines()[:-1])) <= 80


def test_without_a_log_nothing_is_judged_and_it_says_why(tmp_path: Path) -> None:
    run = trained(tmp_path, ["gradients.record=false", "fit.epochs=1"])
    diagnosis = diagnose(Evidence.of_run(run))
    assert "no gradient log here" in diagnosis.not_judged["vanishing"]
    [said] = [line for line in format_diagnosis(diagnosis).splitlines() if "vanishing" in line]
    assert said.startswith("not judged: ")


def test_a_rule_of_ones_own_is_asked_too(tmp_path: Path) -> None:
    run = trained(tmp_path, ["fit.epochs=1"])
    rules = tmp_path / "mine.py"
    rules.write_text(
        "from trainer.diagnosis import Finding, rule\n"
        "@rule('mine', rank=5)\n"
        "def mine(evidence):\n"
        "    return [Finding('mine', 'error', 'it is so')]\n"
    )
    answer = run_trainer("diagnose", run.path, "--rules", rules)
    assert answer.returncode == 1
    assert answer.stdout.startswith("ERROR mine: it is so.")
    rules.write_text("raise RuntimeError('no')")
    answer = run_trainer("diagnose", run.path, "--rules", rules)
    assert answer.returncode == 2
    assert "the rules cannot be loaded (RuntimeError: no)" in answer.stderr


def test_the_rule_of_the_readme_works_as_it_stands_there(tmp_path: Path) -> None:
    diagnosed(stack("relu", "he_normal", layers=2), sgd(1e-9), tmp_path / "log", epochs=1)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "@rule(" in block
    ]
    (tmp_path / "mine.py").write_text(code.replace("1e-3", "1e9"))
    answer = run_trainer("diagnose", tmp_path / "log", "--rules", tmp_path / "mine.py")
    assert "WARNING too_quiet:" in answer.stdout


def test_the_readme_names_every_rule() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    own = {rule.id for rule in RULES.values() if rule.check.__module__.startswith("trainer.")}
    assert {name for name in own if f"`{name}`" not in readme} == set()


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_every_rule_documents_itself(rule: Any) -> None:
    for part in ("Formula: ", "Threshold: ", "Source: ", "Wrong when: "):
        assert part in rule.check.__doc__, part


def test_findings_are_ordered_by_severity_first(tmp_path: Path) -> None:
    diagnosis = diagnosed(stack("sigmoid", "glorot_uniform"), sgd(global_clipnorm=1e6), tmp_path)
    order = [SEVERITIES.index(each.severity) for each in diagnosis.findings]
    assert len(order) > 1
    assert order == sorted(order)


def test_a_training_whose_gradients_were_not_recorded_is_not_called_healthy(tmp_path: Path) -> None:
    run = trained(tmp_path, ["gradients.record=false"])

    diagnosis = diagnose(Evidence.of_run(run))

    assert diagnosis.exit_code == 2
    assert diagnosis.as_json()["verdict"] == "could not judge"
    assert "healthy: no rule found anything" not in str(diagnosis)
    assert "could not judge whether it is healthy" in str(diagnosis)


def test_ten_steps_are_too_few_to_be_called_healthy(tmp_path: Path) -> None:
    run = trained(tmp_path, ["fit.epochs=1"])  # nine steps

    diagnosis = diagnose(Evidence.of_run(run))

    assert (diagnosis.findings, diagnosis.exit_code) == ((), 2)
    assert "the log ends within the first 10 steps" in str(diagnosis)


def test_no_verdict_at_all_does_not_replace_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    kept = Diagnosis((), {}, 5, {})

    keep_diagnosis(run, kept)
    keep_diagnosis(run, Diagnosis((), {}, 5, {}, unheard="no gradients were recorded"))

    assert read_json(run.diagnosis)["verdict"] == "healthy"


def test_a_log_that_lost_its_last_windows_is_said_to_be_damaged(tmp_path: Path) -> None:
    run = trained(tmp_path, [])
    windows = run.gradients / "windows.bin"
    whole = list(read_windows(run.gradients))
    windows.write_bytes(b"".join(each.encode() for each in whole[:4]))

    missing = Evidence.of_run(run).missing

    assert (
        "its last step is 12, and the run has trained for 27 steps" in missing["the end of the log"]
    )
    windows.write_bytes(b"")
    assert (
        "no window can be read, and the run has trained for 27 steps"
        in (Evidence.of_run(run).missing["log"])
    )


def test_the_update_ratio_of_lost_weights_is_unknown() -> None:
    steps = np.zeros(1, STEP_DTYPE)
    norms = np.array([[[1, 1, np.nan, np.nan], [1, 1, 0, 0], [1, 1, 2, 0], [1, 1, 1, 2]]])
    recorded = RecordedSteps(steps, norms.astype(np.float32), np.full((1, 4, 5), np.nan))

    ratios = recorded.summarize()[WINDOW_STATS.index("update_ratio/median")]

    np.testing.assert_array_equal(ratios, [np.nan, 0, np.nan, 0.5])
