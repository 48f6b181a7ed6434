"""Tokens to text as they come: whole characters only, and never a stop string or a part of one."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer(Protocol):
    """Text of a growing list of tokens; what all calls return, joined, is the text of the whole list."""

    def push(self, token: int) -> str:
        """Add a token; return the characters that are now complete."""

    def flush(self) -> str:
        """Return what is left at the end: broken characters come out as U+FFFD."""


class ByteDetokenizer:
    """For byte-level tokenizers: a token is bytes, and bytes become characters as UTF-8 completes them.

    `bytes_of` gives a token's bytes, empty for tokens that are not printed.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Add a token; return the characters that are now complete."""
        return self._decoder.decode(self._bytes_of(token))

    def flush(self) -> str:
        """Return U+FFFD when the last character is incomplete."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class WindowDetokenizer:
    """For any tokenizer: decodes the tokens since the last complete character, after a few that set the scene.

    Decoders look at neighbours (a leading space is stripped, bytes join to characters), so a token's text is what
    it adds to the text of the tokens before it. Exact where a decoder looks back no further than `_SCENE` pieces of
    text and incomplete characters decode to U+FFFD at the end. Bytes that never become a character may come out as
    another number of U+FFFD than `decode` of the whole gives.
    """

    _SCENE = 4

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._scene: list[list[int]] = []  # tokens of the last pieces of text; cut only where characters are whole
        self._fresh: list[int] = []

    def push(self, token: int) -> str:
        """Add a token; return the characters that are now complete."""
        self._fresh.append(token)
        text = self._added()
        return "" if text.endswith(REPLACEMENT) else self._emit(text)

    def flush(self) -> str:
        """Return what was held back."""
        return self._emit(self._added())

    def _added(self) -> str:
        scene = [token for piece in self._scene for token in piece]
        return self._decode(scene + self._fresh)[len(self._decode(scene)) :]

    def _emit(self, text: str) -> str:
        if text:  # tokens without text (special ones) wait for the next that has some: alone they set no scene
            self._scene = [*self._scene, self._fresh][-self._SCENE :]
            self._fresh = []
        return text


class StopFilter:
    """Lets text through up to the first stop string to be completed, and holds back what may yet become one.

    The result does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None
        """The stop string found; from then on nothing comes out."""

    def push(self, text: str) -> str:
        """Add text; return what is safe to show."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        found = [(place + len(stop), place, stop) for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            _, place, self.matched = min(found)  # completed first; of those, the longest
            self._held = ""
            return held[:place]
        keep = self._may_become(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """Return what was held back: no stop string came of it."""
        text, self._held = self._held, ""
        return text

    def _may_become(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0


class Writer:
    """Tokens in, text out: a detokenizer, a stop filter, and what waits to be given out."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._filter = StopFilter(stops)
        self.tokens: list[int] = []
        """All tokens so far."""
        self.ready = ""
        """Text that may be given out now."""
        self._taken = 0
        self._parts: list[str] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed."""
        return self._filter.matched is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that was completed."""
        return self._filter.matched

    @property
    def waiting(self) -> bool:
        """Whether there are tokens that no piece has taken yet."""
        return self._taken < len(self.tokens)

    @property
    def text(self) -> str:
        """All text so far, stop string and held text left out."""
        return "".join(self._parts)

    def push(self, token: int) -> None:
        """Add a token."""
        self.tokens.append(token)
        self._add(self._filter.push(self._detokenizer.push(token)))

    def finish(self) -> None:
        """Let go of what was held back: no token will come."""
        self._add(self._filter.push(self._detokenizer.flush()))
        self._add(self._filter.flush())

    def _add(self, text: str) -> None:
        self.ready += text
        self._parts.append(text)

    def take(self) -> tuple[str, tuple[int, ...]]:
        """Text that is ready and the tokens since the last time."""
        taken = self.ready, tuple(self.tokens[self._taken :])
        self._taken, self.ready = len(self.tokens), ""
        return taken
