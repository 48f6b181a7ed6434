"""What requests may say, as JSON schemas: they check every request (`fields.py`) and stand in the OpenAPI document.

Where a schema has a description, an error quotes it: "expected " and the description make a sentence.
"""

from __future__ import annotations

from typing import Any

from edgeship_runtime.server.settings import Settings

Made = dict[str, Any]
_SEEDS = (1 << 63) - 1
_FLAG: Made = {"type": "boolean"}
_ANY_OBJECT: Made = {"type": "object"}
_MAX_TOOLS = 128
_MAX_STOPS = 16
_NAME: Made = {"type": "string", "minLength": 1, "maxLength": 256}


def requests(settings: Settings) -> dict[str, Made]:
    """The schema of each route's body, by path."""
    chat, generate = _ollama(settings)
    return {
        "/v1/chat/completions": _chat(settings),
        "/v1/completions": _completion(settings),
        "/v1/embeddings": _embeddings(settings),
        "/v1/responses": _response(settings),
        "/api/chat": chat,
        "/api/generate": generate,
        "/api/embed": _embed(settings),
    }


def members(required: Made, optional: Made | None = None, **more: Any) -> Made:
    """An object; optional members may be null, and others are ignored."""
    properties = required | {name: _or_null(each) for name, each in (optional or {}).items()}
    found: Made = {"type": "object", "properties": properties, **more}
    return found | {"required": list(required)} if required else found


def _or_null(schema: Made) -> Made:
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    if schema.get("type") == "null":
        return schema
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return schema | {"type": [schema["type"], "null"], **enum}


def either(*schemas: Made, **more: Any) -> Made:
    """A value of one of several forms."""
    return {"anyOf": list(schemas), **more}


def one_of(*values: str) -> Made:
    """One of several words."""
    return {"type": "string", "enum": list(values)}


def listed(items: Made, most: int | None = None, least: int = 0) -> Made:
    """A list of `least` to `most` elements."""
    found: Made = {"type": "array", "items": items}
    return found | ({"maxItems": most} if most is not None else {}) | ({"minItems": least} if least else {})


def text(least: int = 0, **more: Any) -> Made:
    """Text of at least so many characters."""
    return {"type": "string", **({"minLength": least} if least else {}), **more}


def whole(low: int, high: int, **more: Any) -> Made:
    """A whole number of `low` to `high`."""
    return {"type": "integer", "minimum": low, "maximum": high, **more}


def number(low: float, high: float, **more: Any) -> Made:
    """A number of `low` to `high`."""
    return {"type": "number", "minimum": low, "maximum": high, **more}


def _none(why: str) -> Made:
    return {"type": "null", "description": f"none: {why}"}


def _sampling(settings: Settings) -> Made:
    """What OpenAI's API and vLLM's additions to it call the options of generating."""
    only = "this server gives one answer to a request"
    return {
        "max_tokens": whole(1, settings.max_tokens),
        "temperature": number(0, 2),
        "top_p": number(0, 1),
        "top_k": whole(-1, 1 << 24),
        "min_p": number(0, 1),
        "presence_penalty": number(-2, 2),
        "repetition_penalty": number(0.01, 10),
        "frequency_penalty": number(
            0, 0, description="0: this server has presence_penalty and repetition_penalty alone"
        ),
        "seed": whole(-_SEEDS, _SEEDS),
        "ignore_eos": _FLAG,
        "stop": either(text(1), listed(text(1), _MAX_STOPS)),
        "logit_bias": {
            "type": "object",
            "description": "at most 1024 token ids, each with a number of -100 to 100",
            "maxProperties": 1024,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": number(-100, 100),
        },
        "n": whole(1, 1, description=f"1: {only}"),
    }


def _thinking(settings: Settings) -> Made:
    return {
        "enable_thinking": _FLAG,
        "thinking_budget": whole(0, settings.max_tokens),
        "chat_template_kwargs": members({}, {"enable_thinking": _FLAG}),
    }


_PART = members({"type": one_of("text", "input_text", "output_text"), "text": text()})
_PART["description"] = "parts of text: the model reads nothing else"
_CONTENT = either(text(), listed(_PART))
_ROLES = ("system", "developer", "user", "assistant", "tool")
_CALL = members({"function": members({"name": text()}, {"arguments": either(text(), _ANY_OBJECT)})}, {"id": text()})


def _messages(settings: Settings, **more: Made) -> Made:
    optional = {"content": _CONTENT, "tool_calls": listed(_CALL, _MAX_TOOLS), "tool_call_id": text(), "name": text()}
    optional["reasoning_content"] = text()
    return listed(members({"role": one_of(*_ROLES)}, optional | more), settings.max_messages, 1)


_FUNCTION = {"description": text(), "parameters": _ANY_OBJECT, "strict": _FLAG}
_TOOL = members({"type": one_of("function"), "function": members({"name": _NAME}, _FUNCTION)})
_NAMED = members({"type": one_of("function"), "function": members({"name": _NAME})})
_CHOICES = one_of("auto", "none", "required")
_SCHEMA = either(_ANY_OBJECT, _FLAG)
_FORMATS = ("text", "json_object", "json_schema", "regex")
_DESCRIBED = {"name": text(), "description": text(), "strict": _FLAG}


