"""JSON read strictly: one value per key, finite numbers, bounded size and depth, members checked by name and type.

The artifact's own files (manifest, acceptance) come from wherever the artifact came from, so nothing in them is
taken on trust: whatever is wrong ends in one `ArtifactError` that names the file and the member.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from edgeship_runtime.errors import ArtifactError

MAX_DEPTH = 64
"""Nesting no honest file comes near; deeper ones only aim at the stack of whoever walks them next."""

_DAMAGED = "the file is damaged or was edited; export the artifact again, or copy it again from where it came from"


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; raises ArtifactError (missing, unreadable, a device)."""
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to must not hang before its type can be looked at.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: the file does not exist", hint=_DAMAGED) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})", hint="check the path and its permissions") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ArtifactError(f"{path}: expected a regular file, found something else", hint=_DAMAGED)
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; raises ArtifactError (missing, unreadable, a device, too large)."""
    with open_regular(path) as file:
        try:
            raw = file.read(limit + 1)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error})", hint="check the disk it lies on") from None
    if len(raw) > limit:
        raise ArtifactError(
            f"{path}: expected at most {limit} bytes, found more; it is not read",
            hint="no export writes a file this large",
        )
    return raw


def read_json(path: Path, limit: int) -> Any:
    """Read and parse a JSON file of at most `limit` bytes; raises ArtifactError."""
    return parse_json(read_bytes(path, limit), str(path))


def parse_json(raw: bytes, where: str) -> Any:
    """Parse UTF-8 JSON, refusing what `json` lets through; `where` names it in errors. Raises ArtifactError."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
        _check_plain(value)
    except RecursionError:
        raise ArtifactError(f"{where}: nested deeper than {MAX_DEPTH} levels", hint=_DAMAGED) from None
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where}: not UTF-8 text (byte {error.start})", hint=_DAMAGED) from None
    except json.JSONDecodeError as error:
        found = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ArtifactError(f"{where}: not JSON ({found})", hint=_DAMAGED) from None
    except ValueError as error:  # the checks below, and integers of more digits than Python converts
        raise ArtifactError(f"{where}: {error}", hint=_DAMAGED) from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"member {show(twice)} is written twice; which one counts cannot be known")
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"number {digits[:40]} is out of range")
    return number


