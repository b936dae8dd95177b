from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from recorded_models import (
    BATCH_SIZE,
    NUM_IMAGES,
    UnbuiltModel,
    assert_same,
    build_dense,
    build_functional,
    compiled,
    fit,
    make_data,
    numbers,
)

from trainer import GradientRecorder
from trainer.window_buffer import WindowBuffer


@pytest.fixture(autouse=True)
def _seed() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many steps each read of the window buffer takes."""
    taken: list[int] = []
    read = WindowBuffer.read

    def spy(self: WindowBuffer) -> Any:
        window = read(self)
        taken.append(len(window))
        return window

    monkeypatch.setattr(WindowBuffer, "read", spy)
    return taken


def test_no_callback_at_the_end_of_a_batch() -> None:
    # With one, Keras waits for the device at every step.
    for name in ("on_train_batch_end", "on_batch_end"):
        assert getattr(GradientRecorder, name) is getattr(keras.callbacks.Callback, name)


def test_the_host_reads_once_a_window(reads: list[int], tmp_path: Path) -> None:
    fit(compiled(build_dense()), GradientRecorder(tmp_path, window_steps=4), epochs=3)
    # Two windows an epoch; the last read of all finds nothing left.
    assert reads == [4, 4, 4, 4, 4, 4, 0]


def test_a_window_never_spans_two_epochs(reads: list[int], tmp_path: Path) -> None:
    fit(compiled(build_dense()), GradientRecorder(tmp_path, window_steps=5), epochs=2)
    assert reads == [5, 3, 5, 3, 0]


def test_the_step_is_traced_as_often_as_without_the_recorder(tmp_path: Path) -> None:
    traces: list[int] = []

    class Traced(UnbuiltModel):
        def train_step(self, data: Any) -> Any:
            traces.append(1)
            return super().train_step(data)

    def count_traces(*recorders: keras.callbacks.Callback) -> list[int]:
        traces.clear()
        counts: list[int] = []
        counter = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs: counts.append(len(traces))
        )
        fit(compiled(Traced()), counter, *recorders, epochs=3)
        return counts

    recorded = count_traces(GradientRecorder(tmp_path, window_steps=3, every_steps=2))
    assert recorded == count_traces()
    assert set(recorded[1:]) == {recorded[1]}


# Each pair of values occurs together.
@pytest.mark.parametrize(
    ("execution_steps", "every_steps", "window_steps"),
    [(1, 1, 4), (1, 3, 5), (1, 5, 50), (4, 1, 5), (4, 3, 50), (4, 5, 4), (4, 3, 4), (1, 1, 50),
     (4, 5, 5)],
)  # fmt: skip
def test_every_nth_step_is_recorded_and_no_window_is_overrun(
    execution_steps: int, every_steps: int, window_steps: int, reads: list[int], tmp_path: Path
) -> None:
    model = compiled(build_dense(), steps_per_execution=execution_steps)
    recorder = GradientRecorder(tmp_path, window_steps=window_steps, every_steps=every_steps)
    # 6 steps of 5 images and one of 2: 7 steps an epoch, divisible by nothing above.
    fit(model, recorder, batch_size=5, epochs=3, validation_data=make_data())
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(0, 21, every_steps))
    assert max(reads) <= window_steps


def test_skipped_turns_leave_the_weights_alone_too(tmp_path: Path) -> None:
    results = []
    for record in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(build_functional(), optimizer=keras.optimizers.Adam(0.01))
        recorder = GradientRecorder(tmp_path, every_steps=3)
        fit(model, *([recorder] if record else []))
        results.append(numbers(model))
    assert_same(results[1], results[0])


def test_a_window_shorter_than_an_execution_is_refused(tmp_path: Path) -> None:
    model = compiled(build_dense(), steps_per_execution=4)
    with pytest.raises(ValueError, match=r"must hold one execution\. Received: window_steps=3"):
        fit(model, GradientRecorder(tmp_path, window_steps=3))
    fit(model, GradientRecorder(tmp_path, window_steps=2, every_steps=2))


@pytest.mark.parametrize("every", [1, 3])
def test_moments_are_recorded_at_every_nth_recorded_step(every: int, tmp_path: Path) -> None:
    recorder = GradientRecorder(tmp_path, window_steps=1, moments_every_steps=every)
    fit(compiled(build_dense()), recorder)
    is_full = np.isfinite(recorder.log().stat("raw_mean")[:, 0])
    np.testing.assert_array_equal(is_full, [step % every == 0 for step in range(8)])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("every_steps", [1, 3])
def test_a_dataset_of_unknown_length_is_recorded_to_its_end_and_no_further(
    every_steps: int, tmp_path: Path
) -> None:
    x, y = make_data()

    def batches() -> Any:
        for start in range(0, NUM_IMAGES, BATCH_SIZE):
            yield x[start : start + BATCH_SIZE], y[start : start + BATCH_SIZE]

    recorder = GradientRecorder(tmp_path, window_steps=3, every_steps=every_steps)
    # Keras finds the end by running into it.
    compiled(build_dense()).fit(batches(), shuffle=False, verbose=0, callbacks=[recorder])
    np.testing.assert_array_equal(recorder.log().steps["step"], np.arange(0, 8, every_steps))


def test_the_log_does_not_grow_with_parameters(tmp_path: Path) -> None:
    sizes = []
    for width in (2, 64):
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(width),
                                  keras.layers.Dense(1)])  # fmt: skip
        fit(compiled(model), GradientRecorder(tmp_path / str(width)))
        sizes.append((tmp_path / str(width) / "windows.bin").stat().st_size)
    assert sizes[0] == sizes[1]


def test_the_health_figure_reaches_history(tmp_path: Path) -> None:
    recorder = GradientRecorder(tmp_path)
    history = fit(compiled(build_dense()), recorder, epochs=2)
    norms = recorder.log().stat("raw_norm/median")[-1]
    expected = norms[0] / norms[2]
    assert history.history["first_to_last_grad"][-1] == pytest.approx(expected, rel=1e-6)
    assert recorder.health == history.history["first_to_last_grad"][-1]


@pytest.mark.parametrize("kind", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_a_bound_that_is_never_reached_clips_nothing(kind: str, tmp_path: Path) -> None:
    # Sixteen variables and more: a division of so many numbers at a time rounds.
    layers = [keras.layers.Dense(5, activation="tanh") for _ in range(12)]
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(1)])
    recorder = GradientRecorder(tmp_path, window_steps=8)
    x, y = make_data()
    fit(
        compiled(model, optimizer=keras.optimizers.SGD(0.01, **{kind: 1.0})),
        recorder,
        data=(x, y * 0.01),
    )

    log = recorder.log()
    assert log.steps["raw_norm"].max() < 1
    for part in ("min", "median", "max"):
        np.testing.assert_array_equal(
            log.stat(f"clipped_norm/{part}"), log.stat(f"raw_norm/{part}")
        )
    assert not log.stat("clipped_fraction").any()
