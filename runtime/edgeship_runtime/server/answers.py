"""What answers look like, as JSON schemas for the OpenAPI document; tests hold every answer to them."""

from __future__ import annotations

from typing import Any

from edgeship_runtime.server.schemas import Made, either, listed, one_of, text

_WHOLE: Made = {"type": "integer", "minimum": 0}
_NUMBER: Made = {"type": "number"}
_FLAG: Made = {"type": "boolean"}
_NULL: Made = {"type": "null"}
_ANY: Made = {}


def exactly(required: Made, optional: Made | None = None) -> Made:
    """An object with these members and no others; the optional may be absent."""
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _maybe(schema: Made) -> Made:
    return either(schema, _NULL)


def _always(value: str | bool) -> Made:
    return {"const": value}


_USAGE = exactly(
    {
        "prompt_tokens": _WHOLE,
        "completion_tokens": _WHOLE,
        "total_tokens": _WHOLE,
        "prompt_tokens_details": exactly({"cached_tokens": _WHOLE}),
    },
    {"completion_tokens_details": exactly({"reasoning_tokens": _WHOLE})},
)
_CALL = exactly({"id": text(), "type": _always("function"), "function": exactly({"name": text(), "arguments": text()})})
_LIKELY = {"token": text(), "logprob": _NUMBER, "bytes": listed({"type": "integer", "minimum": 0, "maximum": 255})}
_SCORE = exactly(_LIKELY | {"top_logprobs": listed(exactly(_LIKELY))})
_MESSAGE = exactly(
    {"role": _always("assistant"), "content": _maybe(text()), "refusal": _NULL},
    {"tool_calls": listed(_CALL), "reasoning_content": text(), "tool_call_problems": listed(text())},
)
_CHOICE = {
    "index": _WHOLE,
    "message": _MESSAGE,
    "logprobs": _maybe(exactly({"content": listed(_SCORE)})),
    "finish_reason": one_of("stop", "length", "tool_calls"),
}
_HEAD = {"id": text(), "created": _WHOLE, "model": text()}
CHAT = exactly(
    _HEAD | {"object": _always("chat.completion"), "choices": listed(exactly(_CHOICE), 1, 1), "usage": _USAGE}
)
_DELTA_CALL = exactly(
    {"index": _WHOLE, "function": exactly({"arguments": text()}, {"name": text()})},
    {"id": text(), "type": _always("function")},
)
_DELTA = exactly(
    {},
    {
        "role": text(),
        "content": text(),
        "reasoning_content": text(),
        "tool_calls": listed(_DELTA_CALL, None, 1),
        "tool_call_problems": listed(text()),
    },
)
_UNFINISHED = {"finish_reason": _maybe(_CHOICE["finish_reason"])}
_LAST = {"usage": _maybe(_USAGE)}
CHAT_CHUNK = exactly(
    _HEAD
    | {
        "object": _always("chat.completion.chunk"),
        "choices": listed(
            exactly({"index": _WHOLE, "delta": _DELTA, "logprobs": _CHOICE["logprobs"], **_UNFINISHED}), 1
        ),
    },
    _LAST | {"timings": {"type": "object"}},
)
_TEXT_SCORES = exactly(
    {
        "tokens": listed(text()),
        "token_logprobs": listed(_maybe(_NUMBER)),
        "top_logprobs": listed(_maybe({"type": "object", "additionalProperties": _NUMBER})),
        "text_offset": listed(_WHOLE),
    }
)
_TEXT_CHOICE = {
    "index": _WHOLE,
    "text": text(),
    "logprobs": _maybe(_TEXT_SCORES),
    "finish_reason": one_of("stop", "length"),
}
COMPLETION = exactly(
    _HEAD | {"object": _always("text_completion"), "choices": listed(exactly(_TEXT_CHOICE), None, 1), "usage": _USAGE}
)
COMPLETION_CHUNK = exactly(
    _HEAD
    | {
        "object": _always("text_completion"),
        "choices": listed(exactly(_TEXT_CHOICE | {"finish_reason": _maybe(_TEXT_CHOICE["finish_reason"])}), 1),
    },
    _LAST,
)
_VECTOR = listed(_NUMBER)
EMBEDDINGS = exactly(
    {
        "object": _always("list"),
        "data": listed(
            exactly({"object": _always("embedding"), "index": _WHOLE, "embedding": either(_VECTOR, text())}), None, 1
        ),
        "model": text(),
        "usage": exactly({"prompt_tokens": _WHOLE, "total_tokens": _WHOLE}),
    }
)
_PART = exactly({"type": _always("output_text"), "text": text(), "annotations": listed(_ANY, 0)})
_STATUS = one_of("completed", "incomplete")
_OUTPUT = either(
    exactly(
        {"type": _always("message"), "id": text(), "status": _STATUS, "role": text(), "content": listed(_PART, None, 1)}
    ),
    exactly(
        {
            "type": _always("reasoning"),
            "id": text(),
            "summary": listed(exactly({"type": _always("summary_text"), "text": text()})),
        }
    ),
    exactly(
        {
            "type": _always("function_call"),
            "id": text(),
            "status": _always("completed"),
            "call_id": text(),
            "name": text(),
            "arguments": text(),
        }
    ),
)
RESPONSE = exactly(
    {
        "id": text(),
        "object": _always("response"),
        "created_at": _WHOLE,
        "model": text(),
        "status": _STATUS,
        "instructions": _maybe(text()),
        "metadata": exactly({}),
        "parallel_tool_calls": _FLAG,
        "temperature": _maybe(_NUMBER),
        "top_p": _maybe(_NUMBER),
        "tool_choice": either(text(), {"type": "object"}),
        "tools": listed({"type": "object"}),
        "error": _NULL,
        "incomplete_details": _maybe(exactly({"reason": _always("max_output_tokens")})),
        "output": listed(_OUTPUT),
        "usage": exactly(
            {
                "input_tokens": _WHOLE,
                "input_tokens_details": exactly({"cached_tokens": _WHOLE}),
                "output_tokens": _WHOLE,
                "output_tokens_details": exactly({"reasoning_tokens": _WHOLE}),
                "total_tokens": _WHOLE,
            }
        ),
    }
)
RESPONSE_EVENT: Made = {
    "type": "object",
    "properties": {"type": text(), "sequence_number": _WHOLE},
    "required": ["type", "sequence_number"],
}
MODEL = exactly({"id": text(), "object": _always("model"), "created": _WHOLE, "owned_by": text()})
MODELS = exactly({"object": _always("list"), "data": listed(MODEL)})

