"""Ollama's protocol: /api/chat, /api/generate, /api/embed, /api/tags, /api/version.

Source: docs/api.md of https://github.com/ollama/ollama. Durations are in nanoseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeship_runtime import __version__
from edgeship_runtime.answer import Stats
from edgeship_runtime.manifest import MANIFEST_NAME
from edgeship_runtime.model import Model
from edgeship_runtime.server.asks import ChatAsk, read_chat
from edgeship_runtime.server.chat import FINISH, chat_work
from edgeship_runtime.server.fields import Body
from edgeship_runtime.server.service import Service
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.server.shelf import size_mb
from edgeship_runtime.server.text import embed
from edgeship_runtime.server.turn import check_text
from edgeship_runtime.talk.events import Answer, Done, Reasoning, Text, ToolCall

_NDJSON = "application/x-ndjson"
_RENAMED = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "seed", "stop", *_RENAMED.values())
Line = Callable[[str, str, tuple[ToolCall, ...]], dict[str, Any]]
"""Text, thought and tool calls as the members of a line."""


async def chat(service: Service, request: Request) -> Response:
    """Answer /api/chat."""
    body = await service.body(request)
    members = {**body.members, "messages": [_message(each) for each in body.get("messages")]}
    ask = _ask(Body(members), service.settings)

    def line(text: str, thought: str, calls: tuple[ToolCall, ...]) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": text}
        if thought:
            said["thinking"] = thought
        if calls:
            said["tool_calls"] = [
                {"function": {"name": call.name, "arguments": json.loads(call.arguments)}} for call in calls
            ]
        return {"message": said}

    return await _answer(service, request, body, ask, line)


async def generate(service: Service, request: Request) -> Response:
    """Answer /api/generate: a prompt by the chat template, or `raw` as it is."""
    body = await service.body(request)
    prompt = body.text("prompt")
    system = body.text("system")
    messages = [{"role": "system", "content": system}] if system else []
    ask = _ask(Body({**body.members, "messages": [*messages, {"role": "user", "content": prompt}]}), service.settings)
    raw = body.flag("raw")
    if raw and not prompt:
        raise body.error("prompt", "a text that is not empty")

    def line(text: str, thought: str, calls: tuple[ToolCall, ...]) -> dict[str, Any]:
        return {"response": text, "thinking": thought} if thought else {"response": text}

    return await _answer(service, request, body, ask, line, raw=prompt if raw else None)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of Ollama's with the names that OpenAI's has."""
    found = dict(message)
    thinking = found.pop("thinking", None)
    return found | ({"reasoning_content": thinking} if isinstance(thinking, str) else {})


def _ask(body: Body, settings: Settings) -> ChatAsk:
    options = {_RENAMED.get(name, name): value for name, value in body.body("options").members.items()}
    if options.get("max_tokens") in (-1, -2):  # until it ends, until the context is full
        del options["max_tokens"]
    form = body.get("format")
    if isinstance(form, dict):
        form = {"type": "json_schema", "json_schema": {"name": "format", "schema": form}}
    elif form:
        form = {"type": "json_object"}
    think = body.get("think")
    wanted = {
        "model": body.text("model"),
        "messages": body.get("messages"),
        "tools": body.get("tools"),
        "response_format": form or None,
        "enable_thinking": None if think is None else bool(think),
    }
    return read_chat(Body({name: options.get(name) for name in _OPTIONS} | wanted), settings)


async def _answer(
    service: Service, request: Request, body: Body, ask: ChatAsk, line: Line, *, raw: str | None = None
) -> Response:
    """Stream lines, or send the whole as one."""

    def work(model: Model) -> Generator[Any, None, None]:
        return chat_work(model, ask, service.settings) if raw is None else _raw_work(model, raw, ask, service.settings)

    job = service.submit(request, ask.model, work)
    service.note_prompt(request, ask.text)

    def note(stats: Stats) -> None:
        service.note_answer(request, job, stats)

    if body.flag("stream", default=True):
        return await service.stream(request, job, lambda items: _lines(items, ask.model, line, note), _NDJSON)
    done = (await service.whole(request, job))[-1].answer
    note(done.stats)
    members = line(done.text, done.reasoning or "", done.tool_calls)
    return JSONResponse({**_head(ask.model), **members, **_end(done)})


async def _lines(
    items: AsyncIterator[Any], model: str, line: Line, note: Callable[[Stats], None]
) -> AsyncGenerator[str, None]:
    async for item in items:
        if isinstance(item, Text) and item.text:
            yield _text({**_head(model), **line(item.text, "", ()), "done": False})
        elif isinstance(item, Reasoning) and item.text:
            yield _text({**_head(model), **line("", item.text, ()), "done": False})
        elif isinstance(item, Done):
            note(item.answer.stats)
            if item.answer.tool_calls:
                yield _text({**_head(model), **line("", "", item.answer.tool_calls), "done": False})
            yield _text({**_head(model), **line("", "", ()), **_end(item.answer)})


def _raw_work(model: Model, prompt: str, ask: ChatAsk, settings: Settings) -> Generator[Any, None, None]:
    """Continue a text without the chat template."""
    check_text(model, prompt, settings)
    with model.stream(prompt, **ask.overrides) as stream:
        for piece in stream:
            yield Text(piece.text)
        found = stream.result
    yield Done(Answer(found.text, None, (), (), found.finish_reason, found.stop_string, found.tokens, 0, found.stats))


def _text(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _end(answer: Answer) -> dict[str, Any]:
    stats = answer.stats
    reason = FINISH[answer.finish_reason]
    return {
        "done": True,
        "done_reason": "stop" if reason == "tool_calls" else reason,
        "total_duration": int((stats.ttft_s + stats.decode_s) * 1e9),
        "load_duration": 0,
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_duration": int(stats.prefill_s * 1e9),
        "eval_count": stats.tokens,
        "eval_duration": int(stats.decode_s * 1e9),
    }


async def embeddings(service: Service, request: Request) -> Response:
    """Answer /api/embed."""
    body = await service.body(request)
    name = body.text("model")
    vectors, tokens = await embed(service, request, name, body.listed("input"))
    found = [vector.tolist() for vector in vectors]
    return JSONResponse({"model": name, "embeddings": found, "prompt_eval_count": tokens})


def tags(service: Service) -> dict[str, Any]:
    """The body of /api/tags."""
    return {"models": [_tag(service, name) for name in service.shelf.names]}


def _tag(service: Service, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(service.telemetry.started, UTC).isoformat().replace("+00:00", "Z"),
        "size": int(size_mb(service.settings.artifacts[name]) * 1e6),
        "digest": _digest(service.settings.artifacts[name]),
        "details": {"format": "edgeship", "family": "", "parameter_size": "", "quantization_level": ""},
    }


def _digest(path: Path) -> str:
    """SHA-256 of the artifact's manifest, which names the digest of every file; empty for a file without one."""
    for place in (path, path / "onnx", path / "gguf"):
        with suppress(OSError):
            return hashlib.sha256((place / MANIFEST_NAME).read_bytes()).hexdigest()
    return ""


def version() -> dict[str, Any]:
    """The body of /api/version."""
    return {"version": __version__}
