"""Several sequences run together: each answer is that of its request alone, whoever comes and goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgeship_runtime
import tolerances
from edgeship_runtime.answer import Result
from edgeship_runtime.engines.llama_batch import LlamaRunner
from edgeship_runtime.engines.llama_library import library
from edgeship_runtime.engines.ort_batch import OrtRunner
from edgeship_runtime.errors import ContextError, EngineError, UsageError
from edgeship_runtime.manifest import read_manifest
from edgeship_runtime.model import Model
from edgeship_runtime.server.lanes import MOST_LANES, lane_options
from edgeship_runtime.server.settings import Settings
from served import COLD, HOT, serving
from toy_gguf import FORMS, needs_llamacpp

WORDS = ("hot", "tall", "fast", "big", "old", "happy", "up", "wet", "early", "hard")
STORY = "Once upon a time there was a happy cat called Ben. Ben lived in the garden. One summer day, "
CONTEXT = 256


def question(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is the opposite of {word}?"}]


PROMPTS: list[Any] = [*map(question, WORDS), STORY, STORY * 3, f"The sea was blue. {STORY * 5}"]


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(tiny: Path, form: str) -> Generator[Model, None, None]:
    with edgeship_runtime.load(tiny / form, threads=1, context=CONTEXT) as model:
        yield model


@pytest.fixture
def lanes(tiny: Path, form: str) -> Generator[list[Model], None, None]:
    with edgeship_runtime.load(tiny / form, threads=1, context=CONTEXT, sequences=4) as model:
        yield model.lanes()


def answer(model: Model, prompt: Any, **options: Any) -> Result:
    model.forget()
    return model.generate(prompt, **({"temperature": 0, "max_tokens": 40} | options))


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(works)) as pool:
        return [each.result(60) for each in [pool.submit(work) for work in works]]


def assert_same_but_for_ties(model: Model, prompt: Any, found: Result, expected: Result) -> None:
    """The same tokens, up to where the two best are so close that kernels for more rows may turn them."""
    pairs = zip(found.tokens, expected.tokens, strict=False)
    parted = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
    if parted is None:
        assert found.tokens == expected.tokens
        return
    model.forget()
    logits = model.engine.evaluate([*model.encode(prompt), *expected.tokens[:parted]])
    gap = abs(float(logits[found.tokens[parted]] - logits[expected.tokens[parted]]))
    assert gap <= tolerances.BATCH_TIE_STD * float(logits.std())


def test_answers_that_come_and_go_are_those_of_each_request_alone(alone: Model, lanes: list[Model]) -> None:
    expected = [answer(alone, prompt) for prompt in PROMPTS]
    todo = list(range(len(PROMPTS))) * 3
    found: list[tuple[int, Result]] = []

    def work(lane: Model) -> None:
        while todo:
            try:
                number = todo.pop()
            except IndexError:
                return
            found.append((number, answer(lane, PROMPTS[number])))
            lane.engine.rest()  # type: ignore[attr-defined]

    at_once([lambda lane=lane: work(lane) for lane in lanes])  # type: ignore[misc]
    assert len(found) == 3 * len(PROMPTS)
    for number, result in found:
        assert_same_but_for_ties(alone, PROMPTS[number], result, expected[number])
    same = sum(result.tokens == expected[number].tokens for number, result in found)
    assert same >= 0.8 * len(found), "ties are few"


def test_the_logits_are_those_of_the_sequence_alone(alone: Model, lanes: list[Model]) -> None:
    ids = alone.encode(STORY * 6)
    texts = [ids[5 * lane : 5 * lane + 60 + 7 * lane] for lane in range(len(lanes))]

    def rows(model: Model, text: list[int]) -> NDArray[np.float32]:
        model.engine.truncate(0)
        return np.array([model.engine.evaluate(part).copy() for part in (text[:20], *([each] for each in text[20:]))])

    expected = [rows(alone, text) for text in texts]
    found = at_once([lambda i=i: rows(lanes[i], texts[i]) for i in range(len(lanes))])  # type: ignore[misc]
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= tolerances.BATCH_STD * other.std()
    assert np.abs(found[0][:40] - expected[1][:40]).max() > 1.0 * expected[1].std(), "another text is far from it"


def test_each_has_its_own_stops_seeds_forms_and_lengths(tiny: Path, form: str) -> None:
    asks: list[dict[str, Any]] = [
        {"stop": ["opp"]},
        {"max_tokens": 3},
        {"temperature": 0.3, "seed": 5},
        {"response_format": {"type": "regex", "pattern": "[a-z]{3,9} (cold|warm)"}},
        {"logit_bias": {"300": 5}, "max_tokens": 8},
        {"presence_penalty": 1.5, "max_tokens": 12},
        {"logprobs": True, "max_tokens": 4},
        {},
    ]

    def told(ask: dict[str, Any]) -> Any:
        choice = served.ask(**ask).json()["choices"][0]
        scores = [each["token"] for each in (choice["logprobs"] or {}).get("content", [])]
        return choice["message"]["content"], choice["finish_reason"], scores

    with serving({"tiny": tiny / form}, context=CONTEXT, parallel=6, requests_per_minute=0) as served:
        expected = [told(ask) for ask in asks]
        assert expected[-1][0] == COLD
        found = at_once([lambda ask=ask: told(ask) for ask in asks * 4])  # type: ignore[misc]
    assert found == expected * 4


def test_one_that_is_cancelled_leaves_the_others_alone(alone: Model, lanes: list[Model]) -> None:
    endless = lanes[0].stream(STORY, ignore_eos=True, temperature=0)
    reader = threading.Thread(target=lambda: list(endless))
    reader.start()
    working = [lambda lane=lane: answer(lane, HOT).text for lane in lanes[1:]]  # type: ignore[misc]
    assert at_once(working) == [COLD] * 3
    endless.cancel()
    reader.join(10)
    assert not reader.is_alive()
    assert endless.result.finish_reason in ("cancelled", "context")
    assert answer(lanes[0], HOT).text == COLD


def test_a_beginning_that_another_sequence_holds_is_not_run_again(alone: Model, lanes: list[Model]) -> None:
    from edgeship_runtime.prefix import PrefixCache

    prompt = STORY * 4
    expected = answer(alone, prompt)
    assert answer(lanes[0], prompt).stats.cached_tokens == 0
    lanes[1].prefixes = PrefixCache(0)
    shared = lanes[1].generate(prompt, temperature=0, max_tokens=40)
    assert shared.stats.cached_tokens == shared.stats.prompt_tokens - 1
    assert_same_but_for_ties(alone, prompt, shared, expected)
    lanes[0].forget()  # what was shared stays
    again = lanes[1].generate(prompt, temperature=0, max_tokens=40)
    assert again.stats.cached_tokens > 0
    assert_same_but_for_ties(alone, prompt, again, expected)


def test_a_state_goes_from_one_sequence_to_a_lone_engine_and_back(alone: Model, lanes: list[Model]) -> None:
    ids = alone.encode(STORY)
    one, other = lanes[2].engine, alone.engine
    assert one.state_layout == other.state_layout  # type: ignore[attr-defined]
    one.evaluate([*ids, 5, 6])
    one.truncate(len(ids))
    state = one.save()  # type: ignore[attr-defined]
    alone.forget()
    other.restore(state, ids)  # type: ignore[attr-defined]
    expected = other.evaluate([7]).copy()
    lanes[3].engine.restore(state, ids)  # type: ignore[attr-defined]
    found = lanes[3].engine.evaluate([7])
    assert np.abs(found - expected).max() <= tolerances.BATCH_STD * expected.std()
    with pytest.raises(EngineError):
        lanes[3].engine.restore(state[:-4], ids)  # type: ignore[attr-defined]
    assert answer(lanes[3], HOT).text == COLD
    with pytest.raises(EngineError, match="no tokens"):
        lanes[1].engine.save()  # type: ignore[attr-defined]
    alone.forget()


def test_a_failed_step_fails_who_took_part_and_the_next_is_right(
    lanes: list[Model], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = OrtRunner if form == "onnx" else LlamaRunner
    run, left = kind.run, [5]

    def failing(self: Any, asks: Any) -> Any:
        done = run(self, asks)  # so that the KV cache has what the lanes do not know of
        left[0] -= 1
        if left[0] == 0:
            raise EngineError("it broke")
        return done

    monkeypatch.setattr(kind, "run", failing)

    def outcome(lane: Model) -> str:
        try:
            return answer(lane, HOT).text
        except EngineError as error:
            return error.message

    found = at_once([lambda lane=lane: outcome(lane) for lane in lanes])  # type: ignore[misc]
    assert "it broke" in found
    assert set(found) <= {"it broke", COLD}
    assert [answer(lane, HOT).text for lane in lanes] == [COLD] * 4


@needs_llamacpp
def test_what_llamacpp_refuses_is_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with edgeship_runtime.load(tiny / "gguf", threads=1, context=64, sequences=2) as model:
        with monkeypatch.context() as patch:
            patch.setattr(library(), "llama_decode", lambda *_: 1)
            with pytest.raises(EngineError, match="code 1"):
                answer(model, HOT)
        assert answer(model, HOT).text == COLD


def test_closing_ends_whoever_waits(tiny: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = OrtRunner if form == "onnx" else LlamaRunner
    run = kind.run

    def slow(self: Any, asks: Any) -> Any:
        time.sleep(0.1)
        return run(self, asks)

    monkeypatch.setattr(kind, "run", slow)
    with ExitStack() as stack:
        first, second, third = edgeship_runtime.load(tiny / form, threads=1, context=64, sequences=3).lanes()
        stack.callback(first.close)
        errors: list[BaseException] = []

        def work(lane: Model) -> None:
            try:
                lane.generate(HOT, temperature=0)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in (second, third)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        first.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert [type(error) for error in errors] == [EngineError] * 2
    with pytest.raises(EngineError, match="closed"):
        second.engine.evaluate([1])


def test_a_full_lane_between_two_others_keeps_what_it_holds(alone: Model, lanes: list[Model]) -> None:
    ids = alone.encode(STORY)
    many = (ids * 20)[:CONTEXT]
    lanes[1].engine.evaluate(many)
    lanes[2].engine.evaluate(many[:-1])

    def decode(lane: Model) -> list[int]:
        return list(lane.generate(STORY, temperature=0, max_tokens=30, ignore_eos=True).tokens)

    one, other = at_once([lambda: decode(lanes[0]), lambda: decode(lanes[3])])
    assert one == other
    alone.forget()
    alone.engine.evaluate(many[:-1])
    expected = alone.engine.evaluate(many[-1:]).copy()
    lanes[1].engine.truncate(CONTEXT - 1)
    for lane in lanes[1:3]:
        assert np.abs(lane.engine.evaluate(many[-1:]) - expected).max() <= tolerances.BATCH_STD * expected.std()
    alone.forget()


def test_each_sequence_has_its_context_and_no_more(lanes: list[Model], tiny: Path, form: str) -> None:
    many = [5] * CONTEXT
    for lane in lanes:
        lane.engine.evaluate(many)
    for lane in lanes:
        with pytest.raises(ContextError):
            lane.engine.evaluate([5])
        assert lane.engine.length == CONTEXT
    with pytest.raises(UsageError, match="0 sequences"):
        edgeship_runtime.load(tiny / form, sequences=0)


def test_as_many_lanes_as_memory_allows(tiny: Path) -> None:
    def chosen(form: str = "gguf", **more: Any) -> Any:
        return lane_options(tiny / form, Settings(artifacts={}, **more)).get("sequences")

    assert chosen() == chosen("onnx") == MOST_LANES
    assert chosen(parallel=9) == chosen("onnx", parallel=9) == 9
    facts = read_manifest(tiny / "gguf").model
    cache = 4 * facts.layers * facts.kv_heads * facts.head_dim * 512 / 1e6
    assert chosen(context=512, memory_mb=2.5 * 4 * cache) == 2
    assert chosen(context=512, memory_mb=0.1 * cache) == 1
    assert chosen(context=512, memory_mb=2.5 * 4 * cache, engine_options={"kv_type": "q8_0"}) == MOST_LANES
    assert chosen("onnx", context=512, memory_mb=2.5 * 4 * cache) == 1, "its cache is float32"
