"""YAML as people write it by hand, with the place of every key and value, and no surprises.

The values are those of the YAML 1.2 core schema (`1e6` is a number; `no` and `2024-01-01` are text). Refused, since
a hand-written file never needs them and a hostile one does: anchors and aliases, tags, several documents, deep
nesting, numbers that are not finite, files over `MAX_BYTES`. No object is ever constructed from a tag.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 64 * 1024  # a recipe is about 1 KB
MAX_DEPTH = 12
MAX_SHOWN = 8  # problems on one screen

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]{1,18}\Z")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what PyYAML counts as the end of a line
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True)
class Place:
    """A stretch of one line of a file; line and column count from 1, in characters."""

    source: Source
    line: int
    column: int
    width: int = 1

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"

    def excerpt(self) -> str:
        """The line, with a caret line under the place."""
        text = self.source.line(self.line)
        start = max(0, self.column - 61)  # the window of a long line that shows the place
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[start : start + 100])
        before, marked = shown[: self.column - 1 - start], shown[self.column - 1 - start :][: self.width]
        gutter = f"{self.line:>5} | "
        return f"{gutter}{shown}\n{' ' * (len(gutter) - 2)}| {' ' * _cells(before)}{'^' * max(1, _cells(marked))}"


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@dataclass(frozen=True)
class Source:
    """The text of a file, and the name it has in messages."""

    name: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """The lines, without their ends."""
        return _LINE_BREAK.split(self.text)

    def line(self, number: int) -> str:
        """Line `number` (from 1); empty past the end."""
        return self.lines[number - 1] if number <= len(self.lines) else ""

    def place(self, before: str) -> Place:
        """The place after the text `before`, which the text begins with."""
        lines = _LINE_BREAK.split(before)
        return Place(self, len(lines), len(lines[-1]) + 1)


@dataclass(frozen=True)
class Problem:
    """One thing to correct, and where."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}\n{self.place.excerpt()}"


@dataclass(frozen=True)
class Places:
    """Where the keys of a file stand, kept beside its values; no part of whether these are equal to others."""

    keys: Mapping[KeyPath, Place] = field(default_factory=dict, compare=False)

    def find(self, path: KeyPath) -> Place | None:
        """The place of a key, or of the nearest one around it; None where none of them is in the file."""
        while path and path not in self.keys:
            path = path[:-1]
        return self.keys.get(path)

    def without(self, path: KeyPath) -> Places:
        """The places of all other keys."""
        return Places({other: place for other, place in self.keys.items() if other != path})


@dataclass(frozen=True)
class Document:
    """A parsed file: plain values, and the place of each key and value by its path of keys."""

    source: Source
    data: dict[str, Any] | None  # None where the text could not be read to its end
    keys: dict[KeyPath, Place]
    values: dict[KeyPath, Place]
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath, *, key: bool = False) -> Place:
        """Where the value at a path stands (or its key), or the nearest thing around it that has a place."""
        places = self.keys if key else self.values
        if path in places and path:
            return places[path]
        while path:
            path = path[:-1]
            if path in self.keys:
                return self.keys[path]
        return self.start

    @property
    def start(self) -> Place:
        """The first line that is neither empty nor a comment."""
        for number, text in enumerate(self.source.lines, 1):
            if text.strip() and not text.lstrip().startswith("#"):
                return Place(self.source, number, 1, len(text.rstrip()))
        return Place(self.source, 1, 1)


