"""Artifacts beside stock onnxruntime-genai: it loads ours unmodified, and we load its builder's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest

import edgeship_runtime
import tolerances
from checkpoints import write_checkpoint
from edgeship import catalog
from exports import built

pytestmark = pytest.mark.parity

PROMPTS = [
    "What is the opposite of hot?", "What sound does a cow make?", "What colour is grass?", "Say hello.",
    "What is 2 plus 3?", "Which day comes after Monday?", "What is the capital of France?", "Count to five.",
    "Is the sun hot or cold?", "What do bees make?", "Name a fruit.", "How many legs does a spider have?",
    "What colour is snow?", "Which month comes before June?", "What is the opposite of big?", "Where do fish live?",
    "你好", "¿Qué tal?", "🙂🙂", "def add(a, b):\n    return",
]  # fmt: skip
NEW_TOKENS = 24


@pytest.fixture(scope="module", params=["tiny-int4", "tiny-int8"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts")
    return built(catalog.find(request.param), out) / "onnx"


def genai_greedy(model: og.Model, ids: list[int], new_tokens: int) -> list[int]:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + new_tokens, do_sample=False, repetition_penalty=1.0)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return list(map(int, generator.get_sequence(0)))[len(ids) :]


def test_genai_gives_the_same_greedy_tokens(artifact: Path) -> None:
    theirs = og.Model(str(artifact))
    with edgeship_runtime.load(artifact) as ours:
        ends = set(ours.manifest.model.eos_token_ids)
        for prompt in PROMPTS:
            ids = ours.encode([{"role": "user", "content": prompt}])
            got = ours.generate(ids, temperature=0.0, repetition_penalty=1.0, max_tokens=NEW_TOKENS)
            want = genai_greedy(theirs, ids, NEW_TOKENS)
            assert list(got.tokens) == [t for t in want if t not in ends], prompt


def test_genai_tokenizes_and_renders_alike(artifact: Path) -> None:
    tokenizer = og.Tokenizer(og.Model(str(artifact)))
    with edgeship_runtime.load(artifact) as ours:
        for prompt in PROMPTS:
            assert list(map(int, tokenizer.encode(prompt))) == ours.encode(prompt), prompt
        rendered = tokenizer.apply_chat_template('[{"role": "user", "content": "Hi"}]', add_generation_prompt=True)
        assert rendered == ours.render([{"role": "user", "content": "Hi"}])


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "llama"])
def built_by_genai(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp(request.param)
    checkpoint = write_checkpoint(work / "checkpoint", request.param, tied=request.param != "qwen3")
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-m",
        str(checkpoint),
        "-o",
        str(work / "built"),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "-p", "int4", "-e", "cpu"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return work / "built"


def test_our_runtime_runs_what_genais_builder_made(built_by_genai: Path) -> None:
    theirs = og.Model(str(built_by_genai))
    with edgeship_runtime.load(built_by_genai, context=64) as ours:
        for seed in range(5):
            ids = np.random.default_rng(seed).integers(0, 300, 9).tolist()
            want = genai_greedy(theirs, ids, 12)
            got = ours.generate(ids, temperature=0.0, repetition_penalty=1.0, max_tokens=12)
            assert list(got.tokens) == want[: len(got.tokens)], f"seed {seed}"
            assert got.tokens, "an end token at once compares nothing"


def test_logits_of_both_runtimes_are_the_same_numbers(artifact: Path) -> None:
    theirs = og.Model(str(artifact))
    with edgeship_runtime.load(artifact) as ours:
        ids = ours.encode([{"role": "user", "content": PROMPTS[0]}])
        parameters = og.GeneratorParams(theirs)
        parameters.set_search_options(max_length=len(ids) + 4, do_sample=False)
        generator = og.Generator(theirs, parameters)
        generator.append_tokens(ids)
        want = np.asarray(generator.get_logits()).reshape(-1)
        got = ours.engine.evaluate(ids)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.SAME_KERNELS * np.abs(want).max())