_TIMINGS = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count")
_OLLAMA_END: dict[str, Any] = dict.fromkeys((*_TIMINGS, "eval_duration"), _WHOLE)
_OLLAMA_END |= {"done_reason": one_of("stop", "length")}
_OLLAMA_CALL = exactly({"function": exactly({"name": text(), "arguments": {"type": "object"}})})
_OLLAMA_MESSAGE = exactly(
    {"role": _always("assistant"), "content": text()}, {"thinking": text(), "tool_calls": listed(_OLLAMA_CALL)}
)
_OLLAMA_HEAD = {"model": text(), "created_at": text(format="date-time"), "done": _FLAG}
OLLAMA_CHAT = exactly(_OLLAMA_HEAD | {"message": _OLLAMA_MESSAGE}, _OLLAMA_END)
OLLAMA_GENERATE = exactly(_OLLAMA_HEAD | {"response": text()}, _OLLAMA_END | {"thinking": text()})
OLLAMA_EMBED = exactly({"model": text(), "embeddings": listed(_VECTOR, None, 1), "prompt_eval_count": _WHOLE})
_TAG = {
    "name": text(),
    "model": text(),
    "modified_at": text(format="date-time"),
    "size": _WHOLE,
    "digest": text(),
    "details": {"type": "object", "additionalProperties": text()},
}
TAGS = exactly({"models": listed(exactly(_TAG))})
VERSION = exactly({"version": text()})

_STATE = one_of("healthy", "degraded", "unhealthy")
_CHECK = {"name": text(), "status": _STATE, "value": _ANY, "threshold": _ANY, "advice": text()}
HEALTH = exactly({"status": _STATE, "version": text(), "checks": listed(exactly(_CHECK), None, 1)})
STATS: Made = {"type": "object", "required": ["uptime_s", "rss_mb", "queue", "models", "last_answers"]}

OPENAI_ERROR = exactly(
    {"error": exactly({"message": text(), "type": text(), "param": _maybe(text()), "code": _maybe(text())})}
)
OLLAMA_ERROR = exactly({"error": text()})
