"""What an answer must look like, and the masks of tokens that keep it so, by llguidance (extra `[structured]`).

Grammars are llguidance's dialect of Lark, with `%json {schema}`. JSON is written as Python's `json.dumps` does: white
space that may be repeated without end is where small models get lost.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.chat import plain
from edgeship_runtime.errors import EngineError, UsageError, missing_package
from edgeship_runtime.strict import show
from edgeship_runtime.talk.schema import exact

if TYPE_CHECKING:
    import llguidance

    from edgeship_runtime.model import Model
    from edgeship_runtime.tokens import TextTokens

MAX_GRAMMAR = 1 << 18
"""Characters of a schema or regular expression."""
MAX_CALLS = 16
"""Calls of an answer that must call; a small model may know no end."""
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_FORMATS = "text, json_object, json_schema and regex"


def format_rule(response_format: Mapping[str, Any] | None) -> str | None:
    """What the answer must be, as the right side of a grammar's rule; None for any text.

    `response_format` is OpenAI's, or `{"type": "regex", "pattern": "..."}`. Raises UsageError for what it cannot be;
    what is wrong inside of a schema or an expression `Matcher` finds.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise UsageError("response_format: expected an object", hint='{"type": "json_object"}')
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return json_rule({"type": "object"})
    if kind == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if not isinstance(schema, Mapping | bool):
            hint = '{"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}'
            raise UsageError("response_format.json_schema.schema: expected a JSON schema", hint=hint)
        return json_rule(schema)
    if kind == "regex":
        return _regex_rule(response_format.get("pattern"))
    raise UsageError(f"response_format.type: expected {_FORMATS}, found {show(kind)}")


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """The rule for JSON that a schema describes; raises UsageError for one that is too long or cannot be enforced."""
    members = {} if schema is True else {"anyOf": []} if schema is False else exact(plain(schema, "schema"))
    try:
        text = json.dumps(members | {"x-guidance": _SPACING}, allow_nan=False)
    except ValueError as error:
        raise UsageError(f"schema: not JSON ({error})") from None
    return f"%json {_short(text, 'the schema')}"


def _regex_rule(pattern: object) -> str:
    if not isinstance(pattern, str) or not pattern:
        raise UsageError("response_format.pattern: expected a regular expression")
    escaped = re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], pattern).replace("\n", "\\n")
    return f"/{_short(escaped, 'the regular expression')}/"


def _short(text: str, what: str) -> str:
    if len(text) > MAX_GRAMMAR:
        raise UsageError(f"{what} has {len(text)} characters; at most {MAX_GRAMMAR} are read")
    return text


def grammar(answer: str | None, call_rules: Sequence[str], *, several: bool = True) -> str:
    """A whole grammar: the answer's rule, or one or more tool calls, or either where both are given."""
    lines = []
    if call_rules:
        lines.append('call: "<tool_call>\\n" body "\\n</tool_call>"')
        lines.append("body: " + " | ".join(f"tool{place}" for place in range(len(call_rules))))
        lines += [f"tool{place}: {rule}" for place, rule in enumerate(call_rules)]
    if answer is not None:
        lines.append(f"answer: {answer}")
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if several else ""
    calls = f"call{more}" if call_rules else ""
    return "\n".join(["start: " + " | ".join(each for each in (answer and "answer", calls) if each), *lines])


class Matcher:
    """Follows one answer through a grammar."""

    def __init__(self, model: Model, text: str) -> None:
        """Compile the grammar; raises UsageError for a grammar that is wrong, DependencyError without llguidance."""
        vocabulary = _vocabulary(model)
        import llguidance

        self._size = model.engine.vocab_size
        self._inner = llguidance.LLMatcher(vocabulary, text, log_level=0)
        self._mask()  # a grammar that nothing fits shows only now

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow."""
        return bool(self._inner.is_stopped())

    def restrict(self, scores: NDArray[np.float32]) -> None:
        """Set the scores [vocab_size] of tokens that may not come next to -inf; raises UsageError at its limits."""
        allowed = np.unpackbits(self._mask(), count=self._size, bitorder="little")
        np.copyto(scores, -np.inf, where=allowed == 0)

    def consume(self, tokens: Sequence[int]) -> None:
        """Take the next tokens; raises EngineError where the grammar forbids one, UsageError at its limits."""
        allowed = self._inner.validate_tokens(list(tokens)) == len(tokens)
        if self._inner.consume_tokens(list(tokens)):
            return
        if allowed:  # they fit, and llguidance cannot follow
            raise self._refused()
        raise EngineError(f"the answer left the form it was kept to: {self._reason()}")

    def _mask(self) -> NDArray[np.uint8]:
        """A bit for each token, the lowest of a byte first."""
        mask = b"" if self._inner.is_error() else self._inner.compute_bitmask()
        if self._inner.is_error():
            raise self._refused()
        return np.frombuffer(mask, np.uint8)

    def _refused(self) -> UsageError:
        hint = "the schema or expression is wrong, too large, or uses a keyword that llguidance does not enforce"
        return UsageError(f"the answer cannot be kept to what was asked for: {self._reason()}", hint=hint)

    def _reason(self) -> str:
        """llguidance's reason, without the state of its parser and the place in our grammar."""
        first, *rest = str(self._inner.get_error()).partition("<state>")[0].split("\n")
        # What is wrong with an expression comes after a drawing of several lines.
        rest = [line.removeprefix("error: ") for line in rest if line.startswith("error: ")]
        return _PLACE.sub("", " ".join(" ".join([first, *rest]).split()))[:300]


class _Vocabulary:
    """What llguidance asks of a tokenizer; see its `TokenizerWrapper`."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], eos: int, tokenizer: TextTokens) -> None:
        self.tokens = tokens
        self.eos_token_id = eos
        self.special_token_ids: list[int] = []
        self._tokenizer = weakref.ref(tokenizer)  # which keeps this

    def __call__(self, text: bytes | str) -> list[int]:
        tokenizer = self._tokenizer()
        assert tokenizer is not None, "a matcher outlived its model"
        return tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


# By tokenizer, which the lanes of a model share, and what else it depends on.
_known: WeakKeyDictionary[TextTokens, dict[tuple[int, ...], llguidance.LLTokenizer]] = WeakKeyDictionary()
_lock = threading.Lock()


def _vocabulary(model: Model) -> llguidance.LLTokenizer:
    """The model's tokens as llguidance wants them, made once: half a second for a vocabulary of 150,000."""
    try:
        import llguidance
    except ImportError:
        raise missing_package("llguidance", "structured", "an answer of a given form") from None
    size, ends = model.engine.vocab_size, list(model.manifest.model.eos_token_ids)
    if not ends:
        raise UsageError("the model has no end token, so an answer of a given form could not end")
    with _lock:
        made = _known.setdefault(model.tokenizer, {})
        found = made.get((size, *ends))
        if found is None:
            spelled = model.tokenizer.spellings()
            if isinstance(spelled, list):
                # The table of a model may have more rows than its tokenizer has tokens.
                padded = [*spelled, *[b""] * (size - len(spelled))][:size]
                spelled = cast(Any, _Vocabulary(padded, ends[0], model.tokenizer))
            slices = llguidance.LLTokenizer.json_slices()
            found = llguidance.LLTokenizer(spelled, n_vocab=size, eos_token=ends, slices=slices)
            made[size, *ends] = found
        return found
