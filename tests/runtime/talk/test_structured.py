"""Random schemas over an engine that babbles: every finished answer validates, by jsonschema; masks of tokens."""

from __future__ import annotations

import builtins
import gc
import json
import random
import re
import time
import weakref
from collections.abc import Sequence
from datetime import date
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

import tolerances
from edgeship_runtime.errors import DependencyError, EngineError, UsageError
from edgeship_runtime.model import Model
from edgeship_runtime.talk import converse
from edgeship_runtime.talk.schema import exact
from edgeship_runtime.talk.structured import Matcher, _vocabulary, grammar, json_rule
from edgeship_runtime.tokens import Tokenizer, read_tokenizer
from qwen_files import TOKENIZER, needs_tokenizer
from random_schemas import random_schema, validate
from scripted import USER, Engine, model_of, saying, tokenizer
from toy_artifact import VOCAB

ROWS = 151_936  # of Qwen2.5's and Qwen3's tables
SCHEMAS = 1000


def babbling(seed: int) -> Model:
    """A model that says anything, closing tokens a little more often than others, in a context of 2,000 tokens."""
    random_numbers = np.random.default_rng(seed)
    closers = tokenizer().encode('"}],0 ')

    def say(step: int, held: Sequence[int]) -> NDArray[np.float32]:
        logits = random_numbers.standard_normal(VOCAB).astype(np.float32)
        logits[closers] += 2
        return logits

    return model_of(Engine(say, context=2000))


def test_a_thousand_random_schemas_are_all_kept() -> None:
    pick = random.Random(1)
    model = babbling(1)
    longest = 0.0
    for _ in range(SCHEMAS):
        wanted = random_schema(pick)
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}}
        model.forget()
        started = time.monotonic()
        with converse(model, USER, response_format=asked, enable_thinking=False) as events:
            assert sum(1 for _ in events) > 0
        longest = max(longest, time.monotonic() - started)
        answer = events.answer
        assert answer.finish_reason == "stop", f"{wanted} ran to {len(answer.tokens)} tokens"
        validate(json.loads(answer.text), wanted)
    assert longest < tolerances.ANSWER_SECONDS


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        ("date", "2023-02-29"),
        ("date-time", "2024-02-29T24:00:00Z"),
        ("time", "12:60:00Z"),
        ("uuid", "12"),
        ("ipv4", "1.2.3.256"),
        ("ipv6", "::g"),
    ],
)
def test_the_validator_knows_formats(form: str, wrong: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(wrong, {"type": "string", "format": form})


REFUSED = {
    "not": {"type": "string"},
    "if": {"type": "string"},
    "uniqueItems": True,
    "contains": {"type": "integer"},
    "propertyNames": {"maxLength": 3},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {}},
    "dependencies": {"a": ["b"]},
    "unevaluatedProperties": False,
    "unevaluatedItems": False,
    "minProperties": 2,
    "$dynamicRef": "#x",
    "$recursiveRef": "#",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("place", ["#", "#/properties/a", "#/$defs/b/anyOf/1", "#/items/0", "#/additionalProperties"])
def test_a_keyword_that_is_not_enforced_is_refused_by_name_before_the_engine_runs(name: str, place: str) -> None:
    wanted: Any = {name: REFUSED[name]}
    for part in reversed(place.split("/")[1:]):
        wanted = {part: wanted} if not part.isdecimal() else [{}] * int(part) + [wanted]
    model = saying("x")
    asked = {"type": "json_schema", "json_schema": {"schema": wanted}}
    with pytest.raises(UsageError, match=f"{re.escape(place)} uses {re.escape(name)}, which is not enforced"):
        converse(model, USER, response_format=asked)
    assert model.engine.length == 0


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"$ref": "http://localhost/x"}, 'refers to "http://localhost/x"'),
        ({"properties": {"a": {"$ref": "#anchor"}}}, "#/properties/a refers to"),
        ({"$ref": 3}, "refers to 3"),
        ({"$ref": "#/$defs/none"}, "cannot be kept"),
        ({"type": "string", "format": "iri"}, "Unknown format: iri"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable schema"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "integer", "multipleOf": 999_999_937}, "fuel exhausted"),
        (False, "Unsatisfiable schema"),
    ],
)
def test_other_schemas_that_cannot_be_kept(wanted: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        converse(saying("x"), USER, response_format={"type": "json_schema", "json_schema": {"schema": wanted}})


def test_what_demands_nothing_and_what_is_data_pass() -> None:
    wanted = {
        "type": "object",
        "uniqueItems": False,
        "unevaluatedProperties": True,
        "minProperties": 1,
        "properties": {"not": {"const": {"not": {}, "$ref": "x"}}, "if": {"enum": [{"if": 1}]}},
        "required": ["not", "if"],
        "additionalProperties": False,
        "default": {"contains": 1},
    }
    assert exact(wanted) == {name: value for name, value in wanted.items() if not name.startswith("un")}
    asked = {"type": "json_schema", "json_schema": {"schema": wanted}}
    with converse(saying("x"), USER, response_format=asked, enable_thinking=False) as events:
        list(events)
    assert json.loads(events.answer.text) == {"not": {"not": {}, "$ref": "x"}, "if": {"if": 1}}


@given(st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32))
def test_dates_are_those_of_the_calendar(year: int, month: int, day: int) -> None:
    text = f"{year:04}-{month:02}-{day:02}"
    try:
        real = date(year, month, day).isoformat() == text
    except ValueError:
        real = False
    for form, written in (("date", text), ("date-time", f"{text}T12:00:00Z")):
        pattern = exact({"format": form})["pattern"]
        assert (re.search(pattern, written) is not None) == real


