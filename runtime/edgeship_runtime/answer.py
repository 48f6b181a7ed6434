"""What an answer is: pieces while it comes, the whole at its end, and what it took."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from edgeship_runtime.errors import UsageError

FinishReason = Literal["stop", "length", "context", "cancelled"]
"""An end token or stop string; `max_tokens` reached; the context full; `Stream.cancel`."""


@dataclass(frozen=True)
class Stats:
    """What one answer took; seconds of wall time, the reader's own time between pieces not counted."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, found in the KV cache and not evaluated again."""
    tokens: int
    """Generated, without the end token."""
    ttft_s: float
    """From the call (template and tokenizer included) to the first token."""
    prefill_s: float
    decode_s: float
    """All tokens after the first."""
    steps: int
    """Tokens evaluated in `decode_s`."""

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens evaluated per second; 0 when not known."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second after the first; 0 when there was no second one."""
        return self.steps / self.decode_s if self.decode_s > 0 else 0.0

    def to_json(self) -> dict[str, object]:
        """All fields and the two rates, rounded."""
        rates = {"prefill_tokens_per_s": self.prefill_tokens_per_s, "decode_tokens_per_s": self.decode_tokens_per_s}
        return {name: round(value, 4) for name, value in (asdict(self) | rates).items()}


@dataclass(frozen=True)
class Piece:
    """Text that is ready, whole characters and never part of a stop string, and the tokens taken for it."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """A finished answer; `tokens` are all that were generated except the end token."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop_string: str | None
    stats: Stats

    def to_json(self) -> dict[str, object]:
        """Plain values for `json.dumps`."""
        return {**asdict(self), "tokens": list(self.tokens), "stats": self.stats.to_json()}


@dataclass(frozen=True)
class Label:
    """What a classifier says of a text, or of the token at its characters `start` to `end`.

    `score` is from 0 to 1, or the value that a regression gives.
    """

    name: str
    score: float
    start: int | None = None
    end: int | None = None


class Stream(Iterator[Piece]):
    """An answer on its way: iterate for the pieces, then read `result`. Nothing runs before the first piece is asked.

    Close it (or leave its `with` block) to stop early; the model is free for the next call then.
    """

    def __init__(self, pieces: Generator[Piece, None, Result], cancelled: threading.Event | None = None) -> None:
        self._pieces = pieces
        self._cancelled = cancelled or threading.Event()
        self._result: Result | None = None

    def __next__(self) -> Piece:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if end.value is not None:
                self._result = end.value
            raise StopIteration from None

    def __aiter__(self) -> AsyncGenerator[Piece, None]:
        """The same in asyncio; see `talk.aio.iterate`."""
        from edgeship_runtime.talk.aio import iterate

        return iterate(self)

    @property
    def result(self) -> Result:
        """The whole answer; raises UsageError while pieces are still to come, or when it was closed early."""
        if self._result is None:
            raise UsageError("the answer is not finished", hint="iterate over the stream to its end first")
        return self._result

    def cancel(self) -> None:
        """End the answer before its next token; may be called from any thread, while another one iterates."""
        self._cancelled.set()

    def close(self) -> None:
        """Stop generating; a second call does nothing."""
        self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Clock:
    """Measures laps of wall time."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed
