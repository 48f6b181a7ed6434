"""Calibration text as token sequences: from plain text, or from conversations through the model's template."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from edgeship.calibrate.pieces import Pieces
from edgeship.calibration import Calibration
from edgeship.errors import RecipeError
from edgeship.text import TextSide
from edgeship.tokenizer import TEMPLATE, TOKENIZER_CONFIG
from edgeship_runtime.acceptance import DATE_STRING
from edgeship_runtime.chat import SPECIAL_TOKENS, ChatTemplate
from edgeship_runtime.errors import EdgeshipRuntimeError

Tokens = list[list[int]]

MOST_BYTES = 256 << 20  # of a calibration file: it is read through, however few tokens are looked at
LONGEST, SHORTEST_CHAT = 1 << 22, len('{"messages":[]}')  # characters of a conversation's line
CHARACTERS = 16  # that a token stands for at most, in the long run
PIECE = 1 << 16  # characters tokenized at a time: the tokenizer's own records take a hundred bytes per token
SHORTEST = 16  # tokens of a sequence worth looking at


def read_tokens(section: Calibration, text: TextSide) -> Tokens:
    """Sequences of at most `section.length` tokens, as many as the section asks for and its file holds.

    Each begins as the tokenizer begins a text. Raises RecipeError where the file cannot be read, is not what it should
    be, or holds fewer than 16 tokens.
    """
    assert section.file is not None
    written = _read(section.file)
    tokenizer = text.tokenizer
    start: list[int] = tokenizer.encode("", add_special_tokens=True).ids if section.text else []
    length, rng = section.length - len(start), np.random.default_rng(section.seed)
    if section.chats:
        chats = _Chats(section.file, written, text)
        found = _cut(chats.ids(rng, section.sequences * length), length)
    elif len(written) > section.sequences * length * CHARACTERS * 2:
        found = list(_from_places(tokenizer, written, section.sequences, length, rng))
    else:
        cut = _cut(_encode(tokenizer, written), length)
        found = [cut[i] for i in sorted(rng.permutation(len(cut))[: section.sequences])]
    if sum(map(len, found)) < SHORTEST:
        raise RecipeError(
            f"{section.file}: expected at least {SHORTEST} tokens to calibrate with, found {sum(map(len, found))}.",
            hint="give a text of some thousand words like those the model will see",
        )
    return [start + each for each in found]


def digest(tokens: Sequence[Sequence[int]]) -> str:
    """The sha256 of token sequences: their ids as little-endian 32-bit numbers, each sequence behind its length."""
    out = hashlib.sha256()
    for each in tokens:
        out.update(np.asarray([len(each), *each], "<u4").tobytes())
    return out.hexdigest()


def _read(file: Path) -> Pieces:
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise RecipeError(
                f"{file}: expected at most {MOST_BYTES >> 20} MiB of calibration text, found {size >> 20} MiB.",
                hint="cut a part out of it: some thousand tokens are looked at",
            )
        return Pieces(file)
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 (byte {error.start})"
    raise RecipeError(f"{file}: expected calibration text, but: {reason}.", hint="give a UTF-8 text file")


class _Chats:
    """The conversations of a file, one on each line that is not blank, as the model's template renders them."""

    def __init__(self, file: Path, written: Pieces, text: TextSide) -> None:
        self._file, self._written, self._tokenizer = file, written, text.tokenizer
        template = _template(text)
        if template is None:
            raise RecipeError(
                f"{file}: expected a model with a chat template to render conversations with, found none.",
                hint="give plain text: `calibration: {text: FILE}`",
            )
        self._template = template
        self._starts, self._ends = array("I"), array("I")  # characters of the file; a line of JSON may be long
        for a, b in _lines(written):
            self._starts.append(a)
            self._ends.append(b)
            if b - a < SHORTEST_CHAT:
                self._rendered(a, b)  # which says why it is none: there may be more of them than memory has room for

    def ids(self, rng: np.random.Generator, count: int) -> array[int]:
        """The first `count` ids of the conversations in an order drawn by `rng`, or as many as there are."""
        out = array("I")
        for i in rng.permutation(len(self._starts)):
            if len(out) >= count:
                break
            out.extend(_encode(self._tokenizer, self._rendered(self._starts[i], self._ends[i])))
        return out[:count]

    def _rendered(self, a: int, b: int) -> str:
        """The conversation in the characters `[a, b)`."""
        try:
            if b - a > LONGEST:
                raise ValueError(f"{b - a} characters, of at most {LONGEST}")
            chat = json.loads(self._written[a:b])
            if not isinstance(chat, dict) or not isinstance(chat.get("messages"), list):
                raise ValueError('no object with a list of "messages"')
            said = self._template.render(
                chat["messages"], chat.get("tools"), add_generation_prompt=False, date_string=DATE_STRING
            )
            said.encode()  # JSON may hold half a character, which no tokenizer takes
            return said
        except (ValueError, RecursionError, EdgeshipRuntimeError) as error:
            reason = error.message if isinstance(error, EdgeshipRuntimeError) else str(error)
            number = 1 + sum(self._written[at : min(at + PIECE, a)].count("\n") for at in range(0, a, PIECE))
            raise RecipeError(
                f"{self._file}:{number}: expected a conversation, but: {reason}.",
                hint='a line is like {"messages": [{"role": "user", "content": "Hello"}, ...]}',
            ) from None


