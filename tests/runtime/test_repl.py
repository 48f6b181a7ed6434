"""The command chat: turns, commands, pipes, a terminal, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, StringIO, TextIOWrapper

import pytest

from command_line import Ended, interrupt_after, start


class TestChat:
    def talk(
        self, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended], artifact: str, text: str, *more: str
    ) -> Ended:
        monkeypatch.setattr(sys, "stdin", StringIO(text))
        ended: Ended = command("chat", artifact, "--greedy", "--max-tokens", "3", *more)
        return ended

    def test_turns_reuse_what_is_known(
        self, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended], artifact: str
    ) -> None:
        ended = self.talk(monkeypatch, command, artifact, "Hi\nYo\n", "--json", "--context", "96", "--system", "S")
        assert ended.code == 0
        first, second = map(json.loads, ended.out.splitlines())
        assert (first["prompt"], second["prompt"]) == ("Hi", "Yo")
        assert second["stats"]["prompt_tokens"] > first["stats"]["prompt_tokens"]
        assert second["stats"]["cached_tokens"] >= first["stats"]["prompt_tokens"] - 1

    def test_commands(self, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended], artifact: str) -> None:
        text = "/stats\nHi\n\n/stats\n/reset\nYo\n/system Be\nHo\n/help\n/nothing\n/exit\nnever\n"
        ended = self.talk(monkeypatch, command, artifact, text, "--json", "--context", "96")
        prompts = [json.loads(line)["prompt"] for line in ended.out.splitlines()]
        assert ended.code == 0
        assert prompts == ["Hi", "Yo", "Ho"]
        for said in ("no answer yet", "prompt tokens", "/reset", "there is no command /nothing"):
            assert said in ended.err

    def test_reset_forgets(self, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended], artifact: str) -> None:
        ended = self.talk(monkeypatch, command, artifact, "Hi\n/reset\nHi\n", "--json", "--system", "S")
        first, second = map(json.loads, ended.out.splitlines())
        assert first["stats"]["prompt_tokens"] == second["stats"]["prompt_tokens"]
        assert first["tokens"] == second["tokens"]

    def test_text_answers(self, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended], artifact: str) -> None:
        ended = self.talk(monkeypatch, command, artifact, "Hi\n", "--stats")
        assert ended.out.endswith("\n")
        assert "tokens/s" in ended.err

    def test_a_conversation_too_long_ends_a_pipe(
        self, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended], artifact: str
    ) -> None:
        ended = self.talk(monkeypatch, command, artifact, "Hi " * 200 + "\n")
        assert ended.code == 11
        assert ended.err.startswith("error: the prompt has")

    def test_input_that_is_no_text(
        self, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended], artifact: str
    ) -> None:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"\xff\n"), encoding="utf-8"))
        ended = command("chat", artifact)
        assert ended.code == 2
        assert "not UTF-8" in ended.err

    def test_on_a_terminal(self, artifact: str) -> None:
        """Ctrl-C at the prompt ends with 130; errors are said and the conversation goes on."""
        ours, theirs = pty.openpty()
        process = start("chat", artifact, "--greedy", "--max-tokens", "3", stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        try:
            terminal = Terminal(ours)
            terminal.wait_for("> ")
            terminal.send("hello\n")
            terminal.wait_for("> ")
            terminal.send("word " * 100 + "\n")
            terminal.wait_for("/reset starts anew")
            terminal.wait_for("> ")
            # Python's readline misses a signal that comes between its prompt and its wait; a user presses again.
            for _ in range(30):
                process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1)
                    break
            assert process.returncode == 130
            assert "Traceback" not in terminal.text
        finally:
            process.kill()
            process.wait()
            os.close(ours)

    def test_ctrl_c_stops_an_answer_and_keeps_what_there_is(
        self, command: Callable[..., Ended], artifact: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        typed = iter(["Hi", "/stats", "/exit"])
        monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
        interrupt_after(monkeypatch, 3)
        ended = command("chat", artifact, "--greedy", "--max-tokens", "20", "--stats")
        assert ended.code == 0
        assert ended.out.endswith("\n")
        assert "no answer yet" in ended.err

    def test_ctrl_c_ends_a_pipe(
        self, command: Callable[..., Ended], artifact: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupt_after(monkeypatch, 1)
        assert self.talk(monkeypatch, command, artifact, "Hi\nYo\n").code == 130


class Terminal:
    """Our end of a pseudo-terminal."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.text = ""
        self._read_to = 0

    def wait_for(self, text: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.text[self._read_to :]:
            assert time.monotonic() < end, self.text
            if select.select([self._handle], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self._handle, 4096).decode(errors="replace")
                except OSError:
                    raise AssertionError(self.text) from None
        self._read_to = self.text.index(text, self._read_to) + len(text)

    def send(self, text: str) -> None:
        os.write(self._handle, text.encode())
