"""A request's JSON object, held to its JSON schema; whatever is wrong becomes a 400 that names the member.

The schemas are those of the OpenAPI document, in the few keywords that requests need (`schemas.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from edgeship_runtime.server.problems import RequestError

Schema = Mapping[str, Any]
_KINDS = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}


def _is_whole(value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


_TYPES: Mapping[str, Callable[[object], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": _is_whole,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_object(raw: bytes) -> Body:
    """The JSON object of a request's body; raises RequestError for anything else."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        # Half of a surrogate pair and 1e999 can be written in JSON, and could not be written to any answer.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise RequestError("the body is not valid JSON in UTF-8", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body: expected an object, found {kind(value)}", code="invalid_json")
    return Body(value)


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    return "nothing" if value is None else _KINDS.get(type(value), type(value).__name__)


class Body:
    """A JSON object read member by member; null counts as absent, as clients send it for what was not set."""

    def __init__(self, members: Mapping[str, Any], where: str = "") -> None:
        """`where`: the path of the object in the request, for messages."""
        self.members = members
        self._where = where

    def check(self, schema: Schema) -> Body:
        """The body itself; raises RequestError for what is not as the schema has it."""
        wrong = _wrong(self.members, schema, self._where.removesuffix("."))
        if wrong is not None:
            place, value, expected = wrong
            found = "" if value is None or _is_type(value, expected) else f", found {kind(value)}"
            message = f"{place or 'the body'}: expected {words(expected)}{found}"
            raise RequestError(message, param=place or None, code="invalid_value")
        return self

    def error(self, name: str, expected: str) -> RequestError:
        """The error for one member."""
        param = self._where + name
        return RequestError(f"{param}: expected {expected}", param=param, code="invalid_value")

    def get(self, name: str) -> Any:
        """The member as it is; None when absent."""
        return self.members.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A member that is text."""
        value = self.members.get(name)
        return default if value is None else str(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A member that is true or false."""
        value = self.members.get(name)
        return default if value is None else bool(value)

    def whole(self, name: str) -> int | None:
        """A whole number, which may have been written as 3.0."""
        value = self.members.get(name)
        return None if value is None else int(value)

    def body(self, name: str) -> Body:
        """A member that is an object; an empty one when absent."""
        return Body(self.members.get(name) or {}, f"{self._where}{name}.")

    def listed(self, name: str) -> list[Any]:
        """A member that is a list, or one of its elements alone; empty when absent."""
        value = self.members.get(name)
        return [] if value is None else value if isinstance(value, list) else [value]


def _is_type(value: object, schema: Schema) -> bool:
    if "anyOf" in schema:
        return any(_is_type(value, each) for each in schema["anyOf"])
    types = schema.get("type", ())
    return not types or any(_TYPES[each](value) for each in ([types] if isinstance(types, str) else types))


def _wrong(value: Any, schema: Schema, where: str) -> tuple[str, Any, Schema] | None:
    """Where a value differs from its schema, what is there, and the schema of that place; None when nowhere."""
    if "anyOf" in schema:
        found = [(_wrong(value, each, where), each) for each in schema["anyOf"]]
        if any(wrong is None for wrong, _ in found):
            return None
        # The only form that the value may have been meant as tells best what is wrong.
        near = [wrong for wrong, each in found if _is_type(value, each)]
        return near[0] if len(near) == 1 else (where, value, schema)
    if not _fits(value, schema):
        return where, value, schema
    if isinstance(value, dict):
        return _wrong_member(value, schema, f"{where}." if where else "")
    for place, each in enumerate(value if isinstance(value, list) and schema.get("items") else ()):
        wrong = _wrong(each, schema["items"], f"{where}[{place}]")
        if wrong is not None:
            return wrong
    return None


def _wrong_member(value: dict[str, Any], schema: Schema, where: str) -> tuple[str, Any, Schema] | None:
    members = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return where + name, None, members[name]
    others = schema.get("additionalProperties", {})
    for name, each in value.items():
        # No deeper than schemas go: what they leave open may be nested as deep as JSON is.
        member = members.get(name, others)
        if member and (wrong := _wrong(each, member, where + name)) is not None:
            # A name that the schema does not know is the sender's text, and may be long.
            return wrong if name in members else (where.removesuffix("."), value, schema)
    return None


def _fits(value: Any, schema: Schema) -> bool:
    """Whether a value is right apart from its elements and members."""
    if not _is_type(value, schema) or ("enum" in schema and value not in schema["enum"]):
        return False
    if isinstance(value, str):
        return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf))
    if isinstance(value, list):
        return bool(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf))
    if isinstance(value, dict):
        pattern = schema.get("propertyNames", {}).get("pattern", "")
        fits = len(value) <= schema.get("maxProperties", math.inf)
        return fits and all(re.search(pattern, name, re.ASCII) for name in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return bool(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
    return True


def words(schema: Schema) -> str:
    """What a schema asks for, in words."""
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        return " or ".join(words(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        return "one of " + ", ".join(str(each) for each in schema["enum"] if each is not None)
    types = schema.get("type", "object")
    named = types if isinstance(types, str) else types[0]
    if named in ("integer", "number"):
        return f"{'a whole number' if named == 'integer' else 'a number'} of {schema['minimum']} to {schema['maximum']}"
    if named == "array":
        most = f"at most {schema['maxItems']} of " if "maxItems" in schema else ""
        least = f", at least {schema['minItems']}" if schema.get("minItems") else ""
        return f"a list of {most}{words(schema.get('items', {}))}{least}"
    if named == "string":
        return "text that is not empty" if schema.get("minLength") else "text"
    return {"boolean": "true or false", "object": "an object", "null": "nothing"}[named]
