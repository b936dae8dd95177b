"""An export from end to end: what it writes and what it says of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from exported_runs import ask, call, contents, encoded, probabilities_of, split_of, train_tiny

from trainer.config import load_config
from trainer.data.splits import split_off_validation
from trainer.export.exporting import Export, export
from trainer.export.health import gradient_health
from trainer.gradient_log import GradientLog
from trainer.run_dir import RunDir, read_json

OVERRIDES = ("evaluation.views=mirror", "optimizer.ema_momentum=0.9")
SIGNATURES = ("serving_default", "serve_bytes")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_tiny(tmp_path_factory.mktemp("exported"), *OVERRIDES)


@pytest.fixture(scope="module")
def exported(run: RunDir) -> Export:
    """The first version, which no test may change."""
    return export(run)


@pytest.fixture
def copied(run: RunDir, tmp_path: Path) -> RunDir:
    """The run without what was exported."""
    path = tmp_path / "copied"
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns("saved_model"))
    return RunDir(path)


def splits_of(run: RunDir) -> dict[str, Any]:
    config = load_config(run.config)
    train = split_of(run, "train")
    validation = split_off_validation(train, config.data.validation_split, config.seed)[1]
    return {"validation": validation, "test": split_of(run)}


def test_both_signatures_average_the_views_of_the_config(run: RunDir, exported: Export) -> None:
    images = split_of(run).images
    expected = probabilities_of(run, images, "mirror")
    names = read_json(run.data)["class_names"]
    model = tf.saved_model.load(str(exported.path))
    for signature, batch in (
        ("serving_default", images),
        ("serve_bytes", [encoded(image) for image in images]),
    ):
        answers = ask(model, signature, batch)
        np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=1e-5)
        best = [names[i].encode() for i in answers["class_index"]]
        assert answers["class_name"].tolist() == best
    single = probabilities_of(run, images)
    assert np.abs(single - expected).max() > 1e-3, "the views must make a difference here"


def test_export_json_tells_what_can_be_counted_again(run: RunDir, exported: Export) -> None:
    facts = read_json(exported.path / "export.json")
    assert (facts["version"], facts["views"], facts["precision"]) == (1, "mirror", "float32")
    assert facts["class_names"] == read_json(run.data)["class_names"]
    for signature in SIGNATURES:
        entry = facts["signatures"][signature]
        assert entry["problem"] is None
        assert set(entry["parity"]) == {"validation", "test"}
        for name, split in splits_of(run).items():
            parity = entry["parity"][name]
            best = probabilities_of(run, split.images, "mirror").argmax(axis=1)
            assert parity["num_images"] == split.num_images
            assert 0 < parity["max_difference"] <= 1e-5
            assert parity["agreement"] == 1
            assert parity["accuracy"] == pytest.approx(np.mean(best == split.labels))


def test_export_json_describes_the_signatures_as_they_are(exported: Export) -> None:
    facts = read_json(exported.path / "export.json")["signatures"]
    model = tf.saved_model.load(str(exported.path))
    assert set(model.signatures) == set(SIGNATURES)
    for name in SIGNATURES:
        signature = model.signatures[name]
        inputs = signature.structured_input_signature[1]
        for found, described in (
            (inputs, facts[name]["inputs"]),
            (signature.structured_outputs, facts[name]["outputs"]),
        ):
            assert described == {k: [v.dtype.name, v.shape.as_list()] for k, v in found.items()}
    assert facts["serving_default"]["inputs"] == {"images": ["uint8", [None, 32, 32, 3]]}
    assert facts["serve_bytes"]["inputs"] == {"image_bytes": ["string", [None]]}


def test_every_file_has_its_checksum(exported: Export) -> None:
    facts = read_json(exported.path / "export.json")
    found = contents(exported.path)
    del found["export.json"]
    assert facts["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in found.items()
    }
    assert {"saved_model.pb", "model_card.md"} < set(found)
    weights = [content for name, content in found.items() if name.startswith("variables/")]
    assert facts["bytes"] == len(found["saved_model.pb"]) + sum(map(len, weights))


def test_the_card_says_what_export_json_says(run: RunDir, exported: Export) -> None:
    facts = read_json(exported.path / "export.json")
    card = (exported.path / "model_card.md").read_text()
    assert ", ".join(facts["class_names"]) in card
    assert "SYNTHETIC" in card
    assert "`mirror` views" in card
    assert "fails a **whole request** for one image" in card
    assert run.path.name in card
    assert "- epochs: 8;" in card
    for name in SIGNATURES:
        for split, parity in facts["signatures"][name]["parity"].items():
            row = f"| `{name}` | {split} | {parity['max_difference']:.1e} | 100.00% |"
            assert f"{row} {parity['accuracy']:.4f} |" in card
            assert f"| {split} | {parity['num_images']} | {parity['accuracy']:.4f} |" in card


def test_gradient_health_is_that_of_the_log(run: RunDir, exported: Export) -> None:
    log = GradientLog.read(run.gradients)
    raw = log.steps["raw_norm"].astype(np.float64)
    first, last = log.window_steps[-1]
    in_last = [first <= step <= last for step in log.steps["step"]]
    kernels = [v.path for v in log.header.variables if len(v.shape) >= 2]
    paths = [v.path for v in log.header.variables]
    medians = log.stat("raw_norm/median")[-1]
    ratio = medians[paths.index(kernels[0])] / medians[paths.index(kernels[-1])]
    found = gradient_health(run)
    assert found == read_json(exported.path / "export.json")["gradients"]
    assert found is not None
    assert found["recorded_steps"] == 8 * 9
    assert found["nonfinite_steps"] == found["skipped_steps"] == 0
    assert found["raw_norm_median"] == pytest.approx(np.median(raw[in_last]))
    assert found["first_to_last_ratio"] == pytest.approx(ratio)
    clipped = log.steps["clipped_norm"].astype(np.float64)
    assert found["clipped_fraction"] == pytest.approx(np.mean(clipped < raw))
    assert found["clipped_fraction"] > 0


def test_a_run_without_a_gradient_log_has_no_health(copied: RunDir) -> None:
    shutil.rmtree(copied.gradients)
    assert gradient_health(copied) is None


def test_a_second_export_is_version_2_and_leaves_the_first_as_it_is(
    exported: Export, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("v7", "1.5", "notes"):
        (run.saved_model / name).mkdir()
    (run.saved_model / "README").write_text("by hand")
    before = contents(run.saved_model)

    code = call("export", run.path, "--json", monkeypatch=monkeypatch)

    assert code == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["export"] == str(run.saved_model / "2")
    assert answer["version"] == 2
    after = contents(run.saved_model)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"2"}
    assert {key for key in answer if key != "export"} == set(
        read_json(run.saved_model / "2" / "export.json")
    )


def test_a_table_names_the_version_and_its_figures(
    copied: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root = tmp_path / "models" / "tiny"
    assert call("export", copied.path, "--output", root, monkeypatch=monkeypatch) == 0
    output = capsys.readouterr().out
    assert output.endswith(f"\n\n{root / '1'}\n")
    facts = read_json(root / "1" / "export.json")
    for name in SIGNATURES:
        for split, parity in facts["signatures"][name]["parity"].items():
            [row] = [line for line in output.splitlines() if line.split()[:2] == [name, split]]
            assert row.split()[2:] == [
                f"{parity['max_difference']:.1e}",
                "100.00%",
                f"{parity['accuracy']:.4f}",
            ]
    assert max(map(len, output.splitlines()[:-1])) <= 80
    assert not copied.saved_model.exists()
