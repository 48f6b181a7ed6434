"""Random JSON schemas with the keywords that requests use, and a validator of their answers by jsonschema."""

from __future__ import annotations

import ipaddress
import random
import uuid
from datetime import date, datetime, time
from typing import Any

import jsonschema

NAMES = ["a", "b", "name", "größe", "x y", 'quo"te', "$ref"]
VALUES: list[Any] = ["red", "green", 3, None, True, 'a"b', "🙂", -1.5, [1, "x"], {"k": []}]
PATTERNS = ["^[a-c]{1,4}$", "^[0-9]{4}-[0-9]{2}$", "^(on|off)$", r"^\w{2}\.\d$", "^a|b$", "^x[^y]z?$"]
FORMATS = {
    "date": date.fromisoformat,
    "date-time": datetime.fromisoformat,
    "time": lambda text: time.fromisoformat(text),
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
}


def random_schema(pick: random.Random) -> dict[str, Any]:
    """A schema; one in four has definitions that it refers to."""
    names = pick.sample(["node", "leaf", "a/b"], pick.randint(1, 3)) if pick.random() < 0.25 else []
    found = _schema(pick, 0, names)
    if names:  # no definition refers to one that comes before it: each has an end
        found = {"anyOf": [found, {"$ref": _pointer(names[0])}]} if "$ref" in found or pick.random() < 0.5 else found
        found["$defs"] = {name: _schema(pick, 2, names[place + 1 :]) for place, name in enumerate(names)}
    return found


def _pointer(name: str) -> str:
    return "#/$defs/" + name.replace("~", "~0").replace("/", "~1")


def _schema(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    kinds = [_text, _text, _number, _number, _plain, _choice, _union]
    kinds += [_object, _object, _object, _array, _array, _both] * (depth < 3) + [_reference] * 3 * bool(names)
    return pick.choice(kinds)(pick, depth, names)


def _object(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    members = {name: _schema(pick, depth + 1, names) for name in pick.sample(NAMES, pick.randint(0, 4))}
    found: dict[str, Any] = {"type": "object", "properties": members, "additionalProperties": False}
    found["required"] = [name for name in members if pick.random() < 0.7]
    if pick.random() < 0.2:
        found["additionalProperties"] = _schema(pick, 3, names)
        found["maxProperties"] = len(members) + 2
        found["required"] = [*members]
    if pick.random() < 0.15:
        found["patternProperties"] = {"^p[0-9]$": _schema(pick, 3, names)}
    if pick.random() < 0.2:
        found |= {"title": "A title", "description": "What it is.", "default": {"not": 1}, "$comment": "x"}
    return found


def _array(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    low = pick.randint(0, 2)
    found = {"type": "array", "items": _schema(pick, depth + 1, names), "minItems": low}
    found["maxItems"] = low + pick.randint(0, 3)
    if pick.random() < 0.3:
        found["prefixItems"] = [_schema(pick, depth + 1, names) for _ in range(pick.randint(1, 2))]
    return found


def _union(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    if pick.random() < 0.3:
        kinds = {name: {"k": {"const": name}, "v": _schema(pick, 3, names)} for name in ("one", "two")}
        closed = {"type": "object", "required": ["k"], "additionalProperties": False}
        return {"oneOf": [{**closed, "properties": members} for members in kinds.values()]}
    return {"anyOf": [_schema(pick, 3, names) for _ in range(pick.randint(1, 3))]}


def _both(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    parts = [
        {"type": "object", "properties": {name: _schema(pick, 3, names)}, "required": [name]} for name in ("a", "name")
    ]
    return {"allOf": parts, "maxProperties": 3}


def _reference(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    return {"$ref": _pointer(pick.choice(names))}


def _text(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    kind = pick.random()
    if kind < 0.3:
        return {"type": "string", "pattern": pick.choice(PATTERNS), "maxLength": 12}
    if kind < 0.6:
        return {"type": "string", "format": pick.choice([*FORMATS])}
    return {"type": "string", "minLength": pick.randint(0, 3), "maxLength": pick.randint(3, 12)}


def _number(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    low = pick.randint(-50, 50)
    kind = pick.random()
    if kind < 0.4:
        return {"type": "integer", "minimum": low, "maximum": low + pick.randint(0, 2000)}
    if kind < 0.6:
        return {"type": "integer", "exclusiveMinimum": low, "maximum": low + 50, "multipleOf": pick.choice([1, 3, 7])}
    if kind < 0.8:
        return {"type": "number", "minimum": low - 0.5, "exclusiveMaximum": low + pick.choice([0.25, 1, 99])}
    return {"type": ["integer", "null"], "minimum": low}


def _plain(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    return {"type": pick.choice(["boolean", "null"])}


def _choice(pick: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    return {"const": pick.choice(VALUES)} if pick.random() < 0.3 else {"enum": pick.sample(VALUES, pick.randint(1, 4))}


def validate(answer: Any, schema: dict[str, Any]) -> None:
    """Raise jsonschema's ValidationError where an answer is not what the schema describes, formats included."""
    checker = jsonschema.FormatChecker(formats=())
    for name, read in FORMATS.items():

        def known(text: object, read: Any = read) -> bool:
            return not isinstance(text, str) or bool(read(text) or True)

        checker.checks(name, raises=ValueError)(known)
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(answer)
