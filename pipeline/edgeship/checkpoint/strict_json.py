"""JSON objects from files nobody vouches for: one strict parser for headers, indexes and config.json."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from edgeship.errors import CheckpointError

DIGITS = 40
"""Of a whole number: transformers writes int(1e30) where a tokenizer has no limit. What has a range is checked by
whoever reads it; here only numbers are refused that take long to read."""

DAMAGED = "download the file again; a copy that was cut short or edited looks like this"


def parse_object(blob: bytes, file: str, what: str) -> dict[str, Any]:
    """The JSON object that `blob` holds, UTF-8.

    Raises CheckpointError, naming `file` and `what`, at anything json.loads would let pass (repeated keys, NaN,
    infinities, numbers of more than 40 digits) and at anything that is not one object.
    """
    try:
        # loads() would also guess UTF-16 and UTF-32, which the formats do not allow.
        value = json.loads(
            blob.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except UnicodeDecodeError as e:
        raise CheckpointError(f"{file}: {what} is not UTF-8 (byte {e.start}).", hint=DAMAGED) from None
    except json.JSONDecodeError as e:
        raise CheckpointError(
            f"{file}: {what} is not JSON: {e.msg} at line {e.lineno}, column {e.colno}.", hint=DAMAGED
        ) from None
    except (ValueError, RecursionError) as e:
        reason = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise CheckpointError(f"{file}: {what} is not valid: {reason}.", hint=DAMAGED) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: {what}: expected a JSON object, found {type(value).__name__}.", hint=DAMAGED)
    return value


def show(name: str, limit: int = 100) -> str:
    """A name from a file as one printable line: quoted, what is not printable escaped, and cut when it is long."""
    text = json.dumps(name if len(name) <= limit else name[:limit] + "…", ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def some(items: list[str], limit: int = 10) -> str:
    """The first items as indented lines, then how many more there are."""
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return "\n".join(f"  {line}" for line in items[:limit] + more)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {show(key)} occurs twice")
        out[key] = value
    return out


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"the number {text[:20]}… is out of range")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value
