"""The text that models are compared on, as token ids cut into windows.

As in llama.cpp's perplexity tool each window is read from its beginning, and only what follows its first half is
judged, so that every prediction has some context.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeship.errors import UsageError

TINY = Path(__file__).parents[1] / "tiny" / "checkpoint"
SHORTEST = 8
MOST_BYTES = 1 << 30
CHARACTERS = 16  # of text a token is taken to stand for at most, before all of it is tokenized
TOPIC = 2000  # characters of each help page: many pages are better than a few whole ones


@dataclass(frozen=True)
class Windows:
    """Token ids of a text and where they come from."""

    ids: NDArray[np.int64]  # [windows, length]
    source: str
    sha256: str  # of the text

    @property
    def length(self) -> int:
        return int(self.ids.shape[1])

    @property
    def first(self) -> int:
        """The first position of a window whose prediction is judged."""
        return self.length // 2

    @property
    def judged(self) -> int:
        """Positions judged in a window: the last has no token after it."""
        return self.length - 1 - self.first

    @property
    def positions(self) -> int:
        return len(self.ids) * self.judged

    def place(self, position: int) -> tuple[int, int]:
        """The window of a judged position, and the index in it."""
        window, offset = divmod(position, self.judged)
        return window, self.first + offset

    def target(self, position: int) -> int:
        """The token that follows a judged position."""
        window, index = self.place(position)
        return int(self.ids[window, index + 1])

    def few(self, tokens: int) -> Windows:
        """The first windows, of so many tokens together, one at least."""
        return Windows(self.ids[: max(1, tokens // self.length)], self.source, self.sha256)


def read_windows(tokenizer: Tokenizer, text: Path | None, tokens: int, length: int, checkpoint: Path) -> Windows:
    """The first `tokens` tokens of a text as whole windows of `length`; without `text` one of Python's or the model's.

    A tokenizer that begins every text with a token of its own begins every window with it. Raises UsageError at a text
    that cannot be read or is too short.
    """
    name, content = (str(text), _read(text)) if text is not None else _own_text(checkpoint, tokens)
    ids = _encode(tokenizer, content, tokens)
    length = min(length, tokens)
    count = min(tokens, len(ids)) // length
    if length < SHORTEST or not count:
        wanted = max(length, SHORTEST)
        raise UsageError(
            f"{name}: expected text of at least {wanted} tokens, found {len(ids)} of {tokens} asked for.",
            hint="give a longer text (--text, accept.text), more tokens, or a shorter --window",
        )
    cut = np.array(ids[: count * length], np.int64).reshape(count, length)
    begin = tokenizer.encode("", add_special_tokens=True).ids
    if begin:
        cut[:, 0] = begin[0]
    return Windows(cut, name, hashlib.sha256(content.encode()).hexdigest())


def _read(text: Path) -> str:
    try:
        if text.stat().st_size > MOST_BYTES:
            raise UsageError(f"{text}: expected a text of at most 1 GB.", hint="cut a part of it out")
        return text.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "give plain text, or convert it with iconv"
        raise UsageError(f"{text}: expected UTF-8 text, found another byte at {error.start}.", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        hint = "check the path and its permissions"
        raise UsageError(f"{text}: cannot be read: {reason}.", hint=hint) from None


def _encode(tokenizer: Tokenizer, content: str, tokens: int) -> list[int]:
    for part in (content[: tokens * CHARACTERS], content):
        ids = [int(i) for i in tokenizer.encode(part, add_special_tokens=False).ids]
        if len(ids) >= tokens or len(part) == len(content):
            break
    return ids


def _own_text(checkpoint: Path, tokens: int) -> tuple[str, str]:
    """Text at hand on every machine: held-out text for the tiny model, which knows little else, or Python's help."""
    if checkpoint.resolve() == TINY.resolve():
        from edgeship.tiny.text import samples

        made, content = samples(1, "held-out"), ""
        while len(content) < tokens * CHARACTERS:
            content += next(made)
        return "the tiny model's held-out text", content
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UsageError(
            "expected a text to compare on, found none: this Python comes without its help pages.",
            hint="give a plain text file: --text FILE, or accept.text in the recipe",
        ) from None
    return "Python's help pages", "\n\n".join(topics[name][:TOPIC] for name in sorted(topics))
