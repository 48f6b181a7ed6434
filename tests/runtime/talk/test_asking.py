"""Conversations on the command line: thought, tools, forms, presets and prefixes, by run, chat and prefix."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from command_line import Ended
from edgeship_runtime import loading
from edgeship_runtime.model import Model
from edgeship_runtime.prefix import shipped_path
from scripted import Engine, saying, tokenizer, tool

ADD = tool("add", a={"type": "integer", "minimum": 0, "maximum": 9})
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Model]:
    """Has `load` give a model that says what the test tells it."""

    def script(*texts: str) -> Model:
        model = saying(*texts)
        monkeypatch.setattr(loading, "load", lambda *_, **__: model)
        return model

    return script


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([ADD]))
    return path


class TestRun:
    def test_thought_text_and_calls(self, command: Callable[..., Ended], says: Any, tools: Path) -> None:
        says(f"<think>\nHm.\n</think>\n\nI add.\n{CALL}\n{CALL}")
        ended = command("run", "x", "Add.", "--tools", tools)
        call = '{"tool_call": {"name": "add", "arguments": {"a": 1}}}\n'
        assert ended.out == f"<think>\nHm.\n</think>\n\nI add.\n{call}{call}"
        assert ended.err == ""

    def test_as_json(self, command: Callable[..., Ended], says: Any, tools: Path) -> None:
        says(f"<think>\nHm.\n</think>\n\nI add.\n{CALL}")
        found = command("run", "x", "Add.", "--tools", tools, "--json").json()
        assert (found["reasoning"], found["text"], found["finish_reason"]) == ("Hm.", "I add.", "tool_calls")
        assert found["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
        assert found["reasoning_tokens"] > 0

    def test_a_malformed_call_is_shown_and_said(self, command: Callable[..., Ended], says: Any, tools: Path) -> None:
        says("<tool_call>\nadd\n</tool_call>")
        ended = command("run", "x", "Add.", "--tools", tools)
        assert ended.out == "<tool_call>\nadd\n</tool_call>\n"
        assert "left as text: it is not JSON" in ended.err

    def test_a_budget(self, command: Callable[..., Ended], says: Any) -> None:
        says("<think>\n" + "and so on " * 99)
        ended = command("run", "x", "Why?", "--thinking-budget", "9", "--max-tokens", "200", "--json").json()
        assert ended["reasoning"].endswith("directly now.")

    def test_a_schema_and_an_expression(self, command: Callable[..., Ended], artifact: str, tmp_path: Path) -> None:
        (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
        ended = command("run", artifact, "Hi", "--schema", tmp_path / "schema.json")
        jsonschema.validate(json.loads(ended.out), SCHEMA)
        assert command("run", artifact, "Hi", "--regex", "[ab]{3}c").out[3:] == "c\n"

    @pytest.mark.parametrize(
        ("more", "reason"),
        [
            (["--schema", "{}/none.json"], "--schema: {}/none.json: the file does not exist"),
            (["--schema", "{}/bad.json"], "bad.json is not JSON"),
            (["--schema", "{}/latin.json"], "latin.json is not UTF-8"),
            (["--schema", "{}/not.json"], "uses not, which is not enforced"),
            (["--schema", "{}/not.json", "--regex", "a"], "not allowed with"),
            (["--tools", "{}/not.json"], "--tools: expected a list of tools"),
            (["--regex", "("], "unclosed group"),
            (["--thinking-budget", "-1"], "thinking_budget: expected a whole number"),
            (["--system", "x", "--system-file", "{}/bad.json"], "both say"),
            (["--preset", "coding", "--system-file", "{}/bad.json"], "both say"),
            (["--raw", "--tools", "{}/tools.json", "--no-think"], "--raw has no chat template for --tools and --no-"),
            (["--raw", "--thinking-budget", "0"], "--raw has no chat template for --thinking-budget"),
        ],
    )
    def test_what_cannot_be(
        self, command: Callable[..., Ended], artifact: str, tmp_path: Path, more: list[str], reason: str
    ) -> None:
        (tmp_path / "bad.json").write_text("{")
        (tmp_path / "latin.json").write_bytes(b'"\xe9"')
        (tmp_path / "not.json").write_text('{"not": {}}')
        (tmp_path / "tools.json").write_text("[]")
        ended = command("run", artifact, "Hi", *[word.replace("{}", str(tmp_path)) for word in more])
        assert (ended.code, ended.out) == (2, "")
        assert reason.replace("{}", str(tmp_path)) in ended.err

    def test_a_preset_with_a_setting(self, command: Callable[..., Ended], says: Any) -> None:
        model = says("def f(): ...")
        assert command("run", "x", "Sort.", "--preset", "coding", "--set", "language=Cobol").out == "def f(): ...\n"
        engine: Any = model.engine
        assert "Cobol" in model.tokenizer.decode(engine.held)


class TestChat:
    def test_a_tools_result_is_the_next_line(
        self, command: Callable[..., Ended], says: Any, tools: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = says(CALL)
        engine: Any = model.engine
        calls, thanks = engine._say, saying("It is ten.").engine._say  # type: ignore[attr-defined]
        told = tokenizer().encode("tool\n10")
        engine._say = lambda step, held: (thanks if str(told)[1:-1] in str(held) else calls)(step, held)
        monkeypatch.setattr(sys, "stdin", StringIO("Add.\n10\n/no_think Thanks.\n/exit\n"))
        ended = command("chat", "x", "--tools", tools, "--json")
        first, second, third = map(json.loads, ended.out.splitlines())
        assert (first["prompt"], first["finish_reason"]) == ("Add.", "tool_calls")
        assert (second["prompt"], second["text"]) == ("10", "It is ten.")
        assert third["prompt"] == "/no_think Thanks."

    def test_input_may_end_before_the_result(
        self, command: Callable[..., Ended], says: Any, tools: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        says(CALL)
        monkeypatch.setattr(sys, "stdin", StringIO("Add.\n"))
        assert command("chat", "x", "--tools", tools, "--max-tokens", "120").code == 0


class TestPrefix:
    SYSTEM = "Be brief, be kind, be calm."

    def test_it_is_found_beside_the_artifact_and_verify_passes(
        self, command: Callable[..., Ended], artifact: str, form: str, tmp_path: Path
    ) -> None:
        path = shipped_path(Path(artifact) / form)
        (tmp_path / "system.txt").write_text(self.SYSTEM)
        line = ("run", artifact, "Hi", "--system", self.SYSTEM, "--max-tokens", "3", "--greedy", "--json")
        before = command(*line).json()
        assert before["stats"]["cached_tokens"] == 0
        try:
            made = command("prefix", artifact, "--system-file", tmp_path / "system.txt", "--json").json()
            assert made["path"] == str(path)
            assert made["bytes"] > 0
            after = command(*line).json()
            assert (after["tokens"], after["stats"]["cached_tokens"]) == (before["tokens"], made["tokens"])
            assert command("verify", artifact).code == 0
            path.write_bytes(path.read_bytes()[:-1])
            assert command(*line).json()["stats"]["cached_tokens"] == 0
        finally:
            path.unlink()

    def test_it_is_given_by_name(self, command: Callable[..., Ended], artifact: str, tmp_path: Path) -> None:
        out = tmp_path / "a.prefix"
        ended = command("prefix", artifact, "--system", self.SYSTEM, "--out", out)
        assert f"use it with --prefix {out}" in ended.out
        line = ("run", artifact, "Hi", "--system", self.SYSTEM, "--max-tokens", "3", "--json", "--prefix", out)
        assert command(*line).json()["stats"]["cached_tokens"] > 32
        out.write_bytes(b"x")
        ended = command(*line)
        assert (ended.code, ended.json()["error"]["exit_code"]) == (8, 8)
        assert "not a whole prefix file" in ended.err

    def test_too_little_is_not_worth_it(self, command: Callable[..., Ended], artifact: str, form: str) -> None:
        ended = command("prefix", artifact)
        assert ended.code == 2
        assert "not worth a file" in ended.err
        assert not shipped_path(Path(artifact) / form).exists()

    def test_an_engine_that_saves_nothing(self, command: Callable[..., Ended], says: Any, tmp_path: Path) -> None:
        assert isinstance(says("x").engine, Engine)
        ended = command("prefix", "x", "--system", self.SYSTEM, "--out", tmp_path / "a.prefix")
        assert (ended.code, list(tmp_path.iterdir())) == (12, [])
        assert "cannot save its state" in ended.err
