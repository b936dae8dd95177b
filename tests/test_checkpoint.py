"""What lies in the folder of checkpoints."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from trainer.checkpoint import list_checkpoints, restore_latest, save_checkpoint


def model() -> keras.Model:
    inputs = keras.Input((3,))
    built = keras.Model(inputs, keras.layers.Dense(2, name="head")(inputs))
    built.compile("adam", "mse")
    built.optimizer.build(built.trainable_variables)
    return built


def test_the_two_newest_are_kept_and_the_one_that_was_asked_for(tmp_path: Path) -> None:
    trained = model()
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, trained, step, keep_step=10)

    assert [each.step for each in list_checkpoints(tmp_path)] == [10, 30, 40]


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes_with_the_next_one(
    tmp_path: Path,
) -> None:
    trained = model()
    save_checkpoint(tmp_path, trained, 10)
    torn = tmp_path / ".a1b2c3-step-000000020.npz"
    torn.write_bytes(b"PK")

    restored = model()
    checkpoint, damaged = restore_latest(tmp_path, restored)
    assert (checkpoint.step, damaged) == (10, [])
    for ours, theirs in zip(restored.weights, trained.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())

    save_checkpoint(tmp_path, trained, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000010.npz",
        "step-000000020.npz",
    ]
