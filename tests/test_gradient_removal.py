from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from recorded_models import (
    Breaker,
    UnbuiltModel,
    assert_same,
    build_dense,
    compiled,
    fit,
    numbers,
)

from trainer import GradientRecorder
from trainer.gradient_hook import StepHook


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


def test_the_model_is_as_before_after_fit(tmp_path: Path) -> None:
    model = compiled(build_dense(), optimizer=keras.optimizers.Adam())
    fit(model)
    attributes = set(vars(model.optimizer))
    paths = [v.path for v in (*model.variables, *model.optimizer.variables)]
    fit(model, GradientRecorder(tmp_path))
    assert set(vars(model.optimizer)) == attributes
    assert [v.path for v in (*model.variables, *model.optimizer.variables)] == paths
    assert not isinstance(getattr(model.optimizer.apply, "__self__", None), StepHook)


def test_a_fit_after_the_recorded_one_records_nothing(tmp_path: Path) -> None:
    model = compiled(build_dense())
    recorder = GradientRecorder(tmp_path)
    fit(model, recorder)
    size = (tmp_path / "windows.bin").stat().st_size
    fit(model)
    assert (tmp_path / "windows.bin").stat().st_size == size


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_two_fits_in_a_row_train_as_without_the_recorder(precision: str, tmp_path: Path) -> None:
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(precision)
        try:
            model = compiled(UnbuiltModel(), optimizer=keras.optimizers.Adam(0.01))
        finally:
            keras.config.set_dtype_policy("float32")
        recorder = GradientRecorder(tmp_path)
        for _ in range(2):
            fit(model, *([recorder] if record else []))
        results.append(numbers(model))
    assert_same(results[1], results[0])
    # The second log has replaced the first.
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(8))


def test_a_resumed_training_continues_the_log(tmp_path: Path) -> None:
    model = compiled(build_dense())
    fit(model, GradientRecorder(tmp_path))
    recorder = GradientRecorder(tmp_path, first_step=8)
    fit(model, recorder)
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(16))


class Saver(keras.callbacks.Callback):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 4:
            self.model.save(self.path)


def test_a_file_saved_during_fit_holds_nothing_of_the_recorder(tmp_path: Path) -> None:
    paths = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(build_dense(), optimizer=keras.optimizers.Adam())
        path = tmp_path / f"{record}.keras"
        recorder = GradientRecorder(tmp_path / "log", window_steps=4)
        fit(model, Saver(path), *([recorder] if record else []))
        paths.append(path)
        loaded = keras.saving.load_model(path)
        assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    members = []
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            members.append(sorted(archive.namelist()))
            config = archive.read("config.json")
            assert b"recorder" not in config.lower() and b"hook" not in config.lower()
    assert members[0] == members[1]
    assert_same(*[numbers(keras.saving.load_model(path)) for path in paths])


def test_the_callback_can_be_copied_before_fit(tmp_path: Path) -> None:
    recorder = GradientRecorder(tmp_path, window_steps=4)
    for twin in (copy.deepcopy(recorder), copy.copy(recorder)):
        fit(compiled(build_dense()), twin)
        assert len(twin.log().steps) == 8


@pytest.mark.parametrize("same_recorder", [True, False])
def test_a_fit_that_raised_does_not_disturb_the_next(same_recorder: bool, tmp_path: Path) -> None:
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(build_dense(), optimizer=keras.optimizers.Adam(0.01))
        recorder = GradientRecorder(tmp_path, window_steps=2)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            fit(model, Breaker(), *([recorder] if record else []))
        fit(model)
        if not same_recorder:
            recorder = GradientRecorder(tmp_path, window_steps=2)
        fit(model, *([recorder] if record else []))
        results.append(numbers(model))
    assert_same(results[1], results[0])
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(8))
    assert not isinstance(getattr(model.optimizer.apply, "__self__", None), StepHook)


def test_close_after_a_fit_that_raised_keeps_what_was_recorded(tmp_path: Path) -> None:
    model = compiled(build_dense())
    recorder = GradientRecorder(tmp_path)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(model, Breaker(), recorder)
    recorder.close()
    recorder.close()
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(5))
    assert "apply" not in vars(model.optimizer)
