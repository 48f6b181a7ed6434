"""An answer of a conversation as events: thought, text and tool calls told apart while they stream.

with converse(model, [{"role": "user", "content": "How warm is it in Ulm?"}], tools=tools) as events:
    for event in events:
        ...
    messages.append(events.answer.message())
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeship_runtime.answer import Result, Stream
from edgeship_runtime.errors import UsageError
from edgeship_runtime.model import Message, Model, Tool
from edgeship_runtime.sampling import GenerationOptions
from edgeship_runtime.talk.aio import iterate
from edgeship_runtime.talk.events import (
    Answer,
    Done,
    Event,
    Reasoning,
    Text,
    ToolCall,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
)
from edgeship_runtime.talk.guide import AnswerGuide
from edgeship_runtime.talk.messages import allowed_tools, for_template, tool_rules
from edgeship_runtime.talk.structured import Matcher, format_rule, grammar
from edgeship_runtime.talk.thinking import State, ThoughtParser, state_of_prompt, switch_in
from edgeship_runtime.talk.tool_calls import CallParser


def converse(
    model: Model,
    messages: Sequence[Message],
    options: GenerationOptions | None = None,
    *,
    tools: Sequence[Tool] | None = None,
    tool_choice: str | Mapping[str, Any] = "auto",
    response_format: Mapping[str, Any] | None = None,
    enable_thinking: bool | None = None,
    thinking_budget: int | None = None,
    **overrides: Any,
) -> Conversation:
    """Answer a conversation event by event; all that is given is checked before this returns.

    `messages`, `tools`, `tool_choice`, `response_format`: OpenAI's (`response_format` also
    `{"type": "regex", "pattern": "..."}`). `enable_thinking` None: the last `/think` or `/no_think` of the messages
    decides, and where there is none the template. `thinking_budget`: tokens after which the thought is closed.

    Raises what `Model.stream` raises; UsageError too for a schema, expression or tool choice that cannot be, and
    DependencyError where one needs llguidance.
    """
    if thinking_budget is not None and (type(thinking_budget) is not int or thinking_budget < 0):
        raise UsageError(f"thinking_budget: expected a whole number of at least 0, found {thinking_budget!r}")
    told = for_template(messages)
    offered, must_call, several = allowed_tools(tools, tool_choice)
    thinking = switch_in(told) if enable_thinking is None else enable_thinking
    prompt = model.render(told, tools=offered or None, enable_thinking=thinking)
    state = state_of_prompt(prompt)
    answer = None if must_call else format_rule(response_format)
    matcher = None
    if must_call or answer is not None:
        if model.options(options, **overrides).ignore_eos:
            raise UsageError("ignore_eos contradicts an answer of a given form, which ends when it is complete")
        matcher = Matcher(model, grammar(answer, tool_rules(offered), several=several))
    opens = matcher is not None and state == "start" and _thinks(model, told, thinking)
    guide = None
    if matcher is not None or thinking_budget is not None:
        text = model.tokenizer
        ends = model.manifest.model.eos_token_ids
        guide = AnswerGuide(text.detokenizer(), text.encode, ends, state, thinking_budget, matcher, opens=opens)
    stream = model.stream(model.tokenizer.encode(prompt), options, guide=guide, **overrides)
    # Where the grammar holds from the first token on, a `<think>` is the text's own.
    begins: State = "text" if matcher is not None and state == "start" and not opens else state
    calls = CallParser({tool["function"]["name"] for tool in offered}) if offered else None
    return Conversation(stream, ThoughtParser(begins), calls)


def _thinks(model: Model, messages: Sequence[Message], thinking: bool | None) -> bool:
    """Whether the model would think: where its template knows how to prevent it and was not asked to."""
    if thinking is False:
        return False
    return state_of_prompt(model.render(messages, enable_thinking=False)) == "text"


@dataclass
class _Parts:
    """What an answer consists of so far."""

    reasoning: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tokens: int = 0
    reasoning_tokens: int = 0


class Conversation(Iterator[Event]):
    """The events of one answer; the last is `Done`. Close it (or leave its `with` block) to stop early."""

    def __init__(self, stream: Stream, thought: ThoughtParser, calls: CallParser | None) -> None:
        self._stream = stream
        self._thought = thought
        self._calls = calls
        self._waiting: deque[Event] = deque()
        self._parts = _Parts()
        self._answer: Answer | None = None

    def __next__(self) -> Event:
        while not self._waiting:
            if self._answer is not None:
                raise StopIteration
            piece = next(self._stream, None)
            if piece is None:
                self._end(self._stream.result)
                break
            before = self._thought.state
            self._take(*self._thought.push(piece.text))
            self._parts.tokens += len(piece.token_ids)
            if before == "thinking" or (before == "start" and self._thought.state in ("thinking", "after")):
                self._parts.reasoning_tokens = self._parts.tokens
        return self._waiting.popleft()

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        """The same in asyncio; see `talk.aio.iterate`."""
        return iterate(self)

    @property
    def answer(self) -> Answer:
        """The whole answer; raises UsageError while events are still to come, or when it was closed early."""
        if self._answer is None:
            raise UsageError("the answer is not finished", hint="iterate over the events to their end first")
        return self._answer

    def cancel(self) -> None:
        """End the answer before its next token; may be called from any thread, while another one iterates."""
        self._stream.cancel()

    def close(self) -> None:
        """Stop generating; a second call does nothing."""
        self._stream.close()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, thought: str, text: str) -> None:
        if thought:
            self._parts.reasoning.append(thought)
            self._waiting.append(Reasoning(thought))
        if text:
            for part in [Text(text)] if self._calls is None else self._calls.push(text):
                self._give(part)

    def _give(self, part: Text | ToolCall) -> None:
        if isinstance(part, Text):
            self._parts.text.append(part.text)
            if part.problem is not None:
                self._parts.problems.append(part.problem)
            self._waiting.append(part)
            return
        index = len(self._parts.calls)
        self._parts.calls.append(part)
        self._waiting.append(ToolCallStarted(index, part.id, part.name))
        self._waiting.append(ToolCallArguments(index, part.arguments))
        self._waiting.append(ToolCallFinished(index))

    def _end(self, result: Result) -> None:
        self._take(*self._thought.flush())
        for part in [] if self._calls is None else self._calls.flush():
            self._give(part)
        parts = self._parts
        self._answer = Answer(
            text="".join(parts.text),
            reasoning="".join(parts.reasoning) or None,
            tool_calls=tuple(parts.calls),
            problems=tuple(parts.problems),
            finish_reason="tool_calls" if parts.calls and result.finish_reason == "stop" else result.finish_reason,
            stop_string=result.stop_string,
            tokens=result.tokens,
            reasoning_tokens=parts.reasoning_tokens,
            stats=result.stats,
        )
        self._waiting.append(Done(self._answer))