class _StopError(Exception):
    """The text cannot be read past this problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def show(problems: list[Problem]) -> str:
    """All problems, each with its line; beyond a screenful only their number."""
    ordered = sorted(problems, key=lambda p: (p.place.source.name, p.place.line, p.place.column))
    shown = "\n".join(str(p) for p in ordered[:MAX_SHOWN])
    return shown + (f"\n... and {len(ordered) - MAX_SHOWN} more" if len(ordered) > MAX_SHOWN else "")


def parse(raw: bytes, name: str) -> Document:
    """The mapping in `raw`; what is wrong with it stands in its `problems`."""
    if len(raw) > MAX_BYTES:
        source = Source(name, "")
        return _failed(source.place(""), f"expected at most {MAX_BYTES} bytes, found more")
    try:
        source = Source(name, raw.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        source = Source(name, raw.decode("utf-8", "replace"))
        place = source.place(raw[: e.start].decode("utf-8", "replace"))
        return _failed(place, f"expected UTF-8, found the byte 0x{raw[e.start]:02x}; save it as UTF-8")
    reader = _Reader(source)
    try:
        data = reader.read()
    except _StopError as stop:
        reader.problems.append(stop.problem)
        data = None
    except yaml.reader.ReaderError as e:
        place = source.place(source.text[: e.position])
        character = ord(source.text[e.position])
        reader.problems.append(Problem(place, f"found the control character U+{character:04X}; remove it"))
        data = None
    except yaml.MarkedYAMLError as e:
        reader.problems.append(_syntax(source, e))
        data = None
    except (ValueError, OverflowError):  # PyYAML converts escapes and version numbers without looking
        reader.problems.append(Problem(source.place(""), "not valid YAML: an escape or number in it is out of range"))
        data = None
    return Document(source, data, reader.keys, reader.values, reader.problems)


def _failed(place: Place, text: str) -> Document:
    return Document(place.source, None, {}, {}, [Problem(place, text)])


def _syntax(source: Source, e: yaml.MarkedYAMLError) -> Problem:
    mark = e.problem_mark or e.context_mark
    place = Place(source, mark.line + 1, mark.column + 1) if mark else Place(source, 1, 1)
    if "\t" in source.line(place.line)[: place.column]:
        return Problem(place, "expected spaces, found a tab; YAML is indented with spaces only")
    context = f" {e.context}" if e.context else ""
    return Problem(place, f"not valid YAML:{context}{',' if context else ''} {e.problem}")


class _Reader:
    """Builds plain values from YAML events, noting places; PyYAML's parser is iterative, so only this recurses."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.keys: dict[KeyPath, Place] = {}
        self.values: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []
        self.events: Iterator[yaml.Event] = iter(())

    def read(self) -> dict[str, Any] | None:
        self.events = yaml.parse(self.source.text, yaml.SafeLoader)
        next(self.events)  # stream start
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            raise _StopError(Problem(Place(self.source, 1, 1), "expected a mapping of keys to values, found nothing"))
        event = next(self.events)
        if not isinstance(event, yaml.MappingStartEvent):
            kind = "a list" if isinstance(event, yaml.SequenceStartEvent) else "text"
            if isinstance(event, yaml.AliasEvent):
                kind = "an alias"
            place = self._place(event)
            raise _StopError(Problem(place, f"expected a mapping of keys to values (`context: 4096`), found {kind}"))
        data = self._node(event, ())
        next(self.events)  # document end
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise _StopError(Problem(self._place(event), "expected one document, found a second"))
        assert isinstance(data, dict)
        return data

    def _place(self, event: yaml.Event) -> Place:
        start, end = event.start_mark, event.end_mark
        assert start is not None  # None only in events made by hand
        assert end is not None
        stop = end.column if end.line == start.line else len(self.source.line(start.line + 1).rstrip())
        return Place(self.source, start.line + 1, start.column + 1, max(1, stop - start.column))

    def _stop(self, event: yaml.Event, text: str) -> _StopError:
        return _StopError(Problem(self._place(event), text))

    def _node(self, event: yaml.Event, path: KeyPath) -> Any:
        place = self._place(event)
        self.values[path] = place
        if isinstance(event, yaml.AliasEvent):
            raise self._stop(event, "aliases are not used here; write the value out")
        if getattr(event, "anchor", None):
            raise self._stop(event, "anchors are not used here; remove it")
        if (tag := getattr(event, "tag", None)) is not None:
            raise self._stop(event, f"tags are not used here; remove {tag!r}")
        if len(path) > MAX_DEPTH:
            raise self._stop(event, f"expected at most {MAX_DEPTH} levels of nesting, found more")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                items.append(self._node(event, (*path, len(items))))
            return items
        assert isinstance(event, yaml.ScalarEvent)
        return self._scalar(event, place)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._stop(event, "expected a key of plain text, found a list, a mapping or an alias")
            if event.anchor or event.tag:
                raise self._stop(event, "anchors and tags are not used here; remove it")
            key, place = event.value, self._place(event)
            repeated = key in out
            if repeated:
                first = self.keys[(*path, key)]
                text = f"the key {key!r} stands here again (first on line {first.line}); keep one of them"
                self.problems.append(Problem(place, text))
            # The value of a repeated key is still read, under a path that no other value has.
            value = self._node(next(self.events), (*path, key, -1) if repeated else (*path, key))
            if not repeated:
                out[key], self.keys[(*path, key)] = value, place
        return out

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> Any:
        text: str = event.value
        if any(0xD800 <= ord(c) < 0xE000 for c in text):
            self.problems.append(Problem(place, "found half a surrogate pair, which is no character; remove it"))
            return ""
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in _WORDS:
            return _WORDS[text]
        if text in _WORDS_BOOL:
            return _WORDS_BOOL[text]
        if _INT.match(text):
            return int(text)
        if _NUMBER.match(text) or _NOT_FINITE.match(text):
            number = math.inf if _NOT_FINITE.match(text) else float(text)
            if not math.isfinite(number):
                self.problems.append(Problem(place, f"expected a finite number, found {text}"))
                return 0
            return number
        return text


def read(path: Path, name: str | None = None) -> Document:
    """The mapping in a file (see `parse`); raises OSError where the file cannot be read."""
    with path.open("rb") as f:
        return parse(f.read(MAX_BYTES + 1), name or str(path))
