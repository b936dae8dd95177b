from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bias_oracle import LOSES_DIGITS
from gradient_oracle import CLIPPING, LAYERS
from two_replicas import CASES

# The first test waits for all trainings of the other process.
pytestmark = pytest.mark.timeout(600)

# Sums over the batch are taken in another order. Measured after 8 steps: 7.5e-8 of weights
# around 1, of norms 2e-6. Without the reduction before clipping weights are 3e-2 and more apart.
ATOL = 5e-7
RTOL = 1e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """What two logical CPUs made of a list of trainings, in one process of their own."""
    path = tmp_path_factory.mktemp("replicas") / "results.pickle"
    script = Path(__file__).with_name("two_replicas.py")
    done = subprocess.run(
        [sys.executable, script, path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(script.parents[1])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(path.read_bytes())


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of any weight."""
    pairs = zip(one["weights"], other["weights"], strict=True)
    return max(float(np.max(np.abs(a.astype(np.float64) - b))) for a, b in pairs)


def assert_norms_agree(recorded: dict[str, Any], one: dict[str, Any]) -> None:
    for position, name in enumerate(("raw_norm", "clipped_norm", "update_norm", "weight_norm")):
        np.testing.assert_allclose(
            recorded[name], one["norms"][:, :, position], rtol=RTOL, atol=ATOL, err_msg=name
        )


@pytest.mark.parametrize(("optimizer", "clipping", "how"), CASES)
def test_two_replicas_train_like_one(
    optimizer: str, clipping: str, how: str, results: dict[Any, dict[str, Any]]
) -> None:
    two = results[optimizer, clipping, how]
    assert distance(two, results[optimizer, clipping, "one"]) < ATOL
    assert two["copies_agree"]


@pytest.mark.parametrize("clipping", [clipping for clipping in CLIPPING if clipping != "none"])
def test_stock_keras_clips_each_replicas_share_and_trains_otherwise(
    clipping: str, results: dict[Any, dict[str, Any]]
) -> None:
    # Shows that the test above can fail.
    stock = results["adam", clipping, "stock"]
    assert distance(stock, results["adam", clipping, "one"]) > 0.01


@pytest.mark.parametrize(
    ("optimizer", "clipping"), [case[:2] for case in CASES if case[2] == "recorded"]
)
def test_what_two_replicas_record_is_what_one_device_sees(
    optimizer: str, clipping: str, results: dict[Any, dict[str, Any]]
) -> None:
    recorded, one = (results[optimizer, clipping, how] for how in ("recorded", "one"))
    assert_norms_agree(recorded, one)
    np.testing.assert_allclose(recorded["steps"]["loss"], one["loss"], rtol=RTOL)
    assert recorded["header"].num_replicas == 2
    assert recorded["header"].clipping == CLIPPING[clipping]


def test_the_norm_of_replicas_is_that_of_their_own_images(
    results: dict[Any, dict[str, Any]],
) -> None:
    recorded = results["sgd", "none", "recorded"]["steps"]
    norms = np.array(results["halves"]["norms"])
    expected = np.sqrt(np.mean(norms**2))
    assert recorded["replica_norm"][0] == pytest.approx(expected, rel=RTOL)
    # Halves that are unlike have much of it as noise.
    assert expected > 1.2 * recorded["raw_norm"][0]


def test_a_network_with_synchronized_normalization_trains_like_on_one_device(
    results: dict[Any, dict[str, Any]],
) -> None:
    recorded, one = results["network", "recorded"], results["network", "one"]
    assert distance(recorded, one) < 5e-6
    np.testing.assert_allclose(recorded["steps"]["loss"], one["loss"], rtol=RTOL)
    # Windows of the four steps of one execution.
    assert len(recorded["raw_norm"]) == 2
    np.testing.assert_allclose(
        recorded["raw_norm"],
        np.median(one["norms"][:, :, 0].reshape(2, 4, -1), axis=1),
        rtol=1e-4,
        atol=1e-6,
    )


def test_activations_are_those_of_all_replicas_images_together(
    results: dict[Any, dict[str, Any]],
) -> None:
    # The halves of a batch, one a replica, are unlike.
    recorded, one = results["network", "recorded"], results["network", "one"]
    assert recorded["header"].activations == LAYERS
    steps = one["activations"].reshape(2, 4, len(LAYERS), -1)
    np.testing.assert_allclose(
        recorded["activations"], np.median(steps, axis=1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("clipping", CLIPPING)
def test_the_rows_of_an_embedding_are_summed_over_replicas_too(
    clipping: str, results: dict[Any, dict[str, Any]]
) -> None:
    recorded, one = (results["embedding", clipping, how] for how in ("recorded", "one"))
    assert distance(recorded, one) < ATOL
    np.testing.assert_allclose(recorded["raw_norm"], one["norms"][:, :, 0], rtol=RTOL, atol=ATOL)
    is_shorter = recorded["clipped_norm"][:, 0] < recorded["raw_norm"][:, 0]
    assert is_shorter.any() == (clipping != "none")


def test_a_train_step_of_ones_own_with_an_unused_variable_works_on_two_replicas(
    results: dict[Any, dict[str, Any]],
) -> None:
    recorded = results["own step", "recorded"]
    assert distance(recorded, results["own step", "one"]) < ATOL
    np.testing.assert_array_equal(recorded["steps"]["step"], [0, 3, 6])
    variables = recorded["header"].variables
    assert [v.path.split("/")[-1] for v in variables if not v.connected] == ["unused"]
    assert np.isnan(recorded["steps"]["loss"]).all()


def test_sums_in_bfloat16_are_found_on_two_replicas_too(
    results: dict[Any, dict[str, Any]],
) -> None:
    variables = results["bfloat16", "recorded"]["header"].variables
    found = [variable.summands_in_bfloat16 for variable in variables]
    assert found == [0, 64 if LOSES_DIGITS else 0, 0, 0]


@pytest.mark.parametrize("how", ["recorded", "hook"])
def test_an_infinity_on_replica_1_alone_skips_the_step_on_both(
    how: str, results: dict[Any, dict[str, Any]]
) -> None:
    two, one = results["overflow", how], results["overflow", "one"]
    assert two["copies_agree"]
    assert one["skipped"].tolist() == [False, False, True] + 5 * [False]
    # Halves of a batch round to float16 by themselves.
    assert distance(two, one) < 0.005
    if how == "recorded":
        np.testing.assert_array_equal(two["steps"]["skipped"], one["skipped"])
        assert not np.isfinite(two["steps"]["raw_norm"][2])
        np.testing.assert_array_equal(two["update_norm"][2], 0)


def test_stock_keras_lets_that_infinity_destroy_the_weights(
    results: dict[Any, dict[str, Any]],
) -> None:
    weights = results["overflow", "stock"]["weights"]
    assert not all(np.isfinite(weight).all() for weight in weights)