def _lines(written: Pieces) -> Iterator[tuple[int, int]]:
    """The places of the lines that are not blank; JSON's strings may hold what else Unicode calls a line's end."""
    begin, at, blank = 0, 0, True
    for piece in written:
        a = 0
        while (b := piece.find("\n", a)) >= 0:
            if not blank or piece[a:b].strip():
                yield begin, at + b
            a, begin, blank = b + 1, at + b + 1, True
        blank = blank and not piece[a:].strip()
        at += len(piece)
    if not blank:
        yield begin, at


def _template(text: TextSide) -> ChatTemplate | None:
    if TEMPLATE not in text.files:
        return None
    named = json.loads(text.files.get(TOKENIZER_CONFIG, b"{}"))
    special = {name: token for name in SPECIAL_TOKENS if (token := _content(named.get(name)))}
    return ChatTemplate(text.files[TEMPLATE].decode(), special)


def conversation_start(text: TextSide) -> list[int]:
    """The token that a conversation begins with; none where the model has no template for one."""
    template = _template(text)
    try:
        said = template.render([{"role": "user", "content": "Hello"}], date_string=DATE_STRING) if template else ""
    except EdgeshipRuntimeError:  # a template of other roles
        return []
    return list(text.tokenizer.encode(said, add_special_tokens=False).ids[:1])


def _content(token: object) -> str:
    """A special token of tokenizer_config.json, written as text or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _encode(tokenizer: Tokenizer, text: str | Pieces) -> array[int]:
    """The ids of a text, which is tokenized in pieces that end with a line where there is one."""
    out, at = array("I"), 0
    while at < len(text):
        piece = text[at : at + PIECE]
        end = piece.rfind("\n") + 1 or PIECE
        out.extend(tokenizer.encode(piece[:end], add_special_tokens=False).ids)
        at += end
    return out


def _cut(ids: array[int], length: int) -> Tokens:
    """Whole sequences of `length`, or what there is where it makes none."""
    whole = [list(ids[a : a + length]) for a in range(0, len(ids) - length + 1, length)]
    return whole or ([list(ids)] if ids else [])


def _from_places(
    tokenizer: Tokenizer, text: Pieces, count: int, length: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """A sequence from each of `count` equal parts of a long text, beginning with a line where there is one."""
    part, reach = len(text) // count, length * CHARACTERS
    for i in range(count):
        at = i * part + int(rng.integers(part - reach))
        near = text[at : at + reach // 2 + reach]
        line = near.find("\n", 0, reach // 2) + 1
        yield list(_encode(tokenizer, near[line:][:reach])[:length])
