"""What each run came to, and which group is better by more than its seeds differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from trainer.compare.groups import Group, differences
from trainer.gradient_log import first_to_last_ratio
from trainer.report.reading import RunFiles

# Quantiles of Student's t that leave 2.5 % on either side, by degrees of freedom.
_STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}
_VALIDATION_DATA = ("data.source", "data.path", "data.train_size", "data.validation_split")
_HARDWARE = ("cpu", "cores", "gpus", "num_replicas")


@dataclass(frozen=True)
class Quantity:
    """A column of the table of results.

    Attributes:
        key: Of it in what programs read.
        title: Above it.
        of: The figure of a run, NaN if it has none.
        better: Which end is, None if neither.
        text: The figure for people.
        data_keys: Parts of the config that must be equal, or figures are of different things.
        is_of_hardware: Whether it depends on the machine.
        is_of_epochs: Whether it grows with the epochs.
    """

    key: str
    title: str
    of: Callable[[RunFiles], float]
    better: Literal["more", "less"] | None
    text: Callable[[float], str]
    data_keys: tuple[str, ...] = ()
    is_of_hardware: bool = False
    is_of_epochs: bool = False


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval.

    Attributes:
        mean: Of the seeds; their median where neither more nor less is better.
        half_width: Of the interval of the mean, NaN with one seed.
        num_seeds: That were finished and have the figure.
    """

    mean: float
    half_width: float
    num_seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Return that of one value a seed, at least one (Student 1908)."""
        mean = statistics.fmean(values)
        if len(values) == 1:
            return cls(mean, math.nan, 1)
        error = statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, _STUDENT_T[len(values) - 1] * error, len(values))

    @property
    def low(self) -> float:
        """Its lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.mean + self.half_width


@dataclass(frozen=True)
class Decision:
    """Whether a group is better by a quantity.

    Attributes:
        quantity: Which one.
        intervals: Of each group's finished runs, None without one.
        better: Index of the group that is better than all others, or None.
        reason: Why none is; empty if one is.
    """

    quantity: Quantity
    intervals: tuple[Interval | None, ...]
    better: int | None
    reason: str


def _last(name: str) -> Callable[[RunFiles], float]:
    def of(run: RunFiles) -> float:
        return run.history[-1].get(name, math.nan) if run.history else math.nan

    return of


def _test_accuracy(run: RunFiles) -> float:
    value = run.evaluation.get("accuracy")
    return float(value) if isinstance(value, int | float) else math.nan


def _seconds(run: RunFiles) -> float:
    found = [each for each in run.column("seconds") if each == each]
    return sum(found) if found else math.nan


def _images_per_second(run: RunFiles) -> float:
    found = [each for each in run.column("images_per_second") if each == each]
    return statistics.median(found) if found else math.nan


def _memory_mib(run: RunFiles) -> float:
    return max((each for each in run.column("memory_mib") if each == each), default=math.nan)


def first_over_last(run: RunFiles) -> float:
    """Return the raw gradient norm of the first kernel over the last one's, in the last window."""
    if run.log is None:
        return math.nan
    return first_to_last_ratio(run.log.stat("raw_norm/median")[-1:], run.log.kernels)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}\u00a0%"


TEST, VALIDATION, TRAINING, SECONDS, IMAGES_PER_SECOND, MEMORY, FIRST_OVER_LAST = QUANTITIES = (
    Quantity(
        "test_accuracy",
        "test accuracy",
        _test_accuracy,
        "more",
        _percent,
        ("data.source", "data.path", "data.test_size", "data.image_size"),
    ),
    Quantity(
        "val_accuracy",
        "validation accuracy",
        _last("val_accuracy"),
        "more",
        _percent,
        _VALIDATION_DATA,
    ),
    Quantity(
        "accuracy",
        "training accuracy",
        _last("accuracy"),
        "more",
        _percent,
        (*_VALIDATION_DATA, "data.label_noise", "data.augment", "data.early_crops"),
    ),
    Quantity(
        "seconds",
        "seconds",
        _seconds,
        "less",
        lambda value: f"{value:,.1f}",
        _VALIDATION_DATA,
        is_of_hardware=True,
        is_of_epochs=True,
    ),
    Quantity(
        "images_per_second",
        "images/s",
        _images_per_second,
        "more",
        lambda value: f"{value:,.0f}",
        is_of_hardware=True,
    ),
    Quantity(
        "memory_mib",
        "MiB",
        _memory_mib,
        "less",
        lambda value: f"{value:,.0f}",
        is_of_hardware=True,
    ),
    Quantity(
        "first_over_last", "first over last", first_over_last, None, lambda value: f"{value:.2g}"
    ),
)
"""Accuracies are those of the last epoch, but for the test; seconds are those in epochs;
images a second are the median of the epochs; MiB are the largest resident set of the
process; first over last is the raw gradient norm of the
first kernel over that of the last one, in the last window."""
ACCURACIES = (TEST, VALIDATION, TRAINING)


