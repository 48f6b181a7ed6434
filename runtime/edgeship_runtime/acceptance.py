"""The acceptance test that lies beside the weights: conversations with their tokens, prompts with golden logits.

Read as strictly as the manifest: whatever is wrong with a file is an ArtifactError that names the member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.manifest import Manifest, artifact_file
from edgeship_runtime.strict import Fields, read_json, show
from edgeship_runtime.tolerances import MAX_TIE_TOLERANCE

CHATS = "acceptance/chats.json"
GOLDEN = "acceptance/golden.json"
KNOWN_SCHEMAS = (1,)

DATE_STRING = "26 Jul 2024"
"""Given to every acceptance render: templates that print a date (Llama 3's) must render alike tomorrow."""

_MAX_BYTES = 1 << 24
_MAX_CASES = 1000
_MAX_TEXT = 1 << 22
_MAX_TOKENS = 1 << 20
_MAX_LOGIT = 1e6


@dataclass(frozen=True)
class ChatCase:
    """A conversation, the text its template gives (None where the template refuses it) and that text's token ids."""

    name: str
    messages: list[Any]
    tools: list[Any] | None
    enable_thinking: bool | None
    add_generation_prompt: bool
    rendered: str | None
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Position:
    """Golden logits after token `index`: the largest few, largest first, and the deviation of all at that place."""

    index: int
    top_ids: tuple[int, ...]
    top_logits: tuple[float, ...]
    std: float


@dataclass(frozen=True)
class GoldenCase:
    """A prompt with its golden continuation, and the positions to compare, in order."""

    name: str
    tokens: tuple[int, ...]
    positions: tuple[Position, ...]
    prompt: tuple[int, ...] = ()


@dataclass(frozen=True)
class Golden:
    """All golden cases; tokens may part where golden logits differ by less than `tie_tolerance` * std."""

    cases: tuple[GoldenCase, ...]
    tie_tolerance: float

    @property
    def context(self) -> int:
        """Tokens a KV cache needs room for."""
        return max((len(case.tokens) for case in self.cases), default=1)


def read_chats(directory: Path, manifest: Manifest) -> tuple[ChatCase, ...]:
    """Read `acceptance/chats.json`; raises ArtifactError."""
    top = _open(directory, manifest, CHATS, ("schema", "cases"))
    return tuple(
        _read_chat(item, top, f"cases[{i}]", manifest.model.vocab_size)
        for i, item in enumerate(top.items("cases", _MAX_CASES))
    )


def _read_chat(item: object, top: Fields, path: str, vocab: int) -> ChatCase:
    given = ("name", "messages", "tools", "enable_thinking", "add_generation_prompt")
    case = top.inner(item, path, given, ("rendered", "token_ids", "error"))
    if "error" in case:
        case.prose("error", limit=_MAX_TEXT)
        if "rendered" in case or "token_ids" in case:
            raise case.error("error", "expected either an error or rendered text, found both")
    return ChatCase(
        name=case.text("name"),
        messages=case.items("messages", 10_000),
        tools=case.items("tools", 1000) if "tools" in case else None,
        enable_thinking=case.flag("enable_thinking") if "enable_thinking" in case else None,
        add_generation_prompt=case.flag("add_generation_prompt"),
        rendered=None if "error" in case else case.prose("rendered", limit=_MAX_TEXT),
        token_ids=() if "error" in case else case.integers("token_ids", 0, vocab - 1, limit=_MAX_TOKENS),
    )


def read_golden(directory: Path, manifest: Manifest) -> Golden:
    """Read `acceptance/golden.json`; raises ArtifactError."""
    top = _open(directory, manifest, GOLDEN, ("schema", "made_with", "tie_tolerance", "cases"))
    top.prose("made_with", limit=1000)
    cases = top.items("cases", _MAX_CASES)
    golden = Golden(
        cases=tuple(_read_case(item, top, f"cases[{i}]", manifest.model.vocab_size) for i, item in enumerate(cases)),
        tie_tolerance=top.number("tie_tolerance", 0, MAX_TIE_TOLERANCE),
    )
    if golden.context > manifest.model.context_length:
        found = f"a case of {golden.context} tokens does not fit the model's {manifest.model.context_length}"
        raise top.error("cases", found)
    return golden


def _read_case(item: object, top: Fields, path: str, vocab: int) -> GoldenCase:
    case = top.inner(item, path, ("name", "prompt_ids", "continuation", "positions"))
    prompt, more = (case.integers(name, 0, vocab - 1, limit=_MAX_TOKENS) for name in ("prompt_ids", "continuation"))
    if not prompt:
        raise case.error("prompt_ids", "expected at least one token")
    tokens = (*prompt, *more)
    positions: list[Position] = []
    for i, each in enumerate(case.items("positions", len(tokens))):
        least = positions[-1].index + 1 if positions else 0
        positions.append(_read_position(each, case, f"positions[{i}]", (least, len(tokens) - 1), vocab))
    return GoldenCase(case.text("name"), tokens, tuple(positions), prompt)


def _read_position(item: object, case: Fields, path: str, span: tuple[int, int], vocab: int) -> Position:
    place = case.inner(item, path, ("index", "top_ids", "top_logits", "std"))
    ids = place.integers("top_ids", 0, vocab - 1, limit=100)
    logits = place.numbers("top_logits", -_MAX_LOGIT, _MAX_LOGIT, limit=100)
    if not ids or len(set(ids)) != len(ids) or len(ids) != len(logits):
        raise place.error("top_ids", f"expected different ids, one for each of {len(logits)} logits")
    if list(logits) != sorted(logits, reverse=True):
        raise place.error("top_logits", "expected the largest first")
    return Position(place.integer("index", *span), ids, logits, place.number("std", 0, _MAX_LOGIT))


def _open(directory: Path, manifest: Manifest, name: str, members: Sequence[str]) -> Fields:
    path = artifact_file(directory, manifest, name)
    value = read_json(path, _MAX_BYTES)
    schema = Fields(value, str(path), "", ("schema",), open=True).value("schema")
    if isinstance(schema, bool) or schema not in KNOWN_SCHEMAS:
        known = ", ".join(map(str, KNOWN_SCHEMAS))
        raise ArtifactError(
            f"{path}: schema version {show(schema)}; this edgeship-runtime knows {known}",
            hint="a newer artifact needs a newer runtime: pip install --upgrade edgeship-runtime",
        )
    return Fields(value, str(path), "", members)
