"""Learning rates step by step, against tables written by hand."""

from __future__ import annotations

from math import cos, pi
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.config.schema import (
    ConstantSchedule,
    CosineSchedule,
    Schedule,
    StepSchedule,
    TriangularSchedule,
)
from trainer.errors import ConfigError
from trainer.schedules import PiecewiseLinear, WarmUp, build_schedule


def built(
    schedule: Schedule, steps_per_epoch: int = 4, total_steps: int = 12
) -> keras.optimizers.schedules.LearningRateSchedule:
    return build_schedule(schedule, 0.8, steps_per_epoch=steps_per_epoch, total_steps=total_steps)


def rates(schedule: keras.optimizers.schedules.LearningRateSchedule, num: int) -> list[float]:
    """The values of the first steps, counted as the optimizer counts them."""
    steps = tf.range(num, dtype=tf.int64)
    return [float(schedule(step)) for step in steps]


def half_cosine(share: float, final_fraction: float = 0.0) -> float:
    return 0.8 * (final_fraction + (1 - final_fraction) * (1 + cos(pi * share)) / 2)


# Three epochs of four steps, the peak 0.8; the optimizer makes steps 0 to 11.
TABLES: dict[str, tuple[Schedule, list[float]]] = {
    "constant": (ConstantSchedule(), [0.8] * 12),
    "constant after an epoch of warm-up": (
        ConstantSchedule(warmup_epochs=1),
        [0.2, 0.4, 0.6, 0.8, *[0.8] * 8],
    ),
    "constant after two steps of warm-up": (
        ConstantSchedule(warmup_steps=2),
        [0.4, 0.8, *[0.8] * 10],
    ),
    "constant after half an epoch of warm-up": (
        ConstantSchedule(warmup_epochs=0.5),
        [0.4, 0.8, *[0.8] * 10],
    ),
    "constant after a warm-up as long as the run": (
        ConstantSchedule(warmup_epochs=3),
        [0.8 * (step + 1) / 12 for step in range(12)],
    ),
    "step": (StepSchedule(boundary_epochs=(1, 2.5), factor=0.5), [0.8] * 4 + [0.4] * 6 + [0.2] * 2),
    # The boundary is after one epoch of the run, not of the time behind the warm-up.
    "step after an epoch of warm-up": (
        StepSchedule(boundary_epochs=(2,), factor=0.25, warmup_epochs=1),
        [0.2, 0.4, 0.6, 0.8] + [0.8] * 4 + [0.2] * 4,
    ),
    "step after two steps of warm-up": (
        StepSchedule(boundary_epochs=(1, 2), factor=0.5, warmup_steps=2),
        [0.4, 0.8] + [0.8] * 2 + [0.4] * 4 + [0.2] * 4,
    ),
    "step with a boundary at the end of the warm-up": (
        StepSchedule(boundary_epochs=(1,), factor=0.5, warmup_epochs=1),
        [0.2, 0.4, 0.6, 0.8] + [0.4] * 8,
    ),
    "cosine": (CosineSchedule(), [half_cosine(step / 12) for step in range(12)]),
    "cosine to a tenth": (
        CosineSchedule(final_fraction=0.1),
        [half_cosine(step / 12, 0.1) for step in range(12)],
    ),
    "cosine after an epoch of warm-up": (
        CosineSchedule(warmup_epochs=1),
        [0.2, 0.4, 0.6, 0.8] + [half_cosine(step / 8) for step in range(8)],
    ),
    "cosine after two steps of warm-up": (
        CosineSchedule(warmup_steps=2),
        [0.4, 0.8] + [half_cosine(step / 10) for step in range(10)],
    ),
    "triangular": (
        # Up from 0.16 by 0.64 / 3 a step to step 3, down by 0.8 / 9 a step to step 12.
        TriangularSchedule(),
        [0.16, 0.16 + 0.64 / 3, 0.16 + 1.28 / 3] + [0.8 - 0.8 / 9 * step for step in range(9)],
    ),
    "triangular between fractions": (
        TriangularSchedule(start_fraction=0.5, peak_at=0.5, final_fraction=0.25),
        [0.4 + 0.4 / 6 * step for step in range(6)] + [0.8 - 0.1 * step for step in range(6)],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_step_has_the_learning_rate_of_the_table(name: str) -> None:
    schedule, expected = TABLES[name]
    assert rates(built(schedule), 12) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", TABLES)
def test_the_first_step_moves_the_weights_and_none_exceeds_the_peak(name: str) -> None:
    values = rates(built(TABLES[name][0]), 12)
    assert values[0] > 0
    assert 0 <= min(values) <= max(values) <= 0.8 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("schedule", "final"),
    [
        (ConstantSchedule(warmup_steps=2), 0.8),
        (StepSchedule(boundary_epochs=(1,)), 0.08),
        (CosineSchedule(final_fraction=0.25, warmup_steps=2), 0.2),
        (TriangularSchedule(final_fraction=0.5), 0.4),
    ],
)
def test_behind_the_end_of_the_run_the_last_value_holds(schedule: Schedule, final: float) -> None:
    assert [float(built(schedule)(step)) for step in (12, 100)] == pytest.approx([final] * 2)


@pytest.mark.parametrize("warmup", [{"warmup_steps": 13}, {"warmup_epochs": 3.25}])
@pytest.mark.parametrize(
    "kind", [ConstantSchedule, CosineSchedule, lambda **w: StepSchedule(boundary_epochs=(1,), **w)]
)
def test_a_warm_up_longer_than_the_run_is_a_config_error(kind: Any, warmup: dict) -> None:
    with pytest.raises(ConfigError, match=r"13 warm-up steps, 12 steps in all\. Lower"):
        built(kind(**warmup))


@pytest.mark.parametrize("name", TABLES)
def test_a_schedule_comes_back_from_its_config(name: str) -> None:
    schedule = built(TABLES[name][0])
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    assert rates(again, 14) == rates(schedule, 14)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_compiled_function_gets_the_same_values(jit_compile: bool) -> None:
    for schedule, _ in TABLES.values():
        schedule = built(schedule)
        compiled = tf.function(
            schedule, input_signature=[tf.TensorSpec([], tf.int64)], jit_compile=jit_compile
        )
        assert rates(compiled, 3) == pytest.approx(rates(schedule, 3), rel=1e-6)


def test_an_optimizer_reads_the_schedule_at_its_own_step() -> None:
    optimizer = keras.optimizers.SGD(built(ConstantSchedule(warmup_epochs=1)))
    weight = keras.Variable(np.zeros(1, "float32"))
    moves, before = [], 0.0
    for _ in range(6):
        optimizer.apply([np.full(1, -1, "float32")], [weight])
        after = float(weight.numpy()[0])
        moves.append(after - before)
        before = after
    assert moves == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rel=1e-5)


def test_a_run_of_a_million_steps_keeps_single_steps_apart() -> None:
    schedule = built(CosineSchedule(warmup_steps=1_000_000), 1000, 2_000_000)
    first, second = (float(schedule(tf.constant(step, tf.int64))) for step in (499_998, 499_999))
    assert second - first == pytest.approx(0.8e-6, rel=0.1)


def test_points_are_joined_by_straight_lines() -> None:
    schedule = PiecewiseLinear([2, 4, 8], [1.0, 3.0, -1.0])
    assert rates(schedule, 10) == pytest.approx([1, 1, 1, 2, 3, 2, 1, 0, -1, -1])


@pytest.mark.parametrize(("steps", "values"), [([0, 1], [1.0]), ([1, 0], [1.0, 2.0])])
def test_points_that_do_not_rise_or_pair_are_refused(
    steps: list[float], values: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"must rise and pair.*Received: steps=\["):
        PiecewiseLinear(steps, values)


def test_a_warm_up_ends_one_step_before_what_follows() -> None:
    after = PiecewiseLinear([0, 10], [5.0, 15.0])
    assert rates(WarmUp(8.0, 2, after), 5) == pytest.approx([4, 8, 5, 6, 7])
