from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from recorded_models import (
    BATCH_SIZE,
    UnbuiltModel,
    build_dense,
    compiled,
    fit,
    make_data,
)

from trainer import GradientRecorder
from trainer.errors import NonFiniteError


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


def poisoned_data(first_bad_step: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_data()
    x[first_bad_step * BATCH_SIZE] = np.nan
    return x, y


@pytest.mark.parametrize("window_steps", [1, 4, 50])
def test_stop_names_the_first_bad_step_and_leaves_a_clean_model(
    window_steps: int, tmp_path: Path
) -> None:
    model = compiled(build_dense())
    recorder = GradientRecorder(tmp_path, window_steps=window_steps, on_error="stop")
    with pytest.raises(NonFiniteError, match=r"^step 5: the loss is nan and the gradient of "):
        fit(model, recorder, data=poisoned_data(5))
    assert "apply" not in vars(model.optimizer)
    assert model.train_function is None
    log = recorder.log()
    np.testing.assert_array_equal(np.isnan(log.steps["loss"]), log.steps["step"] >= 5)
    assert 5 in log.steps["step"]


def test_warn_says_so_once(tmp_path: Path) -> None:
    messages: list[str] = []
    recorder = GradientRecorder(tmp_path, window_steps=1, warn=messages.append)
    fit(compiled(build_dense()), recorder, data=poisoned_data(2), epochs=2)
    assert len(messages) == 1
    assert messages[0].startswith("warning: step 2: the loss is nan and the gradient of ")


def test_steps_skipped_by_loss_scaling_are_in_order(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = UnbuiltModel()
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=2.0**18
    )
    recorder = GradientRecorder(tmp_path, window_steps=2, on_error="stop")
    fit(compiled(model, optimizer=optimizer), recorder)
    steps = recorder.log().steps
    assert steps["skipped"][0] == 1 and steps["skipped"][-1] == 0
    assert not np.isfinite(steps["raw_norm"][0])
    np.testing.assert_array_equal(steps["update_norm"][steps["skipped"] == 1], 0)
