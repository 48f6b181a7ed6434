"""What a conversation's answer consists of, in the order in which it comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeship_runtime.answer import FinishReason, Stats


@dataclass(frozen=True)
class Reasoning:
    """Text of the model's thought, without its tags."""

    text: str


@dataclass(frozen=True)
class Text:
    """Text of the answer; `problem` says why when it is a tool call that could not be read."""

    text: str
    problem: str | None = None


@dataclass(frozen=True)
class ToolCallStarted:
    """A tool call, complete and checked, whose arguments follow; `index` counts an answer's calls from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """Arguments of a call, or the next part of them, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolCallFinished:
    """All arguments of a call have come."""

    index: int


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool; `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str

    def to_json(self) -> dict[str, object]:
        """The call as OpenAI's `tool_calls` has it, which chat templates take back too."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Answer:
    """A finished answer, its parts told apart."""

    text: str
    reasoning: str | None
    """The thought; None where the model had none, or an empty one."""
    tool_calls: tuple[ToolCall, ...]
    problems: tuple[str, ...]
    """Why tool calls were left as text."""
    finish_reason: FinishReason | Literal["tool_calls"]
    stop_string: str | None
    tokens: tuple[int, ...]
    reasoning_tokens: int
    """Of `tokens`, those of the thought, tags included."""
    stats: Stats

    def to_json(self) -> dict[str, object]:
        """Plain values for `json.dumps`."""
        return {
            "text": self.text,
            "reasoning": self.reasoning,
            "tool_calls": [call.to_json() for call in self.tool_calls],
            "problems": list(self.problems),
            "finish_reason": self.finish_reason,
            "stop_string": self.stop_string,
            "tokens": list(self.tokens),
            "reasoning_tokens": self.reasoning_tokens,
            "stats": self.stats.to_json(),
        }

    def message(self) -> dict[str, object]:
        """The answer as a message for the next turn; the template decides what becomes of its thought."""
        found: dict[str, object] = {"role": "assistant", "content": self.text}
        if self.reasoning is not None:
            found["reasoning_content"] = self.reasoning
        if self.tool_calls:
            found["tool_calls"] = [call.to_json() for call in self.tool_calls]
        return found


@dataclass(frozen=True)
class Done:
    """The last event."""

    answer: Answer


Event = Reasoning | Text | ToolCallStarted | ToolCallArguments | ToolCallFinished | Done