def _check_plain(value: object) -> None:
    """Refuse nesting over MAX_DEPTH and text with lone surrogates, which no terminal or file can take."""
    waiting: list[tuple[object, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        inner: Iterable[object] = ()
        if isinstance(item, str):
            if any("\ud800" <= letter <= "\udfff" for letter in item):
                raise ValueError(f"text {show(item)} holds half of a surrogate pair")
        elif isinstance(item, dict):
            inner = (*item.keys(), *item.values())
        elif isinstance(item, list):
            inner = item
        waiting.extend((each, depth + 1) for each in inner)


def show(value: object, limit: int = 60) -> str:
    """A value on one line for an error message: escaped, so that it cannot drive the terminal, and cut short."""
    if isinstance(value, str):
        value = value[: limit + 1]
    elif isinstance(value, Mapping | list | tuple):
        value = f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
        return str(value)
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = type(value).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """`nearest: "x"` for the known name closest to `name`, or the list of known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name[:100], names, n=1)
    return f"nearest known: {show(close[0])}" if close else f"known: {', '.join(names)}"


class Fields:
    """One JSON object, its members read by name and type; every method raises ArtifactError naming the member."""

    def __init__(
        self,
        value: object,
        where: str,
        path: str,
        required: Sequence[str],
        optional: Sequence[str] = (),
        *,
        open: bool = False,
    ) -> None:
        """Check that all `required` members are there and, unless `open`, that no others than `optional` are."""
        self._where, self._path = where, path
        if not isinstance(value, dict):
            raise self.error("", f"expected an object, found {show(value)}")
        self._members: dict[str, Any] = value
        known = (*required, *optional)
        unknown = [] if open else [name for name in value if name not in known]
        missing = [name for name in required if name not in value]
        if unknown:
            raise self.error("", f"unknown member {show(unknown[0])} ({nearest(unknown[0], missing or known)})")
        if missing:
            raise self.error("", f"member {show(missing[0])} is missing")

    def error(self, name: str, problem: str, hint: str = _DAMAGED) -> ArtifactError:
        """An error about member `name` (or the object itself when empty)."""
        path = ".".join(part for part in (self._path, name) if part)
        return ArtifactError(f"{self._where}: {path + ': ' if path else ''}{problem}", hint=hint)

    def __contains__(self, name: str) -> bool:
        return self._members.get(name) is not None

    def value(self, name: str) -> Any:
        """The member as it is, None when absent."""
        return self._members.get(name)

    def text(self, name: str, *, limit: int = 1000, choices: Sequence[str] = (), empty: bool = False) -> str:
        """A string of at most `limit` characters, one of `choices` if given, printable on one line."""
        found = self._members.get(name)
        if not isinstance(found, str) or len(found) > limit or not (found or empty):
            raise self.error(name, f"expected text of 1 to {limit} characters, found {show(found)}")
        if choices and found not in choices:
            raise self.error(name, f"expected one of {', '.join(choices)}, found {show(found)}")
        if not found.isprintable():
            raise self.error(name, f"expected printable text, found {show(found)}")
        return found

    def prose(self, name: str, *, limit: int) -> str:
        """Any string of at most `limit` characters, line breaks and control characters included."""
        found = self._members.get(name)
        if not isinstance(found, str) or len(found) > limit:
            raise self.error(name, f"expected text of at most {limit} characters, found {show(found)}")
        return found

    def flag(self, name: str) -> bool:
        """True or false."""
        found = self._members.get(name)
        if not isinstance(found, bool):
            raise self.error(name, f"expected true or false, found {show(found)}")
        return found

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high]; true and 1.0 are not whole numbers here."""
        return self._integer(name, self._members.get(name), low, high)

    def _integer(self, name: str, found: object, low: int, high: int) -> int:
        if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
            raise self.error(name, f"expected a whole number from {low} to {high}, found {show(found)}")
        return found

    def integers(self, name: str, low: int, high: int, *, limit: int) -> tuple[int, ...]:
        """A list of at most `limit` whole numbers in [low, high]."""
        return tuple(self._integer(f"{name}[{i}]", item, low, high) for i, item in enumerate(self.items(name, limit)))

    def number(self, name: str, low: float, high: float) -> float:
        """A number in [low, high]."""
        return self._number(name, self._members.get(name), low, high)

    def _number(self, name: str, found: object, low: float, high: float) -> float:
        if isinstance(found, bool) or not isinstance(found, int | float) or not low <= found <= high:
            raise self.error(name, f"expected a number from {low:g} to {high:g}, found {show(found)}")
        return float(found)

    def numbers(self, name: str, low: float, high: float, *, limit: int) -> tuple[float, ...]:
        """A list of at most `limit` numbers in [low, high]."""
        return tuple(self._number(f"{name}[{i}]", item, low, high) for i, item in enumerate(self.items(name, limit)))

    def items(self, name: str, limit: int) -> list[Any]:
        """A list of at most `limit` values of any kind."""
        found = self._members.get(name)
        if not isinstance(found, list) or len(found) > limit:
            raise self.error(name, f"expected a list of at most {limit}, found {show(found)}")
        return found

    def texts(self, name: str, *, limit: int) -> tuple[str, ...]:
        """A list of at most `limit` strings of one printable line each."""
        items = self.items(name, limit)
        for i, item in enumerate(items):
            if not isinstance(item, str) or not item or len(item) > 1000 or not item.isprintable():
                raise self.error(f"{name}[{i}]", f"expected one line of text, found {show(item)}")
        return tuple(items)

    def mapping(self, name: str, limit: int) -> dict[str, Any]:
        """An object of at most `limit` members of any kind."""
        found = self._members.get(name)
        if not isinstance(found, dict) or len(found) > limit:
            raise self.error(name, f"expected an object of at most {limit} members, found {show(found)}")
        return found

    def text_mapping(self, name: str, limit: int = 64) -> dict[str, str]:
        """An object of at most `limit` members, each one printable line of text."""
        members = self.mapping(name, limit)
        inner = Fields(members, self._where, f"{self._path}.{name}".lstrip("."), (), tuple(members))
        return {key: inner.text(key, empty=True) for key in members}

    def inner(self, value: object, path: str, required: Sequence[str], optional: Sequence[str] = ()) -> Fields:
        """An object found inside this one, for instance in a list; `path` is relative to this one."""
        return Fields(value, self._where, f"{self._path}.{path}".lstrip("."), required, optional)

    def object(self, name: str, required: Sequence[str], optional: Sequence[str] = (), *, open: bool = False) -> Fields:
        """An inner object, its member names checked."""
        path = f"{self._path}.{name}".lstrip(".")
        return Fields(self._members.get(name), self._where, path, required, optional, open=open)
