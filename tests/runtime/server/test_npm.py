"""The real `openai` package of npm against a running server, on both engines."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from edgeship_runtime import load
from served import COLD, Served, serving

SOURCE = Path(__file__).parent / "npm"
INSTALLED = Path(__file__).parents[3] / ".cache" / "npm"

INSTALL = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=30000"]
NO_NETWORK = ("EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ENETUNREACH", "ENOTFOUND", "ETIMEDOUT")


@pytest.fixture(scope="session")
def installed() -> Path:
    """A folder with the package, installed once from the lock file and kept in the clone."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    lock = (SOURCE / "package-lock.json").read_bytes()
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with FileLock(INSTALLED.with_suffix(".lock")):
        done = INSTALLED / "installed.json"
        if not done.exists() or done.read_bytes() != lock:
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCE / name, INSTALLED)
            found = subprocess.run(INSTALL, cwd=INSTALLED, capture_output=True, text=True, timeout=200, check=False)
            if any(code in found.stderr for code in NO_NETWORK):
                pytest.skip(f"npm reaches no registry: {' '.join(found.stderr.split())[-300:]}")
            assert found.returncode == 0, found.stderr
            done.write_bytes(lock)
    return INSTALLED


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder's artifact."""
    pytest.importorskip("onnx")
    from encoders import modules, write_encoder

    directory, _ = write_encoder(tmp_path_factory.mktemp("encoder") / "a", "feature-extraction", modules())
    return directory


@pytest.fixture(scope="session")
def answers(served: Served, installed: Path, encoder: Path) -> dict[str, Any]:
    """What the script got, by the name of what it asked."""
    artifacts = {"tiny": served.server.settings.artifacts["tiny"], "encoder": encoder}
    with serving(artifacts, requests_per_minute=0) as running:
        return ask(running, installed)


def ask(served: Served, installed: Path) -> dict[str, Any]:
    """Run the script."""
    command = ["node", str(SOURCE / "client.mjs"), f"{served.url}/v1"]
    found = subprocess.run(command, cwd=installed, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    value: dict[str, Any] = json.loads(found.stdout)
    return value


def test_models(answers: dict[str, Any]) -> None:
    assert answers["models"] == ["tiny", "encoder"]
    assert answers["model"]["id"] == "tiny"


def test_chat(answers: dict[str, Any]) -> None:
    choice = answers["chat"]["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (COLD, "stop")
    assert "".join(score["token"] for score in choice["logprobs"]["content"]) == COLD
    assert all(len(score["top_logprobs"]) == 2 for score in choice["logprobs"]["content"])


def test_chat_streamed(answers: dict[str, Any]) -> None:
    chunks = answers["chatStream"]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]) == COLD
    assert chunks[-1]["usage"] == answers["chat"]["usage"] | {
        "prompt_tokens_details": chunks[-1]["usage"]["prompt_tokens_details"]  # the second time it is in the KV cache
    }
    assert answers["chatHelper"] == COLD


@pytest.mark.parametrize("name", ["tool", "toolStream"])
def test_tool_calls(answers: dict[str, Any], name: str) -> None:
    pytest.importorskip("llguidance")
    choice = answers[name]["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    assert (choice["finish_reason"], function["name"]) == ("tool_calls", "weather")
    assert json.loads(function["arguments"])["city"] in ("Ulm", "Bonn")


def test_json_schema(answers: dict[str, Any]) -> None:
    pytest.importorskip("llguidance")
    whole = answers["json"]["choices"][0]["message"]["content"]
    assert whole == answers["jsonStream"]
    assert json.loads(whole)["city"] in ("Ulm", "Bonn")


def test_completions_with_echo_and_logprobs(answers: dict[str, Any]) -> None:
    whole = answers["completion"]["choices"][0]
    parts = [chunk["choices"][0] for chunk in answers["completionStream"] if chunk["choices"]]
    assert whole["text"].startswith("Once upon a time")
    assert "".join(part["text"] for part in parts) == whole["text"] == "".join(whole["logprobs"]["tokens"])
    for name in ("tokens", "text_offset"):
        assert [each for part in parts if part["logprobs"] for each in part["logprobs"][name]] == whole["logprobs"][
            name
        ]


def test_responses(answers: dict[str, Any]) -> None:
    assert answers["response"]["output_text"] == COLD
    deltas = [event["delta"] for event in answers["responseStream"] if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == COLD
    assert answers["responseStream"][-1]["response"]["status"] == "completed"


def test_embeddings(answers: dict[str, Any], encoder: Path) -> None:
    with load(encoder, threads=1) as model:
        expected = model.embed(["one text", "and another"])
    found = [each["embedding"] for each in answers["embeddings"]["data"]]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_leaving_a_stream_early_spoils_no_later_answer(answers: dict[str, Any]) -> None:
    assert answers["left"] == COLD


def test_errors_are_the_packages_own(answers: dict[str, Any]) -> None:
    assert answers["unknownModel"]["type"] == "NotFoundError"
    assert (answers["wrongValue"]["type"], answers["wrongValue"]["param"]) == ("BadRequestError", "temperature")
    assert answers["tooLong"]["code"] == "context_length_exceeded"
    assert answers["noEmbedding"]["status"] == 400
