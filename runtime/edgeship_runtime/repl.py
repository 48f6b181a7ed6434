"""The command `chat`: one conversation, turn by turn, on a terminal or from a pipe.

The model keeps the conversation in its KV cache, so a turn evaluates only what is new since the last one.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgeship_runtime.commands import engine_options, finish
from edgeship_runtime.console import INTERRUPTED, print_json, safe
from edgeship_runtime.errors import ContextError, EdgeshipRuntimeError, TemplateError, UsageError
from edgeship_runtime.talk.asking import Asked, Screen, read_asked, stats_line

if TYPE_CHECKING:
    from edgeship_runtime.model import Model
    from edgeship_runtime.talk.events import Answer

_HELP = """/exit          leave (or Ctrl-D)
/reset         forget the conversation
/system TEXT   new conversation with this system message; without TEXT, with none
/stats         counts and speed of the last answer
After a tool call (--tools) the next line is what it returned. Ctrl-C stops an answer."""
_SWITCHES = ("/think", "/no_think")
"""Of Qwen3's, at the beginning of a message: no commands."""


def chat(args: argparse.Namespace) -> int:
    """Talk until /exit or the end of input; 130 after Ctrl-C at the prompt."""
    asked = read_asked(args)
    from edgeship_runtime.loading import load

    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not args.json
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401 -- importing it gives input() line editing and a history
    given = {"context": args.context, "threads": args.threads, "prefix": args.prefix, **engine_options(args)}
    with load(args.artifact, **given) as model:
        if interactive:
            print(f"{safe(model.manifest.name)}, {model.engine.context} tokens of context; /help", file=sys.stderr)
        return _Session(model, args, asked, interactive).talk()


class _Session:
    """A conversation with a model."""

    def __init__(self, model: Model, args: argparse.Namespace, asked: Asked, interactive: bool) -> None:
        self._model = model
        self._args = args
        self._asked = asked
        self._interactive = interactive
        self._messages: list[dict[str, Any]] = list(asked.opening.messages)
        self._last: Answer | None = None

    def talk(self) -> int:
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                print(file=sys.stderr)
                return INTERRUPTED
            if line is None:
                return 0
            if line.startswith("/") and line.split()[0] not in _SWITCHES:
                if not self._obey(line):
                    return 0
            elif line.strip():
                self._turn(line)

    def _read(self, prompt: str = "> ") -> str | None:
        """The next line, None at the end of input."""
        if not self._interactive:
            try:
                line = sys.stdin.readline()
            except UnicodeDecodeError as error:
                raise UsageError(f"standard input is not UTF-8 text (byte {error.start})") from None
            return line.rstrip("\r\n") if line else None
        try:
            return input(prompt)
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
            self._messages = [{"role": "system", "content": text.strip()}] if text.strip() else []
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
        before = len(self._messages)
        self._messages.append({"role": "user", "content": text})
        try:
            self._answer()
            while calls := self._messages[-1].get("tool_calls"):
                if not self._take_results(calls):
                    break
                self._answer()
        except (ContextError, TemplateError, UsageError) as error:
            if not self._interactive:
                raise
            del self._messages[before:]
            self._say(_complaint(error))

    def _answer(self) -> None:
        """Generate and show the answer, and remember it; Ctrl-C keeps what there is of it."""
        screen = Screen()
        with self._asked.converse(self._model, self._messages) as events:
            try:
                answer = finish(events).answer if self._args.json else screen.conversation(events)
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print()
                self._messages.append({"role": "assistant", "content": screen.text})
                return
        self._last = answer
        if self._args.json:
            print_json({"prompt": self._messages[-1]["content"], **answer.to_json()}, indent=None)
        self._messages.append(answer.message())
        if self._args.stats:
            self._say(stats_line(answer.stats))
        if answer.finish_reason == "context":
            self._say("the context is full: the answer ends here; /reset starts anew")

    def _take_results(self, calls: list[dict[str, Any]]) -> bool:
        """Read a line for the result of each call; False at the end of input."""
        for call in calls:
            line = self._read(f"{call['function']['name']} returns> ")
            if line is None:
                return False
            self._messages.append({"role": "tool", "tool_call_id": call["id"], "content": line})
        return True


def _complaint(error: EdgeshipRuntimeError) -> str:
    hint = "/reset starts anew" if isinstance(error, ContextError) else error.hint
    return f"error: {safe(error.message)}\n\nhint: {safe(hint)}" if hint else f"error: {safe(error.message)}"
