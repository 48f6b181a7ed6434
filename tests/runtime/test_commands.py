"""The commands run, info, verify and bench on a toy artifact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from acceptance_files import write_acceptance
from command_line import ROOT, Ended, start
from edgeship_runtime import cli
from edgeship_runtime.talk import asking, conversation
from scripted import tool
from toy_artifact import write_toy

TOOL = tool("add", a={"type": "integer", "minimum": 0, "maximum": 99})


class TestRun:
    def test_raw_and_greedy(self, command: Callable[..., Ended], artifact: str) -> None:
        ended = command("run", artifact, "The cat", "--raw", "--greedy", "--max-tokens", "8")
        assert ended.code == 0
        assert ended.out.endswith("\n")
        assert ended.err == ""
        again = command("run", artifact, "The cat", "--raw", "--greedy", "--max-tokens", "8", "--json").json()
        assert ended.out in (again["text"], again["text"] + "\n")
        assert again["finish_reason"] in ("length", "stop")
        assert again["stats"]["tokens"] == len(again["tokens"])

    def test_the_template_is_used(self, command: Callable[..., Ended], artifact: str) -> None:
        raw = command("run", artifact, "Hi", "--raw", "--max-tokens", "1", "--json").json()
        chat = command("run", artifact, "Hi", "--system", "S", "--max-tokens", "1", "--json").json()
        assert chat["stats"]["prompt_tokens"] > raw["stats"]["prompt_tokens"]

    def test_seed(self, command: Callable[..., Ended], artifact: str) -> None:
        line = ("run", artifact, "Hi", "--raw", "--temperature", "1.5", "--max-tokens", "12", "--json", "--seed")
        first, second, other = (command(*line, seed).json()["tokens"] for seed in ("7", "7", "8"))
        assert first == second
        assert first != other

    def test_every_option_arrives(
        self, command: Callable[..., Ended], artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Any] = {}
        real = conversation.converse

        def spy(model: Any, messages: Any, **given: Any) -> Any:
            seen.update(given)
            return real(model, messages, **given)

        monkeypatch.setattr(conversation, "converse", spy)
        options = {
            "max_tokens": 2,
            "temperature": 0.5,
            "top_k": 3,
            "top_p": 0.9,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "presence_penalty": -0.5,
            "seed": 4,
        }
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        more = ["--stop", "x", "--stop", "yz", "--logit-bias", "5=-inf", "--logit-bias", "6=1.5", "--no-think"]
        (tmp_path / "tools.json").write_text(json.dumps([TOOL["function"]]))
        more += ["--thinking-budget", "7", "--regex", "a+", "--tools", str(tmp_path / "tools.json")]
        assert command("run", artifact, "Hi", *words, *more).code == 0
        expected = {"stop": ["x", "yz"], "logit_bias": ((5, float("-inf")), (6, 1.5)), "enable_thinking": False}
        form = {"type": "regex", "pattern": "a+"}
        assert seen == options | expected | {"thinking_budget": 7, "response_format": form, "tools": [TOOL]}

    def test_greedy_leaves_out_the_penalties_of_the_artifact(
        self, command: Callable[..., Ended], artifact: str
    ) -> None:
        args = cli.build_parser().parse_args(["run", artifact, "x", "--greedy", "--presence-penalty", "1"])
        assert asking.sampling_options(args) == {
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 1.0,
        }

    def test_standard_input(
        self, command: Callable[..., Ended], artifact: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        line = ("run", artifact, "-", "--raw", "--greedy", "--max-tokens", "4", "--json")
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO("The cät".encode())))
        piped = command(*line).json()
        assert piped["tokens"] == command("run", artifact, "The cät", *line[3:]).json()["tokens"]

    def test_stats_go_to_standard_error(self, command: Callable[..., Ended], artifact: str) -> None:
        ended = command("run", artifact, "Hi", "--max-tokens", "3", "--stats")
        assert "prompt tokens" in ended.err
        assert "prompt tokens" not in ended.out

    def test_a_full_context_is_said(self, command: Callable[..., Ended], artifact: str) -> None:
        ended = command(
            "run",
            artifact,
            "Hi",
            "--raw",
            "--greedy",
            "--context",
            "8",
            "--logit-bias",
            "319=-inf",
            "--logit-bias",
            "317=-inf",
        )
        assert ended.code == 0
        assert "the context is full" in ended.err

    def test_stdout_is_one_answer_as_it_comes(self, artifact: str) -> None:
        process = start("run", artifact, "The cat", "--raw", "--greedy", "--max-tokens", "5")
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert out.decode().endswith("\n")
        assert err == b""


class TestInfo:
    def test_table(self, command: Callable[..., Ended], artifact: str, form: str) -> None:
        ended = command("info", artifact)
        assert ended.code == 0
        own = {"onnx": ("model.onnx.data", "GroupQueryAttention"), "gguf": ("Toy-F32.gguf", "llama-cpp-python")}
        for said in ("toy", "sealed by edgeship", "4.90 bits per weight", *own[form]):
            assert said in ended.out

    def test_json(self, command: Callable[..., Ended], artifact: str, form: str) -> None:
        facts = command("info", artifact, "--json").json()
        file, size, package = {
            "onnx": ("model.onnx", 4, "onnxruntime"),
            "gguf": ("Toy-F32.gguf", 2, "llama-cpp-python"),
        }[form]
        assert facts["model"]["vocab_size"] == 320
        assert facts["kv_cache"]["bytes_per_token"] == 1 * 2 * 2 * 16 * size
        assert facts["versions"][package]["needed"].startswith(">=")
        assert facts["files"][file] > 0

    def test_unsealed(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        toy = write_toy(tmp_path / "built", sealed=False)
        assert "not sealed" in command("info", toy.directory).out
        assert command("info", toy.directory, "--json").json()["sealed"] is False

    def test_opens_no_engine(self, artifact: str) -> None:
        program = (
            "import sys; from edgeship_runtime.cli import main; "
            f"main(['info', {artifact!r}]); print(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": str(ROOT / "runtime")},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        loaded = {name.partition(".")[0] for name in done.stderr.split()}
        assert not loaded & {"numpy", "onnxruntime", "llama_cpp", "tokenizers", "jinja2"}


class TestVerifyAndBench:
    def test_verify(self, command: Callable[..., Ended], artifact: str) -> None:
        ended = command("verify", artifact, "--threads", "1")
        assert ended.code == 0
        assert "pass" in ended.out
        verdict = command("verify", artifact, "--json").json()
        assert verdict["verdict"] == "pass"
        assert verdict["agreement"]["wrong"] == 0

    def test_a_failure_has_its_code(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        directory = write_acceptance(write_toy(tmp_path / "toy"))
        (directory / "extra").write_bytes(b"\x1b[2J")
        ended = command("verify", directory, "--json")
        assert ended.code == 14
        assert ended.json()["verdict"] == "fail"
        assert command("verify", directory, "--skip", "files").code == 0

    def test_unsealed_has_its_code(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        toy = write_toy(tmp_path / "built", sealed=False)
        assert command("verify", toy.directory).code == 15
        assert command("verify", toy.directory, "--json").json()["verdict"] == "unsealed"

    def test_bench(self, command: Callable[..., Ended], artifact: str) -> None:
        line = ("bench", artifact, "--prompt-tokens", "16", "--decode-tokens", "4", "--repeats", "2", "--threads", "1")
        report = command(*line, "--json").json()
        assert report["decode_tokens_per_s"] > 0
        assert "decode" in command(*line).out
