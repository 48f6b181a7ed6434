"""The two engines beside each other, and our GGUF in llama.cpp's own tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import edgeship_runtime
import tolerances
from checkpoints import write_checkpoint
from edgeship import catalog
from edgeship_runtime.verify import verify
from exports import FLOAT32, Listener, built, recipe
from qwen_files import needs_tokenizer, write_model
from toy_gguf import needs_llamacpp

pytestmark = [pytest.mark.parity, needs_llamacpp]
NEW_TOKENS = 32


@pytest.fixture(scope="module", params=["tiny-int4", "tiny-int8"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(catalog.find(request.param), tmp_path_factory.mktemp("artifacts"), ("onnx", "gguf"))


def acceptance_prompts(artifact: Path) -> list[list[int]]:
    """Token ids of every golden prompt and every conversation."""
    golden, chats = (
        json.loads((artifact / "onnx" / "acceptance" / f"{name}.json").read_text())["cases"]
        for name in ("golden", "chats")
    )
    return [case["prompt_ids"] for case in golden] + [case["token_ids"] for case in chats if "token_ids" in case]


def test_both_engines_give_the_same_greedy_tokens(artifact: Path) -> None:
    prompts = acceptance_prompts(artifact)
    assert len(prompts) > 20
    with (
        edgeship_runtime.load(artifact, engine="ort", threads=1) as ort,
        edgeship_runtime.load(artifact, engine="llamacpp", threads=1) as llamacpp,
    ):
        ends = ort.manifest.model.eos_token_ids
        assert llamacpp.manifest.model == ort.manifest.model
        for ids in prompts:
            if len(ids) + NEW_TOKENS > ort.engine.context:
                continue
            new = ids
            for model in (ort, llamacpp):
                model.forget()
            for _ in range(NEW_TOKENS):
                a, b = (model.engine.evaluate(new) for model in (ort, llamacpp))
                assert np.abs(a - b).max() < tolerances.ENGINE_STD * a.std()
                token = int(a.argmax())
                if token != int(b.argmax()):  # the same answer goes on: one difference does not make more
                    best = np.sort(a)[-2:]
                    assert best[1] - best[0] < tolerances.ENGINE_TIE_STD * a.std()
                if token in ends:
                    break
                new = [token]


@pytest.mark.parametrize("form", ["onnx", "gguf"])
def test_each_verifies(artifact: Path, form: str) -> None:
    verdict = verify(artifact / form, threads=1)
    assert verdict.verdict == "pass", verdict.failures


def test_the_file_alone_answers_as_the_artifact_does(artifact: Path) -> None:
    (file,) = (artifact / "gguf").glob("*.gguf")
    messages = [{"role": "user", "content": "What is the opposite of hot?"}]
    with edgeship_runtime.load(artifact / "gguf", threads=1) as whole, edgeship_runtime.load(file, threads=1) as alone:
        assert alone.encode(messages) == whole.encode(messages)
        assert alone.manifest.model.eos_token_ids == tuple(sorted(whole.manifest.model.eos_token_ids))
        assert alone.chat(messages, max_tokens=16).text == whole.chat(messages, max_tokens=16).text


def of_llamacpp(artifact: Path, token: int) -> list[str]:
    """The acceptance texts that llama.cpp alone reads with this token."""
    cases = json.loads((artifact / "gguf" / "acceptance" / "chats.json").read_text())["cases"]
    other = [case for case in cases if "gguf_token_ids" in case]
    assert all(token in case["gguf_token_ids"] and token not in case["token_ids"] for case in other)
    return [case["name"] for case in other]


def test_a_plain_token_that_llamacpp_takes_for_an_end(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    file = checkpoint / "tokenizer.json"
    raw = json.loads(file.read_text())
    token = raw["model"]["vocab"]["</s>"] = raw["model"]["vocab"].pop("ÿ")  # byte 255, which no UTF-8 has
    file.write_text(json.dumps(raw))
    notes = Listener()
    fields = {"scheme": FLOAT32, "formats": ["onnx", "gguf"]}
    made = built(recipe(**fields), tmp_path / "out", ("onnx", "gguf"), checkpoint=checkpoint, progress=notes)
    assert of_llamacpp(made, token) == ["special tokens as text"]
    assert any(f"</s> (token {token})" in text for text in notes.notes)
    for form in ("onnx", "gguf"):
        assert verify(made / form, threads=1).failures == ()


@needs_tokenizer
def test_qwens_own_vocabulary(tmp_path: Path) -> None:
    made = built(recipe(formats=["gguf"]), tmp_path / "out", ("gguf",), checkpoint=write_model(tmp_path / "checkpoint"))
    assert of_llamacpp(made, 128_247) == ["special tokens as text"]
    assert verify(made / "gguf", threads=1).failures == ()


def test_stock_llama_simple_continues_as_we_do(artifact: Path) -> None:
    tool = shutil.which("llama-simple", path=os.environ.get("LLAMA_CPP_BIN"))
    if tool is None:
        pytest.skip("no llama-simple: build it from llama-cpp-python's source and set LLAMA_CPP_BIN to its directory")
    (file,) = (artifact / "gguf").glob("*.gguf")
    text = "Once upon a time"
    command = [tool, "-m", str(file), "-n", "16", text]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with edgeship_runtime.load(file, threads=1, context=256) as model:
        ours = model.generate(text, temperature=0.0, repetition_penalty=1.0, max_tokens=16).text
    assert said.strip().startswith(text + ours.rstrip())
