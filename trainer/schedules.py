"""Learning-rate schedules: functions from the optimizer's step to a learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from trainer.config.schema import (
    ConstantSchedule,
    CosineSchedule,
    Schedule,
    StepSchedule,
    TriangularSchedule,
)
from trainer.errors import ConfigError


@keras.saving.register_keras_serializable(package="trainer")
class PiecewiseLinear(keras.optimizers.schedules.LearningRateSchedule):
    """Straight lines between points, constant outside of them.

    Args:
        steps: Rising steps of the points.
        values: Learning rate at each of `steps`.
    """

    def __init__(self, steps: Sequence[float], values: Sequence[float]) -> None:
        if len(steps) != len(values) or list(steps) != sorted(steps):
            raise ValueError(
                "`steps` must rise and pair with `values`. "
                f"Received: steps={list(steps)}, values={list(values)}"
            )
        self.steps = [float(step) for step in steps]
        self.values = [float(value) for value in values]

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        result = ops.full_like(step, self.values[0])
        for i in range(1, len(self.steps)):
            length = self.steps[i] - self.steps[i - 1]
            share = ops.clip((step - self.steps[i - 1]) / max(length, 1e-9), 0.0, 1.0)
            result = result + share * (self.values[i] - self.values[i - 1])
        return result

    def get_config(self) -> dict[str, Any]:
        return {"steps": self.steps, "values": self.values}


@keras.saving.register_keras_serializable(package="trainer")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise over the first steps, then another schedule, counted from its own start.

    Step `s` of the rise has the share `(s + 1) / warmup_steps` of the peak, so that
    the first step already moves the weights.

    Args:
        peak: Learning rate at the end of the rise.
        warmup_steps: Length of the rise; at least 1.
        after: The schedule that follows, called with `step - warmup_steps`.
    """

    def __init__(
        self, peak: float, warmup_steps: int, after: keras.optimizers.schedules.LearningRateSchedule
    ) -> None:
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.after = after

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        rise = self.peak * (step + 1.0) / self.warmup_steps
        return ops.where(step < self.warmup_steps, rise, self.after(step - self.warmup_steps))

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "after": keras.saving.serialize_keras_object(self.after),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WarmUp:
        return cls(**{**config, "after": keras.saving.deserialize_keras_object(config["after"])})


def build_schedule(
    schedule: Schedule, peak: float, *, steps_per_epoch: int, total_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Return the schedule of a config.

    Args:
        schedule: The `schedule` section.
        peak: `optimizer.learning_rate`.
        steps_per_epoch: Optimizer steps in one epoch.
        total_steps: Optimizer steps of the whole run.

    Raises:
        ConfigError: If the warm-up is longer than the run.
    """
    if isinstance(schedule, TriangularSchedule):
        top = schedule.peak_at * total_steps
        return PiecewiseLinear(
            [0, top, total_steps],
            [peak * schedule.start_fraction, peak, peak * schedule.final_fraction],
        )
    warmup_steps = schedule.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if warmup_steps > total_steps:
        raise ConfigError(
            "schedule: the warm-up must not be longer than the run. Received: "
            f"{warmup_steps} warm-up steps, {total_steps} steps in all. "
            "Lower schedule.warmup_steps (or warmup_epochs) or raise fit.epochs"
        )
    after = _after_warmup(schedule, peak, steps_per_epoch, total_steps, warmup_steps)
    return WarmUp(peak, warmup_steps, after) if warmup_steps else after


def _after_warmup(
    schedule: ConstantSchedule | StepSchedule | CosineSchedule,
    peak: float,
    steps_per_epoch: int,
    total_steps: int,
    warmup_steps: int,
) -> keras.optimizers.schedules.LearningRateSchedule:
    match schedule:
        case ConstantSchedule():
            return PiecewiseLinear([0], [peak])
        case CosineSchedule():
            return keras.optimizers.schedules.CosineDecay(
                peak, max(total_steps - warmup_steps, 1), alpha=schedule.final_fraction
            )
        case StepSchedule():
            # Keras keeps the old value at the boundary itself, hence one step earlier.
            # Boundaries count from the start of the run, also behind a warm-up.
            boundaries = [
                round(epoch * steps_per_epoch) - warmup_steps - 1
                for epoch in schedule.boundary_epochs
            ]
            values = [peak * schedule.factor**i for i in range(len(boundaries) + 1)]
            return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, values)
