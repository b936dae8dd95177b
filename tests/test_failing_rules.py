"""What goes wrong while a diagnosis is made costs no more than itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from recorded_models import compiled, fit
from test_diagnosis import trained
from tiny import run_trainer

from trainer.callbacks import GradientRecorder
from trainer.diagnosis import Evidence, Finding, Remedy
from trainer.diagnosis.judge import diagnose, format_diagnosis, with_possible_remedies
from trainer.diagnosis.loss_rules import overfitting
from trainer.diagnosis.registry import RULES, Rule
from trainer.run_dir import RunDir, read_history, write_history


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained(tmp_path_factory.mktemp("run"), ["fit.epochs=2"])


def with_rule(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[Evidence], Any], run: RunDir
) -> dict[str, Any]:
    """Diagnose with a rule `mine` too, and return what programs get."""
    monkeypatch.setitem(RULES, "mine", Rule("mine", 5, check))
    diagnosis = diagnose(Evidence.of_run(run))
    assert "mine" in format_diagnosis(diagnosis)
    return diagnosis.as_json()


def test_a_rule_that_raises_leaves_the_others_their_say(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = diagnose(Evidence.of_run(run)).as_json()

    def mine(evidence: Evidence) -> list[Finding]:
        raise KeyError("my column")

    value = with_rule(monkeypatch, mine, run)
    assert value["findings"] == before["findings"]
    assert value["rules_run"] == before["rules_run"]
    reason = value["not_judged"]["mine"]
    assert reason.startswith("the rule failed (test_failing_rules.py, line ")
    assert reason.endswith("KeyError: 'my column'")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must return a list of findings. Received: None"),
        (["all is well"], "must return a list of findings"),
        ([Finding("mine", "error", "no", numbers={"at": "noon"})], "'at' must be a number"),  # type: ignore[dict-item]
        ([Finding("yours", "error", "no")], "must have its rule's id, 'mine'"),
        ([Finding("mine", "fatal", "no")], "one of the severities"),  # type: ignore[arg-type]
    ],
)
def test_a_rule_that_returns_no_findings_is_told_so(
    returned: Any, message: str, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = with_rule(monkeypatch, lambda evidence: returned, run)
    assert message in value["not_judged"]["mine"]


def test_numbers_of_numpy_become_json(run: RunDir, tmp_path: Path) -> None:
    rules = tmp_path / "mine.py"
    rules.write_text(
        "import numpy as np\n"
        "from trainer.diagnosis import Finding, rule\n"
        "@rule('mine', rank=5)\n"
        "def mine(evidence):\n"
        "    numbers = {'a': np.float32(1.5), 'b': np.int64(2), 'c': np.float32('inf')}\n"
        "    return [Finding('mine', 'error', 'it is so', numbers=numbers)]\n"
    )
    answer = run_trainer("diagnose", run.path, "--rules", rules, "--json")
    assert answer.returncode == 1, answer.stderr
    assert json.loads(answer.stdout)["findings"][0]["numbers"] == {"a": 1.5, "b": 2, "c": None}


@pytest.mark.parametrize("patch", [{"optimizer.rate.peak": 1}, {"no.such.key": 1}, {"model.x": 1}])
def test_a_remedy_for_a_key_that_is_none_is_left_out(patch: dict[str, Any], run: RunDir) -> None:
    wrong = Finding("mine", "error", "no", remedies=(Remedy("is wrong", patch),))
    assert with_possible_remedies(wrong, Evidence.of_run(run).config).remedies == ()


def test_a_remedy_that_training_would_refuse_is_left_out(run: RunDir) -> None:
    # There are 180 training images.
    batches = tuple(Remedy("larger", {"fit.batch_size": size}) for size in (128, 512))
    found = Finding("mine", "error", "no", remedies=batches)
    kept = with_possible_remedies(found, Evidence.of_run(run).config).remedies
    assert [remedy.patch["fit.batch_size"] for remedy in kept] == [128]


def test_a_damaged_history_is_named_and_the_log_is_judged(run: RunDir, tmp_path: Path) -> None:
    before = diagnose(Evidence.of_run(run))
    content = run.history.read_text()
    try:
        run.history.write_text(content + "2,what,0,0,0\n")
        diagnosis = diagnose(Evidence.of_run(run))
    finally:
        run.history.write_text(content)
    assert "history.csv: this artifact is damaged" in diagnosis.missing["history"]
    assert diagnosis.num_rules >= before.num_rules - 3


def test_a_run_that_cannot_be_written_is_diagnosed_all_the_same(run: RunDir) -> None:
    # A folder of that name stops even one who may write everywhere.
    run.diagnosis.unlink(missing_ok=True)
    (run.diagnosis / "in_the_way").mkdir(parents=True)
    try:
        answer = run_trainer("diagnose", run.path)
    finally:
        (run.diagnosis / "in_the_way").rmdir()
        run.diagnosis.rmdir()
    assert "rules ran." in answer.stdout
    assert answer.stderr.startswith(f"warning: {run.diagnosis}: cannot be written")


def test_a_validation_loss_of_zero_was_the_best_one(run: RunDir, tmp_path: Path) -> None:
    rows = [
        {"epoch": i, "loss": 1.0 - 0.1 * i, "accuracy": 0.9, "val_loss": loss, "val_accuracy": 0.5}
        for i, loss in enumerate([0.5, 0.0, 0.5, 1.0, 1.0, 1.0])
    ]
    path = tmp_path / "history.csv"
    write_history(path, rows)
    [found] = overfitting(replace(Evidence.of_run(run), history=read_history(path)))
    assert "was 0 in epoch 2" in found.message


def test_a_probe_set_that_cannot_pass_is_said_once_and_training_goes_on(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    )
    said: list[str] = []
    probe = np.zeros((4, 7), np.float32)
    recorder = GradientRecorder(tmp_path, window_steps=4, probe=probe, warn=said.append)
    fit(compiled(model, optimizer=keras.optimizers.SGD(1e-3)), recorder)
    assert len(recorder.log().window_steps) > 1
    assert np.isnan(recorder.log().activation("dead_fraction")).all()
    [message] = said
    assert "dead units are no longer counted" in message
    assert len(message) < 400
