"""The JSON Schema (2020-12) of a recipe's file, for editors; made from the models in `recipe.py`."""

from __future__ import annotations

from typing import Any

from edgeship.fields import submodel
from edgeship.recipe import KEYS, Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"

EXTENDS = (
    "a recipe this one is laid over, key by key: a name in the catalogue or beside this file, "
    "or a path relative to it; one level"
)


def recipe_schema() -> dict[str, Any]:
    """The schema of `recipes/*.yaml`: the fields of Recipe without `name`, with `extends`.

    A recipe that extends another may leave out anything, so required keys hold only for one that does not.
    """
    schema = Recipe.model_json_schema(mode="validation")
    properties = {"extends": {"type": "string", "minLength": 1, "description": EXTENDS}} | schema["properties"]
    del properties["name"]
    definitions, needed = schema["$defs"], {}
    for name, info in Recipe.model_fields.items():
        inner = submodel(info.annotation)
        if inner is not None and definitions[inner.__name__].get("required"):
            needed[name] = {"required": definitions[inner.__name__].pop("required")}
    for described in (properties, *(d["properties"] for d in definitions.values())):
        for value in described.values():
            value.pop("title", None)  # the field's name again, in capitals
    required = [k for k in schema["required"] if k != "name"]
    return {
        "$schema": DIALECT,
        "$id": "https://edgeship.invalid/recipe.schema.json",
        "title": "edgeship recipe",
        "description": schema["description"],
        "type": "object",
        "additionalProperties": False,
        "properties": {key: properties[key] for key in KEYS},
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": required, "properties": needed},
        "$defs": definitions,
    }
