"""What a request asks for, read from OpenAI's members into the runtime's terms; raises RequestError (400)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeship_runtime.server.fields import Body
from edgeship_runtime.server.problems import RequestError
from edgeship_runtime.server.settings import Settings

_MAX_STOPS = 16
_MAX_BIASES = 1024
_MAX_TOOLS = 128
_MAX_LOGPROBS = 20
_SEEDS = (1 << 63) - 1
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class ChatAsk:
    """A turn of a conversation."""

    model: str
    messages: list[dict[str, Any]]
    overrides: dict[str, Any] = field(default_factory=dict)
    """Generation options that differ from the artifact's defaults."""
    tools: list[Mapping[str, Any]] | None = None
    tool_choice: Any = None
    response_format: Mapping[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    logprobs: int | None = None
    """How many of the likeliest tokens to tell beside each; None: no log probabilities at all."""

    @property
    def text(self) -> str:
        """All contents, a line each."""
        return "\n".join(str(message.get("content") or "") for message in self.messages)


def read_sampling(body: Body, settings: Settings) -> dict[str, Any]:
    """Generation options by the names OpenAI's API and vLLM's additions to it give them."""
    limit = body.whole("max_completion_tokens", 1, settings.max_tokens)
    found: dict[str, Any] = {
        "max_tokens": limit if limit is not None else body.whole("max_tokens", 1, settings.max_tokens),
        "temperature": body.number("temperature", 0, 2),
        "top_p": body.number("top_p", 0, 1),
        "top_k": body.whole("top_k", -1, 1 << 24),
        "min_p": body.number("min_p", 0, 1),
        "presence_penalty": body.number("presence_penalty", -2, 2),
        "repetition_penalty": body.number("repetition_penalty", 0.01, 10),
        "seed": body.whole("seed", -_SEEDS, _SEEDS),
        "stop": body.texts("stop", _MAX_STOPS) or None,
        "logit_bias": _biases(body) or None,
    }
    if body.number("frequency_penalty", -2, 2):
        raise body.error("frequency_penalty", "0: this server has presence_penalty and repetition_penalty alone")
    if body.whole("n", 1, 128) not in (None, 1):
        raise body.error("n", "1: this server gives one answer to a request")
    if found["top_k"] == -1:
        found["top_k"] = 0
    if found["seed"] is not None:
        found["seed"] = abs(found["seed"])
    if any(not stop for stop in found["stop"] or ()):
        raise body.error("stop", "texts of at least one character")
    found["max_tokens"] = found["max_tokens"] or settings.max_tokens
    return {name: value for name, value in found.items() if value is not None}


def _biases(body: Body) -> tuple[tuple[int, float], ...]:
    members = body.body("logit_bias").members
    if len(members) > _MAX_BIASES:
        raise body.error("logit_bias", f"at most {_MAX_BIASES} tokens (there are {len(members)})")
    found = []
    for token, bias in members.items():
        right = isinstance(bias, int | float) and not isinstance(bias, bool) and -100 <= bias <= 100
        if not (right and token.isascii() and token.isdecimal() and len(token) < 10):
            raise body.error("logit_bias", "token ids, each with a number of -100 to 100")
        found.append((int(token), float(bias)))
    return tuple(found)


def read_chat(body: Body, settings: Settings) -> ChatAsk:
    """The body of /v1/chat/completions."""
    messages = body.objects("messages", settings.max_messages)
    if not messages:
        raise body.error("messages", "a list of at least one message")
    template = body.body("chat_template_kwargs")
    thinking = template if template.get("enable_thinking") is not None else body
    top = body.whole("top_logprobs", 0, _MAX_LOGPROBS)
    choice = body.get("tool_choice")
    if choice is not None and not isinstance(choice, str | dict):
        raise body.error("tool_choice", "text or an object", choice)
    return ChatAsk(
        model=body.text("model"),
        messages=[read_message(message, f"messages[{i}].") for i, message in enumerate(messages)],
        overrides=read_sampling(body, settings),
        tools=body.objects("tools", _MAX_TOOLS) or None,
        tool_choice=choice,
        response_format=body.body("response_format").members or None,
        enable_thinking=thinking.flag("enable_thinking") if thinking.get("enable_thinking") is not None else None,
        thinking_budget=body.whole("thinking_budget", 0, settings.max_tokens),
        logprobs=(top or 0) if body.flag("logprobs") else None,
    )


def read_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A message with its text parts joined, which is what templates for text models take."""
    body = Body(message, where)
    role = body.text("role")
    found = {**message, "role": "system" if role == "developer" else role}
    content = message.get("content")
    if isinstance(content, list):
        found["content"] = "".join(_part(body, part) for part in content)
    elif content is not None and not isinstance(content, str):
        raise body.error("content", "text or a list of parts", content)
    return found


def _part(body: Body, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise body.error("content", "parts of text: the model reads nothing else", part)


@dataclass(frozen=True)
class TextAsk:
    """Texts to be continued."""

    model: str
    prompts: list[str | list[int]]
    overrides: dict[str, Any]
    echo: bool
    logprobs: int | None
    nothing: bool
    """Whether no token is to be generated: the prompt's own scores are wanted."""


def read_completion(body: Body, settings: Settings) -> TextAsk:
    """The body of /v1/completions."""
    echo = body.flag("echo")
    nothing = body.get("max_tokens") == 0 and not isinstance(body.get("max_tokens"), bool)
    if nothing and not echo:
        raise body.error("max_tokens", "at least 1 where echo is not asked for")
    if body.whole("best_of", 1, 128) not in (None, 1):
        raise body.error("best_of", "1: this server gives one answer to a request")
    if body.text("suffix", ""):
        raise body.error("suffix", "none: this server continues texts and fills in nothing")
    sampling = Body({**body.members, "max_tokens": 1, "logprobs": None} if nothing else body.members)
    overrides = read_sampling(sampling, settings)
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        overrides["max_tokens"] = min(16, settings.max_tokens)  # OpenAI's default for this route
    return TextAsk(
        model=body.text("model"),
        prompts=read_prompts(body, "prompt", settings),
        overrides=overrides,
        echo=echo,
        logprobs=body.whole("logprobs", 0, _MAX_LOGPROBS),
        nothing=nothing,
    )


def read_prompts(body: Body, name: str, settings: Settings) -> list[str | list[int]]:
    """A text, texts, token ids, or lists of token ids."""
    value = body.get(name)
    if isinstance(value, str) or (isinstance(value, list) and value and _is_ids(value)):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(each, str) or _is_ids(each) for each in value):
        raise body.error(name, "text, token ids, or a list of either", value)
    if len(value) > settings.max_inputs:
        raise body.error(name, f"at most {settings.max_inputs} texts (there are {len(value)})")
    if not all(value):
        raise body.error(name, "texts that are not empty")
    return value


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 31 for each in value)


def check_length(tokens: int, settings: Settings) -> None:
    """Refuse a prompt of more tokens than the server takes."""
    if tokens > settings.max_prompt_tokens:
        raise RequestError(
            f"the prompt has {tokens} tokens; this server takes {settings.max_prompt_tokens}",
            param="messages",
            code="context_length_exceeded",
        )
