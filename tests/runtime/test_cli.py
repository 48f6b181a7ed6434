"""The command line as a user meets it: exit codes, one-screen errors, pipes, Ctrl-C, start-up, help."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command_line import Ended, interrupt_after, start
from edgeship_runtime import __version__, cli
from edgeship_runtime.console import Progress, safe, visible
from terminals import Terminal

BAD_LINES: list[tuple[list[str], int, str]] = [
    ([], 2, "COMMAND"),
    (["rnu"], 2, "invalid choice"),
    (["run"], 2, "ARTIFACT, PROMPT"),
    (["run", "{}"], 2, "PROMPT"),
    (["run", "{}", "x", "--gredy"], 2, "unrecognized arguments: --gredy"),
    (["run", "{}", "x", "--max-tokens", "many"], 2, "invalid int value: 'many'"),
    (["run", "{}", "x", "--max-tokens", "0"], 2, "max_tokens: expected a whole number of at least 1"),
    (["run", "{}", "x", "--temperature", "-1"], 2, "temperature"),
    (["run", "{}", "x", "--temperature", "nan"], 2, "temperature"),
    (["run", "{}", "x", "--top-p", "2"], 2, "top_p"),
    (["run", "{}", "x", "--seed", "-1"], 2, "seed"),
    (["run", "{}", "x", "--stop", ""], 2, "stop"),
    (["run", "{}", "x", "--logit-bias", "5"], 2, "expected ID=NUMBER, found '5'"),
    (["run", "{}", "x", "--logit-bias", "a=b"], 2, "expected ID=NUMBER"),
    (["run", "{}", "x", "--logit-bias", "99999=1"], 2, "99999"),
    (["run", "{}", "x", "--greedy", "--temperature", "1"], 2, "contradict"),
    (["run", "{}", "x", "--raw", "--system", "y"], 2, "--raw has no chat template"),
    (["run", "{}", "x", "--think", "--no-think"], 2, "not allowed with"),
    (["run", "{}", ""], 2, "the prompt is empty"),
    (["run", "{}", "x", "--context", "0"], 2, "context"),
    (["run", "{}", "x", "--context", "100000"], 2, "context of 100000"),
    (["run", "{}", "x", "--threads", "0"], 2, "0 threads"),
    (["run", "{}", "x " * 200, "--raw"], 11, "no room for an answer"),
    (["run", "{}/nothing", "x"], 8, "no such directory"),
    (["run", "{}/FORM/edgeship.json", "x"], 8, "found a file"),
    (["run", "a\0b", "x"], 8, "a\\x00b: no such directory"),
    (["info"], 2, "ARTIFACT"),
    (["info", "/"], 8, "no artifact here"),
    (["verify", "{}", "--skip", "everything"], 2, "there is no check"),
    (["verify", "{}", "--context", "2"], 2, "needs a context"),
    (["bench", "{}", "--repeats", "0"], 2, "expected at least 1"),
    (["bench", "{}", "--decode-tokens", "1000"], 2, "do not fit"),
    (["chat", "{}", "--nonsense"], 2, "unrecognized"),
    (["--versio"], 2, "required: COMMAND"),
]


class TestErrors:
    @pytest.mark.parametrize(
        ("line", "code", "message"), BAD_LINES, ids=[" ".join(line)[:40] for line, _, _ in BAD_LINES]
    )
    def test_one_screen_and_a_code(
        self, command: Callable[..., Ended], artifact: str, form: str, line: list[str], code: int, message: str
    ) -> None:
        words = [word.replace("{}", artifact).replace("FORM", form) for word in line]
        ended = command(*words)
        assert ended.code == code
        assert ended.out == ""
        assert ended.err.startswith("error: ")
        assert message in ended.err
        assert "Traceback" not in ended.err
        assert len(ended.err) < 3000
        if line and not line[0].startswith("-") and line != ["rnu"]:
            error = command(*words, "--json").json()["error"]
            assert set(error) == {"kind", "message", "hint", "exit_code"}
            assert error["exit_code"] == code

    def test_a_hostile_name_does_not_drive_the_terminal(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        ended = command("run", str(tmp_path / "\x1b[31mred\x07"), "x")
        assert "\x1b" not in ended.err
        assert "\\x1b[31mred" in ended.err

    def test_defects_are_called_so(
        self, command: Callable[..., Ended], artifact: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(path: str) -> None:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr("edgeship_runtime.info.describe", broken)
        ended = command("info", artifact)
        assert ended.code == 1
        assert "a defect of edgeship: ZeroDivisionError: oops" in ended.err
        assert "EDGESHIP_DEBUG=1" in ended.err
        monkeypatch.setenv("EDGESHIP_DEBUG", "1")
        with pytest.raises(ZeroDivisionError):
            cli.main(["info", artifact])

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (MemoryError(), 9),
            (OSError(28, "No space left"), 9),
            (PermissionError(13, "denied"), 8),
            (RecursionError(), 1),
        ],
    )
    def test_errors_of_python(
        self, command: Callable[..., Ended], artifact: str, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
    ) -> None:
        def broken(path: str) -> None:
            raise error

        monkeypatch.setattr("edgeship_runtime.info.describe", broken)
        assert command("info", artifact).code == code

    def test_standard_input_that_is_no_text(
        self, command: Callable[..., Ended], artifact: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"\xff\xfe")))
        ended = command("run", artifact, "-")
        assert ended.code == 2
        assert "not UTF-8" in ended.err

    def test_arguments_that_are_no_text(self, artifact: str) -> None:
        process = start("run", artifact, os.fsdecode(b"\xff"), "--raw")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert err.startswith(b"error: ")

    @given(st.lists(st.text(max_size=6) | st.sampled_from(["run", "info", "--json", "-", "--", "-1"]), max_size=5))
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_words(self, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
        try:
            code = cli.main(["run", *words])
        except SystemExit as end:
            code = int(end.code or 0)
        assert code in (0, 2, 8)
        assert "Traceback" not in capsys.readouterr().err


class TestProcess:
    def test_ctrl_c_while_waiting(self, artifact: str) -> None:
        reader, writer = os.pipe()  # nobody writes to it
        process = start("run", artifact, "-", stdin=reader)
        try:
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            os.close(reader)
            os.close(writer)
            process.kill()
        assert process.returncode == 130
        assert out == b""
        assert err == b"\n"

    def test_ctrl_c_in_an_answer(
        self, command: Callable[..., Ended], artifact: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        interrupt_after(monkeypatch, 3)
        ended = command("run", artifact, "The cat", "--raw", "--greedy", "--max-tokens", "20")
        assert ended.code == 130
        assert ended.err == "\n"
        assert command("run", artifact, "x", "--max-tokens", "20", "--json").code == 130

    def test_a_closed_pipe_is_quiet(self, artifact: str) -> None:
        reader, writer = os.pipe()
        process = start("info", artifact, stdout=writer)
        os.close(reader)
        os.close(writer)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 141
        assert err == b""

    def test_version(self, command: Callable[..., Ended]) -> None:
        assert command("--version").out == f"edgeship-runtime {__version__}\n"

    @pytest.mark.parametrize("name", ["", "run", "chat", "prefix", "info", "verify", "bench"])
    def test_help_has_an_example(self, command: Callable[..., Ended], name: str) -> None:
        ended = command(*filter(None, [name]), "--help")
        assert ended.code == 0
        assert "example:\n  edgeship-runtime " in ended.out


class TestConsole:
    def test_safe(self) -> None:
        assert safe("a\x1b[31m\r\nb\u202ec\t中👩") == "a\\x1b[31m\\r\nb\\u202ec\t中👩"

    def test_visible(self) -> None:
        assert visible("a\x1b[2J\r\n\tb\x9b 👩‍👩‍👧 \u202e") == "a\ufffd[2J\ufffd\n\tb\ufffd 👩‍👩‍👧 \u202e"

    def test_progress_shows_on_a_terminal_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for screen, shown in ((StringIO(), ""), (Terminal(), "\rfiles  50%\x1b[K\r\x1b[K")):
            monkeypatch.setattr(sys, "stderr", screen)
            with Progress() as progress:
                progress.share("files", 0.5)
                progress.share("files", 0.5)
            assert screen.getvalue() == shown
