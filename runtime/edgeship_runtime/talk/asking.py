"""What `run`, `chat` and `prefix` share: a conversation as the command line asks for it, and answers as they come."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeship_runtime.console import safe, visible
from edgeship_runtime.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from edgeship_runtime.answer import Result, Stats, Stream
    from edgeship_runtime.model import Model
    from edgeship_runtime.talk.conversation import Conversation
    from edgeship_runtime.talk.events import Answer

_MAX_FILE = 1 << 22  # bytes of a schema, of tools, of a system message
_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "seed",
    "stop",
)
_GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}


@dataclass(frozen=True)
class Opening:
    """What all conversations of a command begin with."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    enable_thinking: bool | None
    options: dict[str, Any]
    """Generation options that a preset brings."""


@dataclass(frozen=True)
class Asked:
    """What every answer of a command is asked for; see `talk.converse`."""

    opening: Opening
    overrides: dict[str, Any]
    response_format: dict[str, Any] | None
    thinking_budget: int | None

    def converse(self, model: Model, messages: list[dict[str, Any]]) -> Conversation:
        """Answer a conversation; raises what `talk.converse` raises."""
        from edgeship_runtime.talk.conversation import converse

        return converse(
            model,
            messages,
            tools=self.opening.tools,
            response_format=self.response_format,
            enable_thinking=self.opening.enable_thinking,
            thinking_budget=self.thinking_budget,
            **self.overrides,
        )


def read_asked(args: argparse.Namespace) -> Asked:
    """What a command line asks for, a preset's part where it says nothing itself; raises UsageError as read_opening."""
    overrides = sampling_options(args)
    opening = read_opening(args)
    return Asked(opening, {**opening.options, **overrides}, _read_form(args), args.thinking_budget)


def read_opening(args: argparse.Namespace) -> Opening:
    """System message, tools and thinking; raises UsageError, also for files that cannot be read or are no JSON."""
    settings = dict(map(_setting, args.set or ()))
    system, thinking, options = args.system, args.think, dict[str, Any]()
    if args.system_file is not None:
        if system is not None:
            raise UsageError("--system and --system-file both say the system message", hint="leave out one of them")
        system = _read_file("--system-file", args.system_file)
    if args.preset is None:
        if settings:
            raise UsageError("--set fills in a preset, and none is given", hint="for instance --preset coding")
    else:
        if system is not None:
            raise UsageError("--preset and --system both say the system message", hint="leave out one of them")
        from edgeship_runtime.talk.presets import read_preset

        preset = read_preset(args.preset).fill(settings)
        system, thinking = preset.system, preset.thinking if thinking is None else thinking
        options = preset.options
    messages = [] if system is None else [{"role": "system", "content": system}]
    return Opening(messages, None if args.tools is None else _read_tools(args.tools), thinking, options)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set: expected NAME=VALUE, found {safe(text)!r}", hint="for instance --set language=Python")
    return name, value


def _read_form(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.regex is not None:
        return {"type": "regex", "pattern": args.regex}
    if args.schema is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": _read_json("--schema", args.schema)}}


def _read_tools(path: str) -> list[dict[str, Any]]:
    found = _read_json("--tools", path)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        hint = '[{"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}]'
        raise UsageError(f"--tools: expected a list of tools in {safe(path)}", hint=hint)
    # As some files have them, without what OpenAI's API puts around each.
    return [each if "function" in each else {"type": "function", "function": each} for each in found]


def _read_json(flag: str, path: str) -> Any:
    try:
        return json.loads(_read_file(flag, path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{flag}: {safe(path)} is not JSON ({safe(str(error))})") from None


def _read_file(flag: str, path: str) -> str:
    from edgeship_runtime.strict import read_bytes

    try:
        return read_bytes(Path(path), _MAX_FILE).decode("utf-8")
    except ArtifactError as error:
        raise UsageError(f"{flag}: {error.message}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag}: {safe(path)} is not UTF-8 text (byte {error.start})") from None


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Sampling options that were given on the command line; raises UsageError."""
    given = {name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None}
    if args.greedy and given.get("temperature"):
        raise UsageError(f"--greedy and --temperature {given['temperature']:g} contradict each other")
    if args.logit_bias:
        given["logit_bias"] = tuple(map(_bias, args.logit_bias))
    from edgeship_runtime.sampling import GenerationOptions

    GenerationOptions(**given)  # what is wrong with them is said before a model is loaded
    return {**_GREEDY, **given} if args.greedy else given


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise UsageError(
            f"--logit-bias: expected ID=NUMBER, found {safe(text)!r}", hint="for instance --logit-bias 42=-inf"
        ) from None


class Screen:
    """Prints an answer as it comes, the thought between its tags, a tool call as a line of JSON."""

    def __init__(self) -> None:
        # What a model writes may hold terminal commands; a file or a pipe gets it as it is.
        self._shown: Callable[[str], str] = visible if sys.stdout.isatty() else str
        self._last = ""
        self._thinks = False
        self.text = ""
        """What was shown of the answer's text, also where it was cut off."""

    def _write(self, text: str) -> None:
        sys.stdout.write(self._shown(text))
        sys.stdout.flush()
        self._last = text or self._last

    def _line(self) -> None:
        """End the line."""
        if not self._last.endswith("\n"):
            self._write("\n")

    def raw(self, stream: Stream) -> Result:
        """Show an answer to raw text to its end."""
        for piece in stream:
            self._write(piece.text)
        self._line()
        return stream.result

    def conversation(self, events: Conversation) -> Answer:
        """Show an answer of a conversation to its end."""
        from edgeship_runtime.talk.events import Reasoning, Text, ToolCallArguments, ToolCallStarted

        name = ""
        for event in events:
            if isinstance(event, Reasoning):
                self._write(event.text if self._thinks else f"<think>\n{event.text}")
                self._thinks = True
                continue
            if self._thinks:
                self._write("\n</think>\n\n")
                self._thinks = False
            if isinstance(event, Text):
                self.text += event.text
                self._write(event.text)
            elif isinstance(event, ToolCallStarted):
                name = event.name
            elif isinstance(event, ToolCallArguments):
                if self.text:
                    self._line()
                call = {"name": name, "arguments": json.loads(event.text)}
                self._write(json.dumps({"tool_call": call}, ensure_ascii=False) + "\n")
        self._line()
        for problem in events.answer.problems:
            print(f"a tool call was left as text: {safe(problem)}", file=sys.stderr)
        return events.answer


def stats_line(stats: Stats) -> str:
    """Counts and speed of one answer on a line."""
    cached = f", {stats.cached_tokens} of them kept from before" if stats.cached_tokens else ""
    return (
        f"[{stats.prompt_tokens} prompt tokens{cached}, first token after {stats.ttft_s:.2f} s, prefill "
        f"{stats.prefill_tokens_per_s:.0f} tokens/s; {stats.tokens} tokens, {stats.decode_tokens_per_s:.1f} tokens/s]"
    )
