"""Prompt to text over a scripted engine: stops, limits, streaming, prefix reuse, one answer at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgeship_runtime
from checkpoints import CHAT_TEMPLATE, write_tokenizer
from edgeship_runtime import bench
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.engines import Engine
from edgeship_runtime.errors import ContextError, DependencyError, EngineError, TemplateError, UsageError
from edgeship_runtime.manifest import Manifest, parse_manifest
from edgeship_runtime.model import Model
from edgeship_runtime.tokens import Tokenizer, read_tokenizer
from manifests import VALID
from toy_artifact import END, VOCAB, write_toy

GREEDY: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": 1.0}


class Scripted:
    """An engine that says what it is told after the first prompt, or a token made from all it holds."""

    name = "scripted 1"
    threads = 1

    def __init__(self, script: Sequence[int] = (), context: int = 200) -> None:
        self.vocab_size = VOCAB
        self.context = context
        self.held: list[int] = []
        self.calls: list[int] = []
        self.script = list(script)
        self.prompt = 0
        self.closed = 0
        self.fail: Exception | None = None

    @property
    def length(self) -> int:
        return len(self.held)

    @length.setter
    def length(self, value: int) -> None:
        raise AssertionError

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if self.fail:
            self.held += tokens[:1]  # a chunk went through, the next did not
            raise self.fail
        assert len(self.held) + len(tokens) <= self.context
        self.held += tokens
        self.calls.append(len(tokens))
        self.prompt = self.prompt or len(self.held)
        logits = np.zeros(VOCAB, np.float32)
        said = len(self.held) - self.prompt
        logits[self.script[said] if self.script else sum(self.held) * 31 % 250] = 9
        return logits

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self.held)
        del self.held[length:]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return read_tokenizer(path / "tokenizer.json")


def manifest() -> Manifest:
    facts = VALID["model"] | {"vocab_size": VOCAB, "eos_token_ids": list(END)}
    return parse_manifest(json.dumps(VALID | {"model": facts}).encode())


def model_of(tokenizer: Tokenizer, engine: Engine, template: str | None = CHAT_TEMPLATE) -> Model:
    return Model(engine, tokenizer, manifest(), ChatTemplate(template) if template else None)


def saying(tokenizer: Tokenizer, text: str, *, end: bool = True, context: int = 200) -> Model:
    ids = tokenizer.encode(text) + ([END[0]] if end else []) + tokenizer.encode(" no more" * 40)
    return model_of(tokenizer, Scripted(ids, context))


def test_text_until_the_end_token(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "The sky is blue. 🙂")
    result = model.generate("What colour", **GREEDY)
    assert result.text == "The sky is blue. 🙂"
    assert result.finish_reason == "stop"
    assert result.stop_string is None
    assert list(result.tokens) == tokenizer.encode("The sky is blue. 🙂"), "the end token is not among them"
    assert result.stats.tokens == len(result.tokens)
    assert result.stats.prompt_tokens == len(tokenizer.encode("What colour", special=True))
    assert json.dumps(result.to_json())


def test_pieces_joined_are_the_result(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "The sky 🙂🙂 你好")
    stream = model.stream("x", **GREEDY)
    with pytest.raises(UsageError, match="not finished"):
        _ = stream.result
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == stream.result.text
    assert [token for piece in pieces for token in piece.token_ids] == list(stream.result.tokens)
    assert all(piece.text for piece in pieces)
    assert "\ufffd" not in stream.result.text
    assert list(stream) == []
    assert stream.result.text


@pytest.mark.parametrize(
    ("stop", "text", "found"),
    [
        ("is", "The sky ", "is"),
        ("sky is", "The ", "sky is"),
        (["blue", "is b"], "The sky ", "is b"),
        ("The", "", "The"),
        ("🙂", "The sky is blue. ", "🙂"),
        ("blue! ", "The sky is blue. 🙂 end", None),
        ("end of it", "The sky is blue. 🙂 end", None),
    ],
)
def test_stop_strings(tokenizer: Tokenizer, stop: Any, text: str, found: str | None) -> None:
    model = saying(tokenizer, "The sky is blue. 🙂 end")
    stream = model.stream("x", stop=stop, **GREEDY)
    shown = ""
    for piece in stream:
        shown += piece.text
        assert not found or found not in shown
    assert (shown, stream.result.text) == (text, text)
    assert stream.result.stop_string == found
    assert stream.result.finish_reason == "stop"


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_max_tokens(tokenizer: Tokenizer, limit: int) -> None:
    model = saying(tokenizer, "The cat sat on the mat. The door.")
    result = model.generate("x", max_tokens=limit, **GREEDY)
    assert len(result.tokens) == limit
    assert result.finish_reason == "length"
    assert result.text == tokenizer.decode(result.tokens)


def test_an_answer_cut_inside_a_character_ends_in_a_replacement(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "🦤")
    result = model.generate("x", max_tokens=2, **GREEDY)
    assert result.text == tokenizer.decode(result.tokens) == "\ufffd"


def test_a_full_context_is_stated(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "The cat sat on the mat. The door. The sky.", context=12)
    prompt = [5, 6, 7]
    result = model.generate(prompt, **GREEDY)
    assert result.finish_reason == "context"
    assert len(result.tokens) == 12 - 3
    assert model.generate(prompt, max_tokens=9, **GREEDY).finish_reason == "length", "asked for exactly what fits"
    assert model.generate(prompt, max_tokens=10, **GREEDY).finish_reason == "context"
    for size in (12, 13, 40):
        with pytest.raises(ContextError, match=rf"prompt has {size} tokens and the context is 12"):
            model.stream([5] * size)


def test_ignore_eos(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "a")
    result = model.generate("x", max_tokens=4, ignore_eos=True, **GREEDY)
    assert len(result.tokens) == 4
    assert END[0] in result.tokens
    assert result.text.startswith("a")


def test_only_what_is_new_is_evaluated(tokenizer: Tokenizer) -> None:
    engine = Scripted()
    model = model_of(tokenizer, engine)
    first = model.generate([1, 2, 3, 4], max_tokens=3, **GREEDY)
    assert (first.stats.prompt_tokens, first.stats.cached_tokens) == (4, 0)
    assert engine.calls == [4, 1, 1], "the last token is not evaluated: nothing is asked of it"
    engine.calls.clear()
    again = [1, 2, 3, 4, *first.tokens, 50, 51]
    second = model.generate(again, max_tokens=1, **GREEDY)
    assert second.stats.cached_tokens == 4 + 2
    assert engine.calls == [len(again) - 6]
    engine.calls.clear()
    third = model.generate([1, 2, 3, 4], max_tokens=1, **GREEDY)
    assert (third.stats.cached_tokens, engine.calls) == (3, [1]), "the logits of the last token are needed"
    assert third.tokens[0] == first.tokens[0]
    model.forget()
    assert model.generate([1, 2, 3, 4], max_tokens=1, **GREEDY).stats.cached_tokens == 0


@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6),
    limits=st.lists(st.integers(1, 5), min_size=6, max_size=6),
    stop_after=st.lists(st.integers(0, 3), min_size=6, max_size=6),
)
def test_reuse_changes_no_answer(
    tokenizer: Tokenizer, prompts: list[list[int]], limits: list[int], stop_after: list[int]
) -> None:
    kept = model_of(tokenizer, Scripted())
    for prompt, limit, pieces in zip(prompts, limits, stop_after, strict=False):
        with kept.stream(prompt, max_tokens=limit, **GREEDY) as stream:  # answers left in the middle, too
            for _ in range(pieces):
                next(stream, None)
        fresh = model_of(tokenizer, Scripted()).generate(prompt, max_tokens=limit, **GREEDY)
        result = kept.generate(prompt, max_tokens=limit, **GREEDY)
        assert (result.tokens, result.text, result.finish_reason) == (fresh.tokens, fresh.text, fresh.finish_reason)


def test_an_engine_that_fails_in_the_middle_leaves_a_usable_model(tokenizer: Tokenizer) -> None:
    engine = Scripted()
    model = model_of(tokenizer, engine)
    for error in (EngineError("no"), KeyboardInterrupt()):
        engine.fail = error  # type: ignore[assignment]
        with pytest.raises(type(error)):
            model.generate([1, 2, 3], max_tokens=2, **GREEDY)
        engine.fail = None
        result = model.generate([1, 2, 3], max_tokens=2, **GREEDY)
        assert result.stats.cached_tokens == 1, "what the engine took before it failed"
        assert result.tokens == model_of(tokenizer, Scripted()).generate([1, 2, 3], max_tokens=2, **GREEDY).tokens
        model.forget()


def test_one_answer_at_a_time(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "The cat sat")
    stream = model.stream("x", **GREEDY)
    other = model.stream("y", **GREEDY)
    next(stream)
    for blocked in (lambda: next(other), lambda: model.generate("z", **GREEDY), model.forget):
        with pytest.raises(UsageError, match="busy with another answer"):
            blocked()
    stream.close()
    stream.close()
    with pytest.raises(UsageError, match="not finished"):
        _ = stream.result
    assert model.generate("x", max_tokens=1, **GREEDY).tokens


def test_threads_get_an_answer_or_an_error_and_never_a_mixture(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, Scripted())
    want = {n: model_of(tokenizer, Scripted()).generate([n, n], max_tokens=20, **GREEDY).tokens for n in range(1, 5)}
    got: list[tuple[int, Any]] = []

    def ask(n: int) -> None:
        for _ in range(20):
            try:
                got.append((n, model.generate([n, n], max_tokens=20, **GREEDY).tokens))
            except UsageError as error:
                got.append((n, error))

    threads = [threading.Thread(target=ask, args=(n,)) for n in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = [(n, tokens) for n, tokens in got if not isinstance(tokens, UsageError)]
    assert answers
    assert all(tokens == want[n] for n, tokens in answers)


def test_closing(tokenizer: Tokenizer) -> None:
    engine = Scripted()
    with model_of(tokenizer, engine) as model:
        stream = model.stream("x", max_tokens=5, ignore_eos=True, **GREEDY)
        next(stream)
    assert engine.closed == 1
    with pytest.raises(UsageError, match="closed"):
        list(stream)
    for use in (lambda: model.generate("x"), model.forget):
        with pytest.raises(UsageError, match="closed"):
            use()
    model.close()


def test_messages_go_through_the_template_and_text_does_not(tokenizer: Tokenizer) -> None:
    model = saying(tokenizer, "blue")
    messages = [{"role": "user", "content": "what colour is the sky?"}]
    rendered = model.render(messages)
    assert rendered.endswith("<|im_start|>assistant\n")
    assert model.encode(messages) == tokenizer.encode(rendered)
    assert tokenizer.decode(model.encode("what colour")) == "what colour"
    assert model.chat(messages, **GREEDY).text == "blue"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt is empty"),
        ([], "prompt is empty"),
        ([1, "a"], "expected a prompt of text, token ids"),
        ([1.5], "expected a prompt"),
        (b"abc", "expected a prompt"),
        ("\udc80", "surrogate"),
    ],
)
def test_bad_prompts(tokenizer: Tokenizer, prompt: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_of(tokenizer, Scripted()).stream(prompt)


def test_chat_wants_messages(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, Scripted())
    for bad in ("hello", [], ["hello"], [1, 2]):
        with pytest.raises(UsageError, match="expected messages"):
            model.chat(bad)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="go with messages"):
        model.generate("text", enable_thinking=True)


def test_no_template_or_one_that_cannot_be_had(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(TemplateError, match="no chat template"):
        model_of(tokenizer, Scripted(), template=None).chat(messages)
    model = Model(Scripted(), tokenizer, manifest(), DependencyError("jinja2 is needed", hint="pip install"))
    with pytest.raises(DependencyError, match="jinja2"):
        model.chat(messages)
    assert model.generate("raw text needs none", max_tokens=1).tokens


def test_options_come_from_the_manifest_and_names_are_checked(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, Scripted())
    assert (model.defaults.temperature, model.defaults.top_k, model.defaults.repetition_penalty) == (0.7, 20, 1.05)
    assert model.options(top_k=5).top_k == 5
    assert model.options(top_k=5).temperature == 0.7
    with pytest.raises(UsageError, match=r"no option 'temprature'.*\n\nhint: .*temperature"):
        model.generate("x", temprature=1)
    with pytest.raises(UsageError, match="top_p"):
        model.generate("x", top_p=2)


def test_stats_hold_together(tokenizer: Tokenizer) -> None:
    stats = model_of(tokenizer, Scripted()).generate([1, 2, 3], max_tokens=6, ignore_eos=True, **GREEDY).stats
    assert stats.steps == 5
    assert stats.ttft_s >= stats.prefill_s > 0
    assert stats.decode_tokens_per_s == pytest.approx(5 / stats.decode_s)
    assert stats.prefill_tokens_per_s == pytest.approx(3 / stats.prefill_s)
    one = model_of(tokenizer, Scripted()).generate([1], max_tokens=1, **GREEDY).stats
    assert one.decode_tokens_per_s == 0


def test_a_whole_artifact_from_its_path_or_its_parents(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "name" / "onnx")
    for path in (toy.directory, toy.directory.parent, str(toy.directory)):
        with edgeship_runtime.load(path, threads=1) as model:
            ids = model.encode([{"role": "user", "content": "The cat"}])
            got = model.generate(ids, max_tokens=8, ignore_eos=True, **GREEDY)
            for token in got.tokens:
                assert token == toy.logits(ids)[-1].argmax()
                ids.append(token)
            assert model.load_s > 0


def test_bench_measures_and_fits_its_prompt_into_the_context(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "onnx")
    report = bench.measure(toy.directory, threads=1, decode_tokens=8, repeats=2)
    assert (report.prompt_tokens, report.context, report.repeats) == (96 - 8, 96, 2)
    assert min(report.load_s, report.ttft_s, report.prefill_tokens_per_s, report.decode_tokens_per_s) > 0
    assert json.loads(json.dumps(report.to_json()))["engine"].startswith("onnxruntime")
    assert "tokens/s" in report.table()
    for bad in ({"prompt_tokens": 0}, {"repeats": 0}, {"decode_tokens": 1}, {"decode_tokens": 96}):
        with pytest.raises(UsageError, match="bench: "):
            bench.measure(toy.directory, **bad)  # type: ignore[arg-type]
