"""The JSON schema of a config file, for completion and hints in editors.

It is somewhat wider than the loader: a key that the file may inherit by
`extends` is not required.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from trainer.config.model_schema import INITIALIZERS, InitializerSpec
from trainer.config.schema import Config
from trainer.config.values import name_or_options

_BY_NAME = "x-by-name"


def config_json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a config file."""
    schema = Config.model_json_schema(schema_generator=_Generator)
    in_lists = set(_item_references(schema))
    for name, definition in schema["$defs"].items():
        if f"#/$defs/{name}" not in in_lists:
            definition.pop("required", None)
    extends = {
        "type": "string",
        "description": "A file, relative to this one, that this one is laid over.",
    }
    schema["properties"] = {"extends": extends, **schema["properties"]}
    del schema["required"]
    schema["anyOf"] = [{"required": ["extends"]}, {"required": ["model"]}]
    return {"$schema": GenerateJsonSchema.schema_dialect, **_finish(schema)}


class _Generator(GenerateJsonSchema):
    """Knows the short spellings, which pydantic cannot see inside of validators."""

    def function_before_schema(
        self, schema: core_schema.BeforeValidatorFunctionSchema
    ) -> JsonSchemaValue:
        inner = super().function_before_schema(schema)
        # References are renamed until the end, so that the spellings are added there.
        is_by_name = schema["function"]["function"] is name_or_options
        return {**inner, _BY_NAME: True} if is_by_name else inner

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        described = super().model_schema(schema)
        if schema["cls"] is not InitializerSpec:
            return described
        return {
            "title": described["title"],
            "description": described["description"],
            "anyOf": [
                {"enum": sorted(INITIALIZERS)},
                *(_initializer(kind) for kind in sorted(INITIALIZERS)),
                *({**_named(kind, _arguments(kind))} for kind in sorted(INITIALIZERS)),
            ],
        }


def _arguments(kind: str) -> dict[str, Any]:
    value = {"type": ["number", "string"]}
    return {
        "type": "object",
        "properties": {name: value for name in sorted(INITIALIZERS[kind])},
        "additionalProperties": False,
    }


def _initializer(kind: str) -> dict[str, Any]:
    arguments = _arguments(kind)
    properties = {"kind": {"const": kind}, **arguments["properties"]}
    return {**arguments, "properties": properties}


def _named(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """The spelling `{name: {option: x}}`, or `name:` with nothing below."""
    return {
        "type": "object",
        "properties": {kind: {"anyOf": [options, {"type": "null"}]}},
        "required": [kind],
        "additionalProperties": False,
    }


def _item_references(value: Any) -> list[str]:
    """List what the items of lists refer to: such a mapping cannot be inherited in part."""
    found = []
    if isinstance(value, dict):
        items = value.get("items")
        if isinstance(items, dict) and "$ref" in items:
            found.append(items["$ref"])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            found += _item_references(item)
    return found


def _finish(value: Any) -> Any:
    """Write unions by kind as plain alternatives, with their short spellings."""
    if isinstance(value, list):
        return [_finish(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _finish(item) for key, item in value.items()}
    if isinstance(value.get("discriminator"), dict):
        kinds = value.pop("discriminator")["mapping"]
        # Without a required `kind` several members may match.
        value["anyOf"] = value.pop("oneOf")
        if value.pop(_BY_NAME, False):
            value["anyOf"] = [
                {"enum": list(kinds)},
                *value["anyOf"],
                *(_named(kind, {"$ref": reference}) for kind, reference in kinds.items()),
            ]
    return value
