"""Answers that are cut short, answers in asyncio, and several at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeship_runtime import load
from edgeship_runtime.answer import Piece
from edgeship_runtime.errors import ContextError, UsageError
from edgeship_runtime.talk import converse
from edgeship_runtime.talk.aio import iterate
from edgeship_runtime.talk.events import Done
from scripted import ADD, CALL, USER, Engine, finished, model_of, saying, tokenizer
from toy_artifact import VOCAB
from toy_gguf import needs_llamacpp, write_toy_gguf_artifact


class TestEnding:
    def test_cancel_from_another_thread_stops_within_a_token(self) -> None:
        model = saying("word " * 500)
        events = converse(model, USER)
        next(events)
        before = model.engine.steps  # type: ignore[attr-defined]
        caller = threading.Thread(target=events.cancel)
        caller.start()
        caller.join()
        rest = list(events)
        assert model.engine.steps - before <= 1  # type: ignore[attr-defined]
        assert isinstance(rest[-1], Done)
        assert events.answer.finish_reason == "cancelled"
        assert model.generate("x", max_tokens=1).tokens, "the model is free"

    def test_cancel_before_the_first_token_evaluates_nothing(self) -> None:
        model = saying("word")
        events = converse(model, USER)
        events.cancel()
        assert [type(each) for each in finished(events)] == [Done]
        assert (model.engine.length, events.answer.tokens) == (0, ())

    def test_cancel_while_the_prompt_is_evaluated(self) -> None:
        def say(step: int, held: Sequence[int]) -> NDArray[np.float32]:
            stream.cancel()
            return np.zeros(VOCAB, np.float32)

        model = model_of(Engine(say))
        stream = model.stream([5] * 5000)
        assert list(stream) == []
        assert stream.result.finish_reason == "cancelled"
        assert model.engine.length == 512

    def test_an_answer_that_is_not_finished(self) -> None:
        events = converse(saying("One two"), USER)
        next(events)
        with pytest.raises(UsageError, match="not finished"):
            _ = events.answer
        events.close()

    def test_a_cut_call_is_text(self) -> None:
        events = converse(saying(CALL), USER, tools=[ADD], max_tokens=len(tokenizer().encode(CALL)) // 2)
        finished(events)
        assert (events.answer.tool_calls, events.answer.finish_reason) == ((), "length")
        assert events.answer.text.startswith("<tool_call>")
        assert len(events.answer.problems) == 1


class TestAsync:
    def test_pieces_are_those_of_the_stream(self) -> None:
        async def talk() -> list[Piece]:
            return [piece async for piece in saying("One two three.").stream(USER)]

        assert asyncio.run(talk()) == list(saying("One two three.").stream(USER))

    def test_the_loop_goes_on_meanwhile_and_a_cancelled_task_frees_the_model(self) -> None:
        model = saying("word " * 2000)

        async def read() -> None:
            async for _ in converse(model, USER):
                await asyncio.sleep(0)

        async def main() -> int:
            task = asyncio.create_task(read())
            while model.engine.steps < 5:  # type: ignore[attr-defined]
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return int(model.engine.steps)  # type: ignore[attr-defined]

        steps = asyncio.run(main())
        assert steps < 2000
        assert model.engine.steps == steps, "nothing runs on"  # type: ignore[attr-defined]
        assert model.generate("x", max_tokens=1).tokens

    def test_leaving_early_frees_the_model(self) -> None:
        model = saying("word " * 2000)

        async def main() -> None:
            events = iterate(converse(model, USER))
            async for _ in events:
                break
            await events.aclose()

        asyncio.run(main())
        assert model.generate("x", max_tokens=1).tokens

    def test_an_engines_error_comes_through(self) -> None:
        def say(step: int, held: Sequence[int]) -> NDArray[np.float32]:
            raise ValueError("broken")

        async def main() -> list[Any]:
            return [each async for each in converse(model_of(Engine(say)), USER)]

        with pytest.raises(ValueError, match="broken"):
            asyncio.run(main())


class TestBatch:
    def test_results_are_in_order_and_those_of_single_calls(self, artifact: str) -> None:
        prompts = ["The cat sat", "The dog", "The cat", "blue", "The cat sat on"]
        with load(artifact) as model:
            single = []
            for prompt in prompts:
                model.forget()
                single.append(model.generate(prompt, max_tokens=4, temperature=0.0).tokens)
            model.forget()
            found = model.generate_batch(prompts, max_tokens=4, temperature=0.0)
        assert [result.tokens for result in found] == single
        assert sum(result.stats.cached_tokens for result in found) > 0

    def test_nothing_runs_when_one_prompt_cannot(self) -> None:
        model = saying("x")
        with pytest.raises(ContextError, match="no room"):
            model.generate_batch(["fine", [5] * 30_000])
        assert model.engine.length == 0
        assert model.generate_batch([]) == []

    @needs_llamacpp
    def test_lanes_answer_together(self, tmp_path: Path) -> None:
        directory = write_toy_gguf_artifact(tmp_path / "gguf").directory
        prompts = [f"The {word}" for word in ("cat", "dog", "sky", "sea", "sun", "ant", "bee")]
        with load(directory, threads=1) as model:
            want = [model.generate(prompt, max_tokens=4, temperature=0.0).text for prompt in prompts]
        with load(directory, threads=1, sequences=3) as model:
            found = model.generate_batch(prompts, max_tokens=4, temperature=0.0)
            assert [result.text for result in found] == want
            with pytest.raises(UsageError, match="logit_bias"):
                model.generate_batch(prompts, logit_bias={99_999: 1.0})

    def test_a_lane_that_fails_ends_the_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def say(step: int, held: Sequence[int]) -> NDArray[np.float32]:
            raise ValueError("broken")

        model, other = model_of(Engine(say)), model_of(Engine(say))
        monkeypatch.setattr(model, "lanes", lambda: [model, other])
        with pytest.raises(ValueError, match="broken"):
            model.generate_batch(["a"] * 50)
        assert model.engine.steps + other.engine.steps <= 4  # type: ignore[attr-defined]