@dataclass(frozen=True)
class Results:
    """The figures of some groups of runs.

    Attributes:
        groups: Of `grouped`.
    """

    groups: Sequence[Group]

    @cached_property
    def differences(self) -> dict[str, list[Any]]:
        """The keys in which the groups with a config differ, see `differences`."""
        return differences(self.groups)

    @cached_property
    def quantities(self) -> tuple[Quantity, ...]:
        """Those of `QUANTITIES` that any run has."""
        runs = [run for group in self.groups for run in group.runs]
        return tuple(
            each for each in QUANTITIES if any(each.of(run) == each.of(run) for run in runs)
        )

    @cached_property
    def decisions(self) -> Mapping[str, Decision]:
        """Which group is better, by the quantity's key."""
        return {each.key: self._decide(each) for each in self.quantities}

    def _decide(self, quantity: Quantity) -> Decision:
        intervals = tuple(_interval(group, quantity) for group in self.groups)
        reason = self._why_not(quantity, intervals)
        known = [each for each in intervals if each is not None]
        if reason:
            return Decision(quantity, intervals, None, reason)
        sign = 1 if quantity.better == "more" else -1
        best = max(range(len(known)), key=lambda index: sign * known[index].mean)
        others = [each for index, each in enumerate(known) if index != best]
        is_apart = all(
            known[best].low > each.high if sign > 0 else known[best].high < each.low
            for each in others
        )
        if is_apart:
            return Decision(quantity, intervals, best, "")
        return Decision(quantity, intervals, None, "the seeds' intervals overlap")

    def _why_not(self, quantity: Quantity, intervals: Sequence[Interval | None]) -> str:
        if quantity.better is None:
            return "neither more nor less of it is better"
        if len(self.groups) == 1:
            return "all runs are one config"
        without = [
            group.label for group, i in zip(self.groups, intervals, strict=True) if i is None
        ]
        if without:
            return f"no finished run of {' or '.join(without)} has it"
        if reason := self.why_incomparable(quantity):
            return reason
        single = [g.label for g, i in zip(self.groups, intervals, strict=True) if _is_single(i)]
        if len(single) == len(self.groups):
            return "one seed each cannot tell"
        if single:
            return f"one seed cannot tell ({', '.join(single)})"
        return ""

    def why_incomparable(self, quantity: Quantity) -> str:
        """Return why the figures are of different things, empty if they are of the same."""
        if quantity in ACCURACIES and self.num_class_lists > 1:
            return "the classes differ"
        for key in self.differences:
            if key.startswith(quantity.data_keys) and quantity.data_keys:
                return f"the data differ ({key})"
        runs = [run for group in self.groups for run in group.runs]
        if quantity.is_of_hardware:
            for name in _HARDWARE:
                if len({str(run.environment.get(name)) for run in runs}) > 1:
                    return f"the machines differ ({name})"
        if quantity.is_of_epochs and len({len(run.history) for run in runs if run.history}) > 1:
            return "the epochs differ"
        return ""

    @property
    def num_class_lists(self) -> int:
        """Different lists of classes among the runs."""
        runs = [run for group in self.groups for run in group.runs]
        return len({str(data["class_names"]) for data in _data(runs) if "class_names" in data})

    def accuracy(self) -> Quantity | None:
        """Return the best founded accuracy that every group has, or None."""
        for quantity in ACCURACIES:
            if all(
                group_mean(group, quantity) == group_mean(group, quantity) for group in self.groups
            ):
                return quantity
        return None


def _data(runs: Iterable[RunFiles]) -> list[dict[str, Any]]:
    return [run.evidence.data for run in runs if run.evidence.data is not None]


def _is_single(interval: Interval | None) -> bool:
    return interval is not None and interval.num_seeds < 2


def _interval(group: Group, quantity: Quantity) -> Interval | None:
    # What is repeated with one seed tells nothing new of the seeds.
    by_seed: dict[int | None, list[float]] = {}
    for run, seed in zip(group.runs, group.seeds, strict=True):
        value = quantity.of(run)
        if run.state == "done" and math.isfinite(value):
            by_seed.setdefault(seed, []).append(value)
    if not by_seed:
        return None
    means = [statistics.fmean(values) for values in by_seed.values()]
    if quantity.better is None:
        # Powers of ten apart, as often as not: a mean would be that of the largest.
        return Interval(statistics.median(means), math.nan, len(means))
    return Interval.of(means)


def group_mean(group: Group, quantity: Quantity) -> float:
    """Return the mean over a group's finished runs, over all if none is; NaN without a figure."""
    interval = _interval(group, quantity)
    if interval is not None:
        return interval.mean
    found = [value for value in map(quantity.of, group.runs) if math.isfinite(value)]
    return statistics.fmean(found) if found else math.nan
