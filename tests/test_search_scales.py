"""Where a value lies on its own scale."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from trainer.config.search_schema import Parameter
from trainer.search.scales import number_ticks, position, spread, ticks


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ({"log_uniform": (1e-4, 1.0)}, 1e-2, 0.5),
        ({"log_uniform": (1e-4, 1.0)}, 1e-4, 0.0),
        ({"float": (0.0, 4.0)}, 1.0, 0.25),
        ({"int": (1, 5)}, 5, 1.0),
        ({"boolean": True}, False, 0.0),
        ({"choice": ("a", "b", "c")}, "b", 0.5),
        ({"choice": (None, 0.1, 1.0)}, None, 0.0),
        ({"choice": (1, True)}, True, 1.0),
        ({"choice": ([1, 2], {"kind": "x"})}, {"kind": "x"}, 1.0),
    ],
)
def test_a_value_lies_where_its_scale_says(
    parameter: dict[str, Any], value: Any, expected: float
) -> None:
    assert position(Parameter.model_validate(parameter), value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ({"float": (0.0, 1.0)}, None),
        ({"float": (0.0, 1.0)}, "x"),
        ({"log_uniform": (1e-4, 1.0)}, -1.0),
        ({"choice": ("a", "b")}, "z"),
    ],
)
def test_what_is_no_value_lies_nowhere(parameter: dict[str, Any], value: Any) -> None:
    assert position(Parameter.model_validate(parameter), value) is None


def test_a_logarithmic_axis_is_labelled_by_powers_of_ten() -> None:
    parameter = Parameter.model_validate({"log_uniform": (1e-4, 1.0)})

    assert ticks(parameter) == [
        (0.0, "0.0001"),
        (pytest.approx(0.25), "0.001"),
        (pytest.approx(0.5), "0.01"),
        (pytest.approx(0.75), "0.1"),
        (1.0, "1"),
    ]


def test_every_choice_is_labelled_in_few_letters() -> None:
    parameter = Parameter.model_validate({"choice": (None, "x" * 40, True)})

    assert [text for _, text in ticks(parameter)] == ["null", "x" * 15 + "...", "true"]


@pytest.mark.parametrize(
    ("low", "high", "is_log"),
    [
        (0.0, 0.95, False),
        (1, 2, False),
        (1, 1000, False),
        (-5.0, 5.0, False),
        (0.131, 0.922, False),
        (1e15, 1.1e15, False),
        (3e-5, 2e-4, True),
        (1e-9, 1e9, True),
    ],
)
def test_labels_include_both_ends_and_never_crowd(low: float, high: float, is_log: bool) -> None:
    marks = number_ticks(low, high, is_log)

    places = [at for at, _ in marks]
    assert places[0] == 0.0
    assert places[-1] == 1.0
    assert all(b - a > 0.1 for a, b in pairwise(places))
    assert 2 <= len(marks) <= 9


def test_whole_numbers_are_labelled_with_whole_numbers() -> None:
    assert [text for _, text in number_ticks(1, 4, is_log=False)] == ["1", "2", "3", "4"]


def test_trials_of_the_same_choice_lie_side_by_side_in_order() -> None:
    moved = spread([0.0, 1.0, 0.0, None, 0.0], [3, 1, 1, 9, 2])

    assert moved[2] < moved[4] < moved[0]  # type: ignore[operator]
    assert abs(moved[0]) < 0.05  # type: ignore[arg-type]
    assert (moved[1], moved[3]) == (1.0, None)
