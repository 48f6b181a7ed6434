"""The command `chat`: one conversation, turn by turn, on a terminal or from a pipe.

The model keeps the conversation in its KV cache, so a turn evaluates only what is new since the last one.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgeship_runtime.commands import (
    conversation_options,
    engine_options,
    finish,
    show_answer,
    stats_line,
    system_message,
)
from edgeship_runtime.console import INTERRUPTED, print_json, safe
from edgeship_runtime.errors import ContextError, EdgeshipRuntimeError, TemplateError, UsageError

if TYPE_CHECKING:
    from edgeship_runtime.answer import Result
    from edgeship_runtime.model import Model

_HELP = """/exit          leave (or Ctrl-D)
/reset         forget the conversation
/system TEXT   new conversation with this system message; without TEXT, with none
/stats         counts and speed of the last answer
Ctrl-C stops an answer."""


def chat(args: argparse.Namespace) -> int:
    """Talk until /exit or the end of input; 130 after Ctrl-C at the prompt."""
    options = conversation_options(args)
    from edgeship_runtime.loading import load

    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not args.json
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401 -- importing it gives input() line editing and a history
    with load(args.artifact, context=args.context, threads=args.threads, **engine_options(args)) as model:
        if interactive:
            print(f"{safe(model.manifest.name)}, {model.engine.context} tokens of context; /help", file=sys.stderr)
        return _Session(model, args, options, interactive).talk()


class _Session:
    """A conversation with a model."""

    def __init__(self, model: Model, args: argparse.Namespace, options: dict[str, Any], interactive: bool) -> None:
        self._model = model
        self._args = args
        self._options = options
        self._interactive = interactive
        self._messages: list[dict[str, str]] = system_message(args.system)
        self._last: Result | None = None

    def talk(self) -> int:
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                print(file=sys.stderr)
                return INTERRUPTED
            if line is None:
                return 0
            if line.startswith("/"):
                if not self._obey(line):
                    return 0
            elif line.strip():
                self._turn(line)

    def _read(self) -> str | None:
        """The next line, None at the end of input."""
        if not self._interactive:
            try:
                line = sys.stdin.readline()
            except UnicodeDecodeError as error:
                raise UsageError(f"standard input is not UTF-8 text (byte {error.start})") from None
            return line.rstrip("\r\n") if line else None
        try:
            return input("> ")
        except EOFError:
            print()
            return None

    def _obey(self, line: str) -> bool:
        """Carry out a command; False to leave."""
        name, _, text = line[1:].strip().partition(" ")
        if name in ("exit", "quit"):
            return False
        if name == "reset":
            self._messages = [each for each in self._messages if each["role"] == "system"]
        elif name == "system":
            self._messages = system_message(text.strip() or None)
        elif name == "stats":
            self._say(stats_line(self._last.stats) if self._last else "no answer yet")
        elif name in ("help", "?"):
            self._say(_HELP)
        else:
            self._say(f"there is no command /{safe(name)}\n{_HELP}")
        return True

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _turn(self, text: str) -> None:
        """Answer one message. What goes wrong on a terminal is said and taken back; in a pipe it ends the command."""
        self._messages.append({"role": "user", "content": text})
        try:
            answer = self._answer()
        except (ContextError, TemplateError, UsageError) as error:
            if not self._interactive:
                raise
            self._messages.pop()
            self._say(_complaint(error))
            return
        self._messages.append({"role": "assistant", "content": answer})

    def _answer(self) -> str:
        """Generate and show the answer; Ctrl-C keeps what there is of it."""
        parts: list[str] = []
        with self._model.stream(self._messages, enable_thinking=self._args.think, **self._options) as stream:
            try:
                result = finish(stream) if self._args.json else show_answer(stream, parts)
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print()
                return "".join(parts)
        self._last = result
        if self._args.json:
            print_json({"prompt": self._messages[-1]["content"], **result.to_json()}, indent=None)
        if self._args.stats:
            self._say(stats_line(result.stats))
        if result.finish_reason == "context":
            self._say("the context is full: the answer ends here; /reset starts anew")
        return result.text


def _complaint(error: EdgeshipRuntimeError) -> str:
    hint = "/reset starts anew" if isinstance(error, ContextError) else error.hint
    return f"error: {safe(error.message)}\n\nhint: {safe(hint)}" if hint else f"error: {safe(error.message)}"
