"""JSON schemas before llguidance compiles them: what it does not enforce is refused by name, dates are made exact.

Keywords: JSON Schema 2020-12, https://json-schema.org/draft/2020-12, and what older drafts have instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeship_runtime.errors import UsageError
from edgeship_runtime.strict import show

_SCHEMAS = ("items", "additionalItems", "additionalProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions")
# Each with the value at which it demands nothing; llguidance refuses it even then.
_REFUSED: dict[str, object] = {
    "not": False,
    "if": None,
    "then": None,
    "else": None,
    "uniqueItems": False,
    "contains": None,
    "minContains": None,
    "maxContains": None,
    "propertyNames": True,
    "dependentRequired": {},
    "dependentSchemas": {},
    "dependencies": {},
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
    "$dynamicRef": None,
    "$recursiveRef": None,
}
# llguidance's own `date` has a 29th of February in every year, and a year 0, which no calendar of Python's has.
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_DAY = "(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP}-02-29)"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {"date": f"^{_DATE}$", "date-time": f"^{_DATE}T{_TIME}$", "time": f"^{_TIME}$"}


def exact(schema: Any, where: str = "#") -> Any:
    """A copy that llguidance enforces whole; raises UsageError for a keyword or reference that it does not.

    `where`: a JSON pointer to the schema, for messages.
    """
    if not isinstance(schema, Mapping):
        return schema  # true and false, and what is no schema at all, which llguidance says
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _REFUSED:
            if value == _REFUSED[name] and type(value) is type(_REFUSED[name]):
                continue
            raise UsageError(
                f"the schema's {where} uses {name}, which is not enforced", hint="leave it out, and check the answer"
            )
        found[name] = _inside(name, value, f"{where}/{name}")
    _check_reference(schema.get("$ref"), where)
    least, required = schema.get("minProperties"), schema.get("required")
    # A name that comes twice counts twice there.
    if isinstance(least, int) and least > 1 + (len(required) if isinstance(required, list) else 0):
        hint = "name the members that are required"
        raise UsageError(f"the schema's {where} uses minProperties, which is not enforced", hint=hint)
    form = schema.get("format")
    if isinstance(form, str) and form in _FORMATS and "pattern" not in schema:
        found["pattern"] = _FORMATS[form]
        del found["format"]
        found.setdefault("type", "string")
    return found


def _inside(name: str, value: Any, where: str) -> Any:
    """A member's value, with the schemas in it made exact; what is no schema is data and left alone."""
    if name in _LISTS and isinstance(value, list):
        return [exact(each, f"{where}/{place}") for place, each in enumerate(value)]
    if name in _SCHEMAS:
        return exact(value, where)
    if name in _MAPPINGS and isinstance(value, Mapping):
        return {key: exact(each, f"{where}/{key}") for key, each in value.items()}
    return value


def _check_reference(reference: object, where: str) -> None:
    local = isinstance(reference, str) and (reference == "#" or reference.startswith("#/"))
    if reference is not None and not local:
        raise UsageError(
            f"the schema's {where} refers to {show(reference)}, which is not followed",
            hint="a reference is # or #/..., for instance #/$defs/name",
        )
