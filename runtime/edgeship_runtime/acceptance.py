"""The acceptance test that lies beside the weights: conversations with their tokens, prompts with golden logits.

Read as strictly as the manifest: whatever is wrong with a file is an ArtifactError that names the member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.errors import ArtifactError, TemplateError, UsageError
from edgeship_runtime.manifest import Manifest, artifact_file
from edgeship_runtime.strict import Fields, read_json, show
from edgeship_runtime.tolerances import MAX_TIE_TOLERANCE

CHATS = "acceptance/chats.json"
GOLDEN = "acceptance/golden.json"
FIDELITY = "acceptance/fidelity.json"
"""As GOLDEN, of the float model at some of its positions, with log probabilities for logits; not in every artifact."""
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
    gguf_token_ids: tuple[int, ...]
    """By llama.cpp, since it makes special tokens of some plain ones, such as `</s>`; else as `token_ids`."""


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
    """All golden cases; tokens may part where golden logits differ by less than `tie_tolerance` * std.

    `kl_budget`: what the KL divergence from these cases may be on average, in nats.
    """

    cases: tuple[GoldenCase, ...]
    tie_tolerance: float
    kl_budget: float = 0.0

    @property
    def context(self) -> int:
        """Tokens a KV cache needs room for."""
        return max((len(case.tokens) for case in self.cases), default=1)


@dataclass(frozen=True)
class FloatModel:
    """An engine beside the float model: positions, those with the same best token, mean KL divergence, its budget."""

    positions: int
    equal: int
    kl_mean: float
    kl_budget: float


class FloatComparison:
    """An engine's logits beside the float model's predictions, where the artifact has them."""

    def __init__(self, golden: Golden) -> None:
        self._places = {(case.name, place.index): place for case in golden.cases for place in case.positions}
        self._budget = golden.kl_budget
        self._kl: list[float] = []
        self._equal = 0

    def add(self, case: str, index: int, logits: NDArray[np.float32]) -> None:
        """Compare the logits `[vocab]` after token `index` of a case."""
        if place := self._places.get((case, index)):
            self._kl.append(divergence(place, logits))
            self._equal += int(logits.argmax()) == place.top_ids[0]

    def result(self) -> FloatModel | None:
        """What was found; None where nothing was compared."""
        count = len(self._kl)
        return FloatModel(count, self._equal, round(sum(self._kl) / count, 6), self._budget) if count else None


def divergence(place: Position, logits: NDArray[np.float32]) -> float:
    """KL divergence in nats of logits `[vocab]` from the tokens of a FIDELITY position and all others as one."""
    wide = np.exp(logits.astype(np.float64) - logits.max())
    p, q = np.exp(place.top_logits), wide[list(place.top_ids)] / wide.sum()
    p, q = (np.maximum(np.append(each, 1 - each.sum()), 1e-30) for each in (p, q))
    return float(p @ np.log(p / q))


def read_chats(directory: Path, manifest: Manifest) -> tuple[ChatCase, ...]:
    """Read `acceptance/chats.json`; raises ArtifactError."""
    top = _open(directory, manifest, CHATS, ("schema", "cases"))
    return tuple(
        _read_chat(item, top, f"cases[{i}]", manifest.model.vocab_size)
        for i, item in enumerate(top.items("cases", _MAX_CASES))
    )


def _read_chat(item: object, top: Fields, path: str, vocab: int) -> ChatCase:
    given = ("name", "messages", "tools", "enable_thinking", "add_generation_prompt")
    case = top.inner(item, path, given, ("rendered", "token_ids", "gguf_token_ids", "error"))
    if "error" in case:
        case.prose("error", limit=_MAX_TEXT)
        if "rendered" in case or "token_ids" in case or "gguf_token_ids" in case:
            raise case.error("error", "expected either an error or rendered text, found both")
    ids = () if "error" in case else case.integers("token_ids", 0, vocab - 1, limit=_MAX_TOKENS)
    other = case.integers("gguf_token_ids", 0, vocab - 1, limit=_MAX_TOKENS) if "gguf_token_ids" in case else ids
    return ChatCase(
        name=case.text("name"),
        messages=case.items("messages", 10_000),
        tools=case.items("tools", 1000) if "tools" in case else None,
        enable_thinking=case.flag("enable_thinking") if "enable_thinking" in case else None,
        add_generation_prompt=case.flag("add_generation_prompt"),
        rendered=None if "error" in case else case.prose("rendered", limit=_MAX_TEXT),
        token_ids=ids,
        gguf_token_ids=other,
    )


def render_problem(template: ChatTemplate, case: ChatCase) -> str:
    """How a conversation's text differs from the sealed one; empty when it does not."""
    try:
        text = template.render(
            case.messages, case.tools, case.enable_thinking, case.add_generation_prompt, date_string=DATE_STRING
        )
    except (TemplateError, UsageError) as error:
        return "" if case.rendered is None else error.message
    return "" if text == case.rendered else f"the text differs{_first_difference(text, case.rendered)}"


def _first_difference(found: str, expected: str | None) -> str:
    if expected is None:
        return ": it was refused when the artifact was sealed"
    at = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    return f" at character {at}: expected {show(expected[at : at + 20])}, found {show(found[at : at + 20])}"


def read_golden(directory: Path, manifest: Manifest, name: str = GOLDEN) -> Golden:
    """Read `acceptance/golden.json`, or FIDELITY; raises ArtifactError."""
    more = ("kl_budget",) if name == FIDELITY else ()
    top = _open(directory, manifest, name, ("schema", "made_with", "tie_tolerance", "cases", *more))
    top.prose("made_with", limit=1000)
    cases = top.items("cases", _MAX_CASES)
    golden = Golden(
        cases=tuple(_read_case(item, top, f"cases[{i}]", manifest.model.vocab_size) for i, item in enumerate(cases)),
        tie_tolerance=top.number("tie_tolerance", 0, MAX_TIE_TOLERANCE),
        kl_budget=top.number("kl_budget", 0, _MAX_LOGIT) if more else 0.0,
    )
    if name == GOLDEN and not all(case.positions for case in golden.cases):
        raise top.error("cases", "expected positions to compare in each")
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