def test_any_json_object() -> None:
    for seed in range(20):
        with converse(
            babbling(seed), USER, response_format={"type": "json_object"}, enable_thinking=False, seed=seed
        ) as events:
            list(events)
        if events.answer.finish_reason == "stop":
            assert isinstance(json.loads(events.answer.text), dict)


def test_a_token_that_the_grammar_forbids_is_an_error() -> None:
    matcher = Matcher(saying("x"), grammar(json_rule({"type": "boolean"}), []))
    with pytest.raises(EngineError, match="left the form"):
        matcher.consume(tokenizer().encode("[1]"))


def test_the_vocabulary_is_read_once_for_all_lanes_and_let_go_with_the_model() -> None:
    def small() -> _Stub:
        text = Tokenizer(tokenizers.Tokenizer.from_str(tokenizer()._inner.to_str()), byte_level=True)
        return _Stub(
            SimpleNamespace(vocab_size=VOCAB), text, SimpleNamespace(model=SimpleNamespace(eos_token_ids=(2,)))
        )

    first = small()
    lane = _Stub(first.engine, first.tokenizer, first.manifest)
    assert _vocabulary(cast(Model, first)) is _vocabulary(cast(Model, lane))
    assert _vocabulary(cast(Model, small())) is not _vocabulary(cast(Model, lane))
    gone = weakref.ref(first.tokenizer)
    Matcher(cast(Model, first), grammar(json_rule({}), []))
    del first, lane
    gc.collect()
    assert gone() is None


def test_a_model_without_llguidance_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def hiding(name: str, *rest: Any) -> Any:
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", hiding)
    with pytest.raises(DependencyError, match="llguidance") as caught:
        converse(saying("x"), USER, response_format={"type": "json_object"})
    assert "edgeship-runtime[structured]" in caught.value.hint


@needs_tokenizer
def test_an_answer_is_followed_with_qwens_vocabulary() -> None:
    text = read_tokenizer(TOKENIZER / "tokenizer.json")
    facts = SimpleNamespace(model=SimpleNamespace(eos_token_ids=(151645, 151643)))
    engine = SimpleNamespace(vocab_size=ROWS)
    model = _Stub(engine, text, facts)
    wanted = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 60},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    ids = text.encode('{"name": "Ann of Aachen", "age": 41, "tags": ["short", "déjà vu"]}')
    scores = np.zeros(ROWS, np.float32)
    matcher = Matcher(cast(Model, model), grammar(json_rule(wanted), []))
    for token in ids:
        scores[:] = 0
        matcher.restrict(scores)
        assert scores[token] == 0
        matcher.consume([token])
    assert matcher.finished


def test_a_vocabulary_that_is_not_byte_level() -> None:
    """Words with a mark for spaces and bytes as a last resort, as SentencePiece has them."""
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    inner.train_from_iterator(['the cat {"sum": 12, "why": "no"} true 0123456789'] * 3, trainer)
    text = Tokenizer(inner, byte_level=False)
    facts = SimpleNamespace(model=SimpleNamespace(eos_token_ids=(2,)))
    model = _Stub(SimpleNamespace(vocab_size=text.vocab_size), text, facts)
    members = {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "why": {"type": "string", "maxLength": 9}}
    wanted = {"type": "object", "properties": members, "required": ["sum", "why"], "additionalProperties": False}
    random_numbers = np.random.default_rng(0)
    for _ in range(20):
        matcher, ids = Matcher(cast(Model, model), grammar(json_rule(wanted), [])), []
        while not matcher.finished:
            scores = random_numbers.standard_normal(text.vocab_size).astype(np.float32)
            matcher.restrict(scores)
            ids.append(int(scores.argmax()))
            matcher.consume(ids[-1:])
        jsonschema.validate(json.loads(text.decode(ids)), wanted)


class _Stub:
    """What a matcher needs of a model."""

    def __init__(self, engine: Any, tokenizer: Any, manifest: Any) -> None:
        self.engine, self.tokenizer, self.manifest = engine, tokenizer, manifest
