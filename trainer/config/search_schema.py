"""The `search` section: what `trainer tune` varies, and how far it goes.

Only `tune` reads it. Its keys are dotted paths into the same file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from trainer.config.values import Float, Int, PositiveFloat, PositiveInt, Section

_KINDS = ("choice", "int", "float", "log_uniform", "boolean")


def _one_or_more(value: Any) -> Any:
    """Let a list of one be written without brackets."""
    return value if isinstance(value, list | tuple) else (value,)


Values = Annotated[tuple[Any, ...], BeforeValidator(_one_or_more)]


class Parameter(Section):
    """What a key is varied over: exactly one of choice, int, float, log_uniform and boolean."""

    choice: Annotated[tuple[Any, ...], Field(min_length=2)] | None = None
    """Values of any kind, lists and mappings too."""
    int: tuple[Int, Int] | None = None
    """Whole numbers from the first to the second, both included."""
    float: tuple[Float, Float] | None = None
    """Numbers between two, drawn uniformly."""
    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """Numbers between two, whose logarithm is drawn uniformly."""
    boolean: Literal[True] | None = None
    """`boolean: true` tries both false and true."""
    step: PositiveInt | None = None
    """Distance between two values of int; 1 if it is left out."""
    points: Annotated[Int, Field(ge=2)] | None = None
    """Try only so many values of float or log_uniform, evenly spaced, both ends included.
    Grid search needs it."""
    when: dict[str, Values] = {}
    """Vary the key only if each of these other parameters has one of the values given."""
    also: tuple[str, ...] = ()
    """Other keys that get the same value."""

    @model_validator(mode="after")
    def _one_kind(self) -> Parameter:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"must have exactly one of {', '.join(_KINDS)}. "
                f"Received: {', '.join(given) or 'none of them'}"
            )
        span = self.int or self.float or self.log_uniform
        if span is not None and not span[0] < span[1]:
            raise ValueError(f"{self.kind}: the first must be the smaller. Received: {list(span)}")
        if self.step is not None and self.int is None:
            raise ValueError(f"step belongs to int. Received: step={self.step} with {self.kind}")
        if self.points is not None and self.kind not in ("float", "log_uniform"):
            raise ValueError(
                f"points belongs to float and log_uniform. Received: points={self.points} "
                f"with {self.kind}"
            )
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was left out, or four of the five kinds would be null."""
        return {key: value for key, value in handler(self).items() if value}

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(name for name in _KINDS if getattr(self, name) is not None)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Every value of a choice, and the ends of a range: what is tried before any trial."""
        if self.boolean:
            return (False, True)
        return self.choice or self.int or self.float or self.log_uniform or ()


class SearchConfig(Section):
    """A search for the values of the config that train best."""

    algorithm: Literal["random", "grid", "bayesian", "hyperband"] = "random"
    """Of keras-tuner. Hyperband trains many points for few epochs and goes on with the best
    ones, up to fit.epochs."""
    objective: str = "val_accuracy"
    """A column of history.csv; its value after the last epoch is a trial's score, because
    that epoch's weights are the ones that a run keeps."""
    direction: Literal["auto", "max", "min"] = "auto"
    """Auto knows accuracies (max), losses and seconds (min)."""
    max_trials: PositiveInt | None = None
    """None: 20 for random and bayesian; grid and hyperband end by themselves."""
    max_epochs: PositiveInt | None = None
    """No trial begins after so many epochs of all trials together."""
    max_hours: PositiveFloat | None = None
    """Wall time of one start of the command; then running trials stop at the end of their
    epoch, and `--resume` goes on with them."""
    prune: Annotated[tuple[Literal["gradients", "median"], ...], BeforeValidator(_one_or_more)] = (
        "gradients",
    )
    """What stops a trial early. Gradients: the live diagnosis finds that its gradients are
    past help. Median: from half of its epochs on, its best objective trails the median of what
    the others had by then (Golovin et al. 2017). Where the learning rate falls late, the best
    point can trail until then: on a cosine the median is a gamble. Not under hyperband, which
    does its own."""
    factor: Annotated[Int, Field(ge=2)] = 3
    """Hyperband goes on with one of so many trials, for so many times the epochs."""
    space: Annotated[dict[str, Parameter], Field(min_length=1)]
    """A parameter for each dotted key."""

    @property
    def is_maximized(self) -> bool:
        """Whether a larger objective is better.

        Raises:
            ValueError: If `direction: auto` does not know this objective.
        """
        if self.direction != "auto":
            return self.direction == "max"
        if self.objective.endswith("accuracy") or self.objective == "images_per_second":
            return True
        if self.objective.endswith("loss") or self.objective == "seconds":
            return False
        raise ValueError(
            "direction must be max or min for an objective that is no accuracy, loss or time. "
            f"Received: objective={self.objective}, direction=auto"
        )

    @model_validator(mode="after")
    def _fits_the_algorithm(self) -> SearchConfig:
        assert isinstance(self.is_maximized, bool)
        for key, parameter in self.space.items():
            has_points = parameter.points or parameter.kind not in ("float", "log_uniform")
            if self.algorithm == "grid" and not has_points:
                raise ValueError(
                    f"grid needs points: how many values of {key} to try. "
                    f"Received: {parameter.kind} without points"
                )
        return self
