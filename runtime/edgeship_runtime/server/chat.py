"""POST /v1/chat/completions, as https://platform.openai.com/docs/api-reference/chat describes it.

`reasoning_content` is where the thought goes, as DeepSeek's and vLLM's APIs have it; `tool_call_problems` says why
calls were left as text.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeship_runtime.answer import Stats
from edgeship_runtime.model import Model
from edgeship_runtime.server.asks import ChatAsk, read_chat
from edgeship_runtime.server.logprobs import TokenScore, recording, spell
from edgeship_runtime.server.service import Service, event
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.server.turn import turn
from edgeship_runtime.talk.events import Answer, Done, Event, Reasoning, Text, ToolCallArguments, ToolCallStarted

FINISH = {"stop": "stop", "length": "length", "context": "length", "tool_calls": "tool_calls", "cancelled": "stop"}
"""The runtime's reasons as OpenAI's API names them."""


@dataclass(frozen=True)
class Scores:
    """Log probabilities of an answer's tokens, as `logprobs.content` has them; comes just before `Done`."""

    content: list[dict[str, Any]]


async def completions(service: Service, request: Request) -> Response:
    """Answer the route."""
    body = await service.body(request)
    ask = read_chat(body, service.settings)
    wants_stream = body.flag("stream")
    wants_usage = body.body("stream_options").flag("include_usage")
    job = service.submit(request, ask.model, lambda model: chat_work(model, ask, service.settings))
    service.note_prompt(request, ask.text)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": ask.model}

    def note(stats: Stats) -> None:
        service.note_answer(request, job, stats)

    if wants_stream:
        head["object"] = "chat.completion.chunk"
        return await service.stream(
            request, job, lambda items: _chunks(items, head, wants_usage, note), "text/event-stream"
        )
    items = await service.whole(request, job)
    done = items[-1]
    assert isinstance(done, Done)
    note(done.answer.stats)
    scores = next((item.content for item in items if isinstance(item, Scores)), None)
    choice = {
        "index": 0,
        "message": message(done.answer),
        "logprobs": None if scores is None else {"content": scores},
        "finish_reason": FINISH[done.answer.finish_reason],
    }
    found = {**head, "object": "chat.completion", "choices": [choice], "usage": usage(done.answer)}
    return JSONResponse(found)


async def _chunks(
    items: AsyncIterator[Any], head: dict[str, Any], wants_usage: bool, note: Callable[[Stats], None]
) -> AsyncGenerator[str, None]:
    """The chunks of a streamed answer."""
    empty = {"usage": None} if wants_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None, scores: object = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": scores, "finish_reason": finish}
        return event({**head, "choices": [choice], **empty})

    yield chunk({"role": "assistant", "content": ""})
    async for item in items:
        if isinstance(item, Done):
            note(item.answer.stats)
            yield chunk({}, FINISH[item.answer.finish_reason])
            if wants_usage:
                timings = item.answer.stats.to_json()
                yield event({**head, "choices": [], "usage": usage(item.answer), "timings": timings})
        elif isinstance(item, Scores):
            yield chunk({}, scores={"content": item.content})
        elif delta := _delta(item):
            yield chunk(delta)
    yield "data: [DONE]\n\n"


def _delta(item: Event) -> dict[str, Any]:
    """What an event adds to the message; empty when nothing."""
    if isinstance(item, Reasoning):
        return {"reasoning_content": item.text} if item.text else {}
    if isinstance(item, Text):
        problems = {} if item.problem is None else {"tool_call_problems": [item.problem]}
        return {"content": item.text, **problems} if item.text else {}
    if isinstance(item, ToolCallStarted):
        function = {"name": item.name, "arguments": ""}
        return {"tool_calls": [{"index": item.index, "id": item.id, "type": "function", "function": function}]}
    if isinstance(item, ToolCallArguments):
        return {"tool_calls": [{"index": item.index, "function": {"arguments": item.text}}]}
    return {}


def message(found: Answer) -> dict[str, Any]:
    """The answer as a message."""
    said: dict[str, Any] = {"role": "assistant", "content": found.text or None, "refusal": None}
    if not found.tool_calls:
        said["content"] = found.text
    else:
        said["tool_calls"] = [call.to_json() for call in found.tool_calls]
    if found.reasoning is not None:
        said["reasoning_content"] = found.reasoning
    if found.problems:
        said["tool_call_problems"] = list(found.problems)
    return said


def usage(found: Answer) -> dict[str, Any]:
    """Counts of tokens."""
    stats = found.stats
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.tokens,
        "total_tokens": stats.prompt_tokens + stats.tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": found.reasoning_tokens},
    }


def chat_work(model: Model, ask: ChatAsk, settings: Settings) -> Generator[Event | Scores, None, None]:
    """Answer on the engine's thread."""
    if ask.logprobs is None:
        yield from turn(model, ask, settings)
        return
    with recording(model, ask.logprobs) as recorder:
        for item in turn(model, ask, settings):
            if isinstance(item, Done):
                start = item.answer.stats.prompt_tokens
                found = [recorder.at(start + i, token) for i, token in enumerate(item.answer.tokens)]
                yield Scores([_score(model, each) for each in found])
            yield item


def _score(model: Model, score: TokenScore) -> dict[str, Any]:
    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = spell(model, token)
        # A token that something other than its logits chose has no probability; -9999 is OpenAI's word for that.
        return {
            "token": text,
            "logprob": -9999.0 if logprob is None else logprob,
            "bytes": list(text.encode("utf-8", "replace")),
        }

    return {**entry(score.token, score.logprob), "top_logprobs": [entry(*each) for each in score.top]}
