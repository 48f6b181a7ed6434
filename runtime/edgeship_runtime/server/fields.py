"""Typed reads of a request's JSON object; whatever is wrong becomes a 400 that names the member."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeship_runtime.server.problems import RequestError

_KINDS = {str: "text", dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def parse_object(raw: bytes) -> Body:
    """The JSON object of a request's body; raises RequestError for anything else."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        # Half of a surrogate pair can be written in JSON and is no text: it could not be written to any answer.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
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

    def error(self, name: str, expected: str, found: object = None) -> RequestError:
        """The error for one member."""
        param = self._where + name
        said = f", found {kind(found)}" if found is not None else ""
        return RequestError(f"{param}: expected {expected}{said}", param=param, code="invalid_value")

    def get(self, name: str) -> Any:
        """The member as it is; None when absent."""
        return self.members.get(name)

    def text(self, name: str, default: str | None = None) -> str:
        """A member that is text; without a default it must be there."""
        value = self.members.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.error(name, "text", value)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A member that is true or false."""
        value = self.members.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "true or false", value)
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number of `low` to `high`."""
        value = self.members.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(name, f"a whole number of {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number of `low` to `high`."""
        value = self.members.get(name)
        if value is None:
            return None
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not low <= value <= high:
            raise self.error(name, f"a number of {low:g} to {high:g}")
        return float(value)

    def body(self, name: str) -> Body:
        """A member that is an object; an empty one when absent."""
        value = self.members.get(name)
        if value is None:
            return Body({}, f"{self._where}{name}.")
        if not isinstance(value, dict):
            raise self.error(name, "an object", value)
        return Body(value, f"{self._where}{name}.")

    def objects(self, name: str, limit: int) -> list[Mapping[str, Any]] | None:
        """A list of at most `limit` objects."""
        value = self.members.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.error(name, "a list of objects", value)
        if len(value) > limit:
            raise self.error(name, f"at most {limit} of them (there are {len(value)})")
        return value

    def texts(self, name: str, limit: int) -> tuple[str, ...]:
        """One text, or a list of at most `limit`; empty when absent."""
        value = self.members.get(name)
        found: Sequence[Any] = () if value is None else [value] if isinstance(value, str) else value
        if not isinstance(found, Sequence) or not all(isinstance(each, str) for each in found):
            raise self.error(name, "text or a list of texts", value)
        if len(found) > limit:
            raise self.error(name, f"at most {limit} texts (there are {len(found)})")
        return tuple(found)
