"""What a command prints: text that cannot drive the terminal, JSON objects, a line of progress."""

from __future__ import annotations

import json
import sys
from typing import Any

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""


def safe(text: str) -> str:
    """Text with control characters but line breaks and tabs escaped: names and messages may come from an artifact."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() else repr(letter)[1:-1] for letter in text)


def visible(text: str) -> str:
    """A model's text for a terminal: control characters but line breaks and tabs replaced, the rest untouched.

    Joiners and marks that `str.isprintable` refuses are part of words and emoji here.
    """
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(letter) else letter for letter in text)


def _is_control(letter: str) -> bool:
    return (letter < " " and letter not in "\n\t") or "\x7f" <= letter < "\xa0"


def print_json(value: Any, indent: int | None = 2) -> None:
    """One JSON object on standard output; `indent` None: on one line."""
    print(json.dumps(value, indent=indent, ensure_ascii=False), flush=True)


class Progress:
    """One line on standard error that says what is going on, on a terminal only; gone at the end."""

    def __init__(self) -> None:
        self._shown = ""
        self._live = sys.stderr.isatty()

    def share(self, what: str, share: float) -> None:
        """Show what is being done and how much of it is, 0 to 1."""
        self.say(f"{what} {share:4.0%}")

    def say(self, text: str) -> None:
        """Replace the line."""
        if self._live and text != self._shown:
            self._shown = text
            print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
