"""One turn of a conversation on the engine's thread, as the events of `talk`."""

from __future__ import annotations

from collections.abc import Generator

from edgeship_runtime.model import Model
from edgeship_runtime.server.asks import ChatAsk, check_length
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.talk.conversation import converse
from edgeship_runtime.talk.events import Event


def turn(model: Model, ask: ChatAsk, settings: Settings) -> Generator[Event, None, None]:
    """Answer a conversation; raises RequestError and what `converse` raises."""
    if len(ask.text) > settings.max_prompt_tokens:  # a token is a character at least, mostly several
        check_length(len(model.encode(ask.text)), settings)
    with converse(
        model,
        ask.messages,
        tools=ask.tools,
        tool_choice="auto" if ask.tool_choice is None else ask.tool_choice,
        response_format=ask.response_format,
        enable_thinking=ask.enable_thinking,
        thinking_budget=ask.thinking_budget,
        **ask.overrides,
    ) as events:
        yield from events
