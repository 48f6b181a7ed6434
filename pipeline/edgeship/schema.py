"""The JSON Schemas (2020-12) of the files of recipes and devices, for editors; made from their models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_origin

from pydantic import BaseModel

from edgeship.device import KEYS as DEVICE_KEYS
from edgeship.device import Device
from edgeship.fields import submodel
from edgeship.recipe import Recipe
from edgeship.recipe_file import KEYS

DIALECT = "https://json-schema.org/draft/2020-12/schema"

EXTENDS = (
    "a recipe this one is laid over, key by key (null takes a key back to its default): a name in the catalogue or "
    "beside this file, or a path relative to it; one level"
)


def recipe_schema() -> dict[str, Any]:
    """The schema of `recipes/*.yaml`: the fields of Recipe without `name`, with `extends`.

    A recipe that extends another may leave out anything, and take it back to its default by null; one that does not
    may do neither.
    """
    return _schema(Recipe, KEYS, "recipe")


def device_schema() -> dict[str, Any]:
    """The schema of `devices/*.yaml`: the fields of Device without `name`, with `extends`, likewise."""
    return _schema(Device, DEVICE_KEYS, "device")


def _schema(model: type[BaseModel], keys: Sequence[str], noun: str) -> dict[str, Any]:
    schema = model.model_json_schema(mode="validation")
    extends = {"type": "string", "minLength": 1, "description": EXTENDS.replace("recipe", noun)}
    properties = {"extends": extends} | schema["properties"]
    del properties["name"]
    definitions = schema["$defs"]
    for described in (properties, *(d["properties"] for d in definitions.values())):
        for value in described.values():
            value.pop("title", None)  # the field's name again, in capitals
    alone = _alone(model, properties, definitions)
    required = [k for k in schema["required"] if k != "name"]
    return {
        "$schema": DIALECT,
        "$id": f"https://edgeship.invalid/{noun}.schema.json",
        "title": f"edgeship {noun}",
        "description": schema["description"],
        "type": "object",
        "additionalProperties": False,
        "properties": {key: properties[key] for key in keys},
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": required, "properties": alone},
        "$defs": definitions,
    }


def _alone(model: type[BaseModel], properties: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """What holds only for the fields of a file that extends none; it is taken out of the schema of any file."""
    alone: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if name not in properties:
            continue
        told = {}
        inner = None if get_origin(info.annotation) is tuple else submodel(info.annotation)
        if inner is not None:  # what stands in a list is laid over whole
            definition = definitions[inner.__name__]
            if required := definition.pop("required", None):
                told["required"] = required
            if below := _alone(inner, definition["properties"], definitions):
                told["properties"] = below
        value = properties[name]
        if not info.is_required() and _NULL not in value.get("anyOf", ()):
            outside = {key: value.pop(key) for key in ("description", "default") if key in value}
            properties[name] = outside | {"anyOf": [value, _NULL]}
            told["not"] = _NULL
        if told:
            alone[name] = told
    return alone


_NULL = {"type": "null"}
