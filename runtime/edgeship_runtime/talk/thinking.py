"""`<think>` told apart from the answer while both stream, and the switches of Qwen3's dual mode.

Source of the tags, the switches and the closing words: the Qwen3 technical report, sections 4.3 and 4.7, and the
model cards of Qwen3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edgeship_runtime.talk.tags import held_length

OPEN, CLOSE = "<think>", "</think>"
OPENING = "<think>\n"
"""What the model writes first when it thinks."""
CLOSING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)
"""What ends a thought whose budget is spent."""

_SWITCH = re.compile(r"(?<!\S)/(no_)?think(?!\S)")

State = Literal["start", "thinking", "after", "text"]


class ThoughtParser:
    """Splits an answer into its thought and its text; the result does not depend on how the text is cut.

    A thought is one only at the beginning. Newlines around it belong to the tags.
    """

    def __init__(self, state: State = "start") -> None:
        self.state: State = state
        self._held = ""
        self._thought = False  # whether any of the thought was given out

    def push(self, text: str) -> tuple[str, str]:
        """Add text; return what is now known to be thought, and what is known to be answer."""
        self._held += text
        thought = ""
        if self.state == "start":
            self._begin()
        if self.state == "thinking":
            thought = self._think()
        if self.state == "after":
            self._held = self._held.lstrip("\n")
            if self._held:
                self.state = "text"
        answer = ""
        if self.state == "text":
            answer, self._held = self._held, ""
        return thought, answer

    def flush(self) -> tuple[str, str]:
        """Return what was held back, as `push` does: nothing more will come."""
        text, self._held = self._held, ""
        if self.state == "thinking":
            return self._trim(text).rstrip("\n"), ""
        return "", "" if self.state == "after" else text

    def _begin(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self.state, self._held = "thinking", begun.removeprefix(OPEN)
        elif not OPEN.startswith(begun):
            self.state = "text"

    def _think(self) -> str:
        place = self._held.find(CLOSE)
        if place >= 0:
            thought, self._held = self._held[:place].rstrip("\n"), self._held[place + len(CLOSE) :]
            self.state = "after"
            return self._trim(thought)
        ready = self._held[: len(self._held) - held_length(self._held, CLOSE)].rstrip("\n")
        self._held = self._held[len(ready) :]
        return self._trim(ready)

    def _trim(self, text: str) -> str:
        """Leave out the newlines before the thought's first character."""
        text = text if self._thought else text.lstrip("\n")
        self._thought = self._thought or bool(text)
        return text


def state_of_prompt(prompt: str) -> State:
    """Where an answer begins, by the end of the rendered prompt: inside a thought, after one, or open."""
    end = prompt.rstrip()
    if end.endswith(OPEN):
        return "thinking"
    return "text" if end.endswith(CLOSE) else "start"


def switch_in(messages: Sequence[Mapping[str, Any]]) -> bool | None:
    """The last `/think` or `/no_think` of the user's and system's messages; None when there is none."""
    for message in reversed(messages):
        content = message.get("content")
        if message.get("role") in ("user", "system") and isinstance(content, str):
            found = list(_SWITCH.finditer(content))
            if found:
                return found[-1].group(1) is None
    return None
