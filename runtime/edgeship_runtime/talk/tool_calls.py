"""Tool calls read out of an answer while it streams, in the form of Qwen and Hermes.

A call is `<tool_call>`, a JSON object with `name` and `arguments`, `</tool_call>`. Source: the chat templates of
Qwen2.5 and Qwen3. A call is given out when it is complete, so that one which turns out to be malformed can stay text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from typing import Any, NoReturn

from edgeship_runtime.talk.events import Text, ToolCall
from edgeship_runtime.talk.tags import held_length

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_SPACE = "\n\r\t "
_NEXT = re.compile(re.escape(CLOSE) + r"\s*" + re.escape(OPEN))


class CallParser:
    """Splits an answer into text and calls; the result does not depend on how the text is cut."""

    def __init__(self, names: Collection[str]) -> None:
        """`names`: the tools that exist."""
        self._names = names
        self._held = ""
        self._inside = False
        self._looked = 0  # characters of the call in which no end was found
        self._spaced = False  # whether a call came last, after which white space means nothing

    def push(self, text: str) -> list[Text | ToolCall]:
        """Add text; return what is now known."""
        self._held += text
        found: list[Text | ToolCall] = []
        while self._step(found):
            pass
        return found

    def flush(self) -> list[Text | ToolCall]:
        """Return what was held back: nothing more will come."""
        found: list[Text | ToolCall] = []
        while self._inside:
            # Small models leave out the last tag.
            self._end_call(found, self._held, "", "the answer ended before </tool_call>")
            while self._step(found):
                pass
        text = self._held
        self._held = ""
        if text and not (self._spaced and not text.strip(_SPACE)):
            found.append(Text(text))
        return found

    def _step(self, found: list[Text | ToolCall]) -> bool:
        """Take one part of what is held; False when more text is needed."""
        return self._in_call(found) if self._inside else self._in_text(found)

    def _in_text(self, found: list[Text | ToolCall]) -> bool:
        place = self._held.find(OPEN)
        ready = self._held[: len(self._held) - held_length(self._held, OPEN)] if place < 0 else self._held[:place]
        text = ready.rstrip(_SPACE)  # white space before a call is none of the answer's
        if self._spaced and place < 0 and not text:
            return False
        if text:
            found.append(Text(ready[: len(text)]))
            self._spaced = False
        self._held = self._held[len(text) if place < 0 else place + len(OPEN) :]
        self._inside, self._looked = place >= 0, 0
        return self._inside

    def _in_call(self, found: list[Text | ToolCall]) -> bool:
        """Look for the end of the call; `</tool_call>` inside one of its strings is none."""
        place = self._held.find(CLOSE, self._looked)
        if place < 0:
            return False
        body, rest = self._held[:place], self._held[place + len(CLOSE) :]
        # In an open string it is part of it, unless another call follows: then the string was never closed.
        if not _open_string(body) or _NEXT.match(self._held, place):
            self._end_call(found, body, CLOSE, "", rest)
            return True
        if not rest.strip(_SPACE) or OPEN.startswith(rest.strip(_SPACE)):
            return False  # another call may follow
        self._looked = place + len(CLOSE)
        return True

    def _end_call(self, found: list[Text | ToolCall], body: str, close: str, unfinished: str, rest: str = "") -> None:
        self._held, self._inside, self._looked, self._spaced = rest, False, 0, True
        try:
            found.append(read_call(body, self._names))
        except _MalformedError as error:
            found.append(Text(f"{OPEN}{body}{close}", f"{unfinished}: {error}" if unfinished else str(error)))


class _MalformedError(Exception):
    """Why a call cannot be read."""


def read_call(body: str, names: Collection[str]) -> ToolCall:
    """The call that a JSON text is, for one of the tools called `names`; raises when it is none."""
    value = _parse(body.strip(_SPACE))
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise _MalformedError('expected an object with "name" and "arguments"')
    name, arguments = value["name"], value.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parse(arguments)
    if not isinstance(arguments, dict):
        raise _MalformedError('"arguments" is no object')
    if name not in names:
        raise _MalformedError(f"there is no tool {name[:100]!r}")
    return ToolCall(f"call_{secrets.token_hex(12)}", name, _dump(arguments))


def _dump(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        return json.dumps(value)
    return text


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise _MalformedError("it is nested too deep") from None
    except ValueError as error:  # a number of thousands of digits is one too
        raise _MalformedError(f"it is not JSON ({' '.join(str(error).split())[:200]})") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _open_string(text: str) -> bool:
    """Whether a JSON text breaks off inside a string."""
    inside = escaped = False
    for letter in text:
        if escaped:
            escaped = False
        elif inside and letter == "\\":
            escaped = True
        elif letter == '"':
            inside = not inside
    return inside