def _chat(settings: Settings) -> Made:
    form = {"json_schema": members({"schema": _SCHEMA}, _DESCRIBED), "pattern": text(1)}
    optional = {
        "stream": _FLAG,
        "stream_options": members({}, {"include_usage": _FLAG}),
        "max_completion_tokens": whole(1, settings.max_tokens),
        "tools": listed(_TOOL, _MAX_TOOLS),
        "tool_choice": either(_CHOICES, _NAMED),
        "response_format": members({"type": one_of(*_FORMATS)}, form),
        "logprobs": _FLAG,
        "top_logprobs": whole(0, 20),
    }
    optional |= _sampling(settings) | _thinking(settings)
    return members({"model": text(), "messages": _messages(settings)}, optional)


def _completion(settings: Settings) -> Made:
    tokens = listed(whole(0, (1 << 31) - 1), settings.max_prompt_tokens, 1)
    several = listed(either(text(1), tokens), settings.max_inputs, 1)
    most = f"at most {settings.max_inputs} of them, none of them empty"
    optional = _sampling(settings) | {
        "max_tokens": whole(0, settings.max_tokens),
        "max_completion_tokens": whole(1, settings.max_tokens),
        "stream": _FLAG,
        "stream_options": members({}, {"include_usage": _FLAG}),
        "echo": _FLAG,
        "logprobs": whole(0, 20),
        "best_of": whole(1, 1, description="1: this server gives one answer to a request"),
        "suffix": text(maxLength=0, description="none: this server continues texts and fills in nothing"),
    }
    prompt = either(text(1), tokens, several, description=f"text, token ids, or a list of either: {most}")
    return members({"model": text(), "prompt": prompt}, optional)


def _texts(settings: Settings) -> Made:
    return either(text(1), listed(text(1), settings.max_inputs, 1))


_SIZE = {"dimensions": _none("the model's own size is what this server gives")}


def _embeddings(settings: Settings) -> Made:
    form = {"encoding_format": one_of("float", "base64")}
    return members({"model": text(), "input": _texts(settings)}, form | _SIZE)


def _response(settings: Settings) -> Made:
    told = members({"role": one_of(*_ROLES), "content": _CONTENT}, {"type": one_of("message")})
    call = {"call_id": text(), "name": text(), "arguments": text()}
    called = members({"type": one_of("function_call"), **call})
    output = members({"type": one_of("function_call_output"), "call_id": text(), "output": _CONTENT})
    items = either(
        *(told, called, output, members({"type": one_of("reasoning")})),
        description="items of type message, function_call, function_call_output or reasoning, with their members",
    )
    tool = members({"type": one_of("function"), "name": _NAME}, _FUNCTION)
    tool["description"] = "functions with a name: this server runs no tools of its own"
    form = members({"type": one_of(*_FORMATS)}, {**_DESCRIBED, "schema": _SCHEMA, "pattern": text(1)})
    stored = _none("this server stores no conversation; send all of it as input")
    sampling = _sampling(settings)
    optional = {
        "instructions": text(),
        "stream": _FLAG,
        "max_output_tokens": sampling["max_tokens"],
        **{name: sampling[name] for name in ("temperature", "top_p", "seed", "stop")},
        "tools": listed(tool, _MAX_TOOLS),
        "tool_choice": either(_CHOICES, members({"type": one_of("function"), "name": _NAME})),
        "text": members({}, {"format": form}),
        "previous_response_id": stored,
        "conversation": stored,
    }
    given = either(text(), listed(items, settings.max_messages, 1))
    return members({"model": text(), "input": given}, optional | _thinking(settings))


def _ollama(settings: Settings) -> tuple[Made, Made]:
    """Of /api/chat and of /api/generate."""
    sampling = _sampling(settings)
    same = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "stop")
    options = {name: sampling[name] for name in same} | {
        "num_predict": either(sampling["max_tokens"], whole(-2, -1)),
        "repeat_penalty": sampling["repetition_penalty"],
    }
    shared = {
        "stream": _FLAG,
        "think": either(_FLAG, one_of("low", "medium", "high")),
        "format": either(one_of("json", ""), _ANY_OBJECT, description='"json" or a JSON schema'),
        "options": members({}, options),
    }
    no_images = listed({}, 0) | {"description": "none: parts of text are all that the model reads"}
    call = members({"function": members({"name": text()}, {"arguments": _ANY_OBJECT})})
    told = {"images": no_images, "thinking": text(), "tool_name": text(), "tool_calls": listed(call, _MAX_TOOLS)}
    tool = members({"function": members({"name": _NAME}, _FUNCTION)}, {"type": one_of("function")})
    chat = {"tools": listed(tool, _MAX_TOOLS), **shared}
    generate = {"prompt": text(), "system": text(), "raw": _FLAG, "images": no_images, **shared}
    return members({"model": text(), "messages": _messages(settings, **told)}, chat), members(
        {"model": text()}, generate
    )


def _embed(settings: Settings) -> Made:
    return members({"model": text(), "input": _texts(settings)}, _SIZE)
