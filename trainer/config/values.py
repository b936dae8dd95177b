"""The value types that the schema is built from.

Integers and booleans are strict (`yes`, `1.0` and `"1"` are no integers);
floats accept integers. Every model is frozen and forbids unknown keys.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt


class Section(BaseModel):
    """One mapping of the YAML file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # Validators of the sections alone are not used; building them takes a third of the import.
        defer_build=True,
    )


Bool: TypeAlias = StrictBool
Int: TypeAlias = StrictInt
PositiveInt: TypeAlias = Annotated[StrictInt, Field(gt=0)]
NonNegativeInt: TypeAlias = Annotated[StrictInt, Field(ge=0)]
Float: TypeAlias = StrictFloat
"""Strict in pydantic's sense: integers are numbers; strings and booleans are not."""
PositiveFloat: TypeAlias = Annotated[Float, Field(gt=0)]
NonNegativeFloat: TypeAlias = Annotated[Float, Field(ge=0)]
Fraction: TypeAlias = Annotated[Float, Field(ge=0, lt=1)]
"""At least 0 and less than 1: a rate of dropping, a share that is set aside."""
Share: TypeAlias = Annotated[Float, Field(ge=0, le=1)]
"""At least 0 and at most 1."""


def name_or_options(value: Any) -> Any:
    """Let a tagged union be written `name`, `{name: {option: x}}` or `{kind: name, option: x}`.

    The middle form is the handiest one in a list, as in
    `augment: [horizontal_flip, {random_shift: {pixels: 4}}]`.
    """
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, dict) and "kind" not in value and len(value) == 1:
        ((kind, options),) = value.items()
        if options is None:
            return {"kind": kind}
        if isinstance(options, dict):
            return {"kind": kind, **options}
    return value
