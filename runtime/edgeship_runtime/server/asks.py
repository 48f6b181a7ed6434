"""What a request asks for, from OpenAI's members into the runtime's terms; the members are checked before.

What no schema says is refused here: RequestError (400).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeship_runtime.server.fields import Body
from edgeship_runtime.server.problems import RequestError
from edgeship_runtime.server.settings import Settings

_AS_THEY_ARE = ("temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty")


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
    found: dict[str, Any] = {name: float(body.get(name)) for name in _AS_THEY_ARE if body.get(name) is not None}
    found["max_tokens"] = body.whole("max_completion_tokens") or body.whole("max_tokens") or settings.max_tokens
    for name in ("top_k", "seed"):
        if (value := body.whole(name)) is not None:
            found[name] = abs(value) if name == "seed" else max(value, 0)
    if body.flag("ignore_eos"):
        found["ignore_eos"] = True
    if stops := body.listed("stop"):
        found["stop"] = tuple(stops)
    if biases := body.body("logit_bias").members:
        found["logit_bias"] = tuple((int(token), float(bias)) for token, bias in biases.items())
    return found


def read_chat(body: Body, settings: Settings) -> ChatAsk:
    """The body of /v1/chat/completions."""
    template = body.body("chat_template_kwargs")
    thinking = template if template.get("enable_thinking") is not None else body
    return ChatAsk(
        model=body.text("model"),
        messages=[read_message(message) for message in body.get("messages")],
        overrides=read_sampling(body, settings),
        tools=body.get("tools") or None,
        tool_choice=body.get("tool_choice"),
        response_format=body.get("response_format"),
        enable_thinking=thinking.get("enable_thinking"),
        thinking_budget=body.whole("thinking_budget"),
        logprobs=(body.whole("top_logprobs") or 0) if body.flag("logprobs") else None,
    )


def read_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its text parts joined, which is what templates for text models take."""
    found = {**message, "role": "system" if message["role"] == "developer" else message["role"]}
    content = message.get("content")
    if isinstance(content, list):
        found["content"] = "".join(part["text"] for part in content)
    return found


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
    """The body of /v1/completions; raises RequestError."""
    echo = body.flag("echo")
    limit = body.whole("max_tokens")
    if limit == 0 and not echo:
        raise body.error("max_tokens", "at least 1 where echo is not asked for")
    overrides = read_sampling(body, settings)
    if limit is None and body.get("max_completion_tokens") is None:
        overrides["max_tokens"] = min(16, settings.max_tokens)  # OpenAI's default for this route
    elif limit == 0:
        overrides["max_tokens"] = 1
    prompt = body.get("prompt")
    return TextAsk(
        model=body.text("model"),
        prompts=[prompt] if isinstance(prompt, str) or not isinstance(prompt[0], str | list) else prompt,
        overrides=overrides,
        echo=echo,
        logprobs=body.whole("logprobs"),
        nothing=limit == 0,
    )


def too_long(most: int) -> RequestError:
    """The error for a prompt of more tokens than the server or the model takes."""
    message = f"the prompt has more tokens than the {most} that are taken here"
    return RequestError(message, param="messages", code="context_length_exceeded")
