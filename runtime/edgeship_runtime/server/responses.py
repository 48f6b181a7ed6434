"""POST /v1/responses, as https://platform.openai.com/docs/api-reference/responses describes it; nothing is stored."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeship_runtime.answer import Stats
from edgeship_runtime.server.asks import ChatAsk, read_chat
from edgeship_runtime.server.chat import chat_work, usage
from edgeship_runtime.server.fields import Body
from edgeship_runtime.server.service import Service
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.talk.events import Answer, Done, Text

_SAMPLING = ("temperature", "top_p", "seed", "stop", "enable_thinking", "thinking_budget", "chat_template_kwargs")


async def create(service: Service, request: Request) -> Response:
    """Answer the route."""
    body = await service.body(request)
    ask = read(body, service.settings)
    wants_stream = body.flag("stream")
    job = service.submit(request, ask.model, lambda model: chat_work(model, ask, service.settings))
    service.note_prompt(request, ask.text)
    head = {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "model": ask.model,
        "instructions": body.get("instructions"),
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": body.get("temperature"),
        "top_p": body.get("top_p"),
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
    }

    def note(stats: Stats) -> None:
        service.note_answer(request, job, stats)

    if wants_stream:
        return await service.stream(request, job, lambda items: _events(items, head, note), "text/event-stream")
    done = (await service.whole(request, job))[-1].answer
    note(done.stats)
    return JSONResponse(_whole(head, done, f"msg_{secrets.token_hex(16)}"))


def read(body: Body, settings: Settings) -> ChatAsk:
    """The request in the terms of a chat completion; raises RequestError."""
    members: dict[str, Any] = {name: body.get(name) for name in _SAMPLING}
    members |= {"model": body.get("model"), "max_tokens": body.get("max_output_tokens")}
    instructions = body.text("instructions")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    given = body.get("input")
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        # Thoughts come back with the output they stood in; templates leave old ones out.
        messages += [_message(Body(item)) for item in given if item.get("type") != "reasoning"]
    if not messages:
        raise body.error("input", "at least one item that is not a thought")
    members["messages"] = messages
    members["tools"] = [_tool(tool) for tool in body.listed("tools")]
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice["name"]}}
    form = body.body("text").body("format").members
    if form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {name: form.get(name) for name in ("name", "schema", "strict")}}
    return read_chat(Body(members | {"tool_choice": choice, "response_format": dict(form) or None}), settings)


def _message(item: Body) -> dict[str, Any]:
    kind = item.text("type", "message")
    if kind == "function_call":
        function = {"name": item.text("name"), "arguments": item.text("arguments")}
        call = {"id": item.text("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.text("call_id"), "content": item.get("output")}
    return {"role": item.text("role"), "content": item.get("content")}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _said(identity: str, text: str | None, status: str = "completed") -> dict[str, Any]:
    """A message item; `text` None: one that has not begun."""
    content = [] if text is None else [_part(text)]
    return {"type": "message", "id": identity, "status": status, "role": "assistant", "content": content}


def _whole(head: Mapping[str, Any], answer: Answer, identity: str) -> dict[str, Any]:
    counts = usage(answer)
    complete = answer.finish_reason in ("stop", "tool_calls")
    output: list[dict[str, Any]] = []
    if answer.reasoning is not None:
        summary = [{"type": "summary_text", "text": answer.reasoning}]
        output.append({"type": "reasoning", "id": f"rs_{secrets.token_hex(16)}", "summary": summary})
    if answer.text or not answer.tool_calls:
        output.append(_said(identity, answer.text, "completed" if complete else "incomplete"))
    for call in answer.tool_calls:
        found = {"type": "function_call", "id": f"fc_{secrets.token_hex(16)}", "status": "completed"}
        output.append(found | {"call_id": call.id, "name": call.name, "arguments": call.arguments})
    return {
        **head,
        "status": "completed" if complete else "incomplete",
        "incomplete_details": None if complete else {"reason": "max_output_tokens"},
        "output": output,
        "usage": {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": counts["prompt_tokens_details"],
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        },
    }


async def _events(
    items: AsyncIterator[Any], head: Mapping[str, Any], note: Callable[[Stats], None]
) -> AsyncGenerator[str, None]:
    """The events of a streamed answer: text as it comes; thought and tool calls whole, at the end."""
    number = -1

    def event(kind: str, **members: Any) -> str:
        nonlocal number
        number += 1
        value = {"type": kind, "sequence_number": number, **members}
        return f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"

    begun = {**head, "status": "in_progress", "output": []}
    identity = f"msg_{secrets.token_hex(16)}"
    text = ""
    place: dict[str, Any] = {"item_id": identity, "output_index": 0, "content_index": 0}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    async for item in items:
        if isinstance(item, Text) and item.text:
            if not text:
                yield event("response.output_item.added", output_index=0, item=_said(identity, None, "in_progress"))
                yield event("response.content_part.added", **place, part=_part(""))
            text += item.text
            yield event("response.output_text.delta", **place, delta=item.text, logprobs=[])
        elif isinstance(item, Done):
            note(item.answer.stats)
            whole = _whole(head, item.answer, identity)
            # What streamed keeps its place; the rest comes after it, whole.
            output = sorted(whole["output"], key=lambda each: each["id"] != identity)
            for index, each in enumerate(output):
                if each["id"] == identity and text:
                    yield event("response.output_text.done", **place, text=text, logprobs=[])
                    yield event("response.content_part.done", **place, part=_part(text))
                else:
                    yield event("response.output_item.added", output_index=index, item=each)
                yield event("response.output_item.done", output_index=index, item=each)
            yield event(f"response.{whole['status']}", response={**whole, "output": output})
