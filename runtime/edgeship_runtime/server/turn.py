"""One turn of a conversation on the engine's thread, as the events of `talk`."""

from __future__ import annotations

from collections.abc import Generator

from edgeship_runtime.model import Model
from edgeship_runtime.server.asks import ChatAsk, too_long
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.talk.conversation import converse
from edgeship_runtime.talk.events import Event


def turn(model: Model, ask: ChatAsk, settings: Settings) -> Generator[Event, None, None]:
    """Answer a conversation; raises RequestError and what `converse` raises."""
    check_text(model, ask.text, settings)
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


def check_text(model: Model, text: str, settings: Settings) -> None:
    """Refuse a text that has more tokens than can be taken, at little more than the cost of reading that many."""
    most = min(settings.max_prompt_tokens, model.engine.context)
    size = min(4 * most, len(text))
    while len(text) > most:  # a token is a character at least
        # What a cut goes through may have more tokens by itself.
        if len(model.encode(text[:size])) > (most if size == len(text) else most + 8):
            raise too_long(most)
        if size == len(text):
            return
        size = min(4 * size, len(text))
