"""Logits of both sources: those of transformers, and the same whatever is held at once."""

from __future__ import annotations

import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import tolerances
from checkpoints import write_checkpoint
from edgeship.evaluate import sources
from edgeship.evaluate.sources import (
    EngineLogits,
    PassLogits,
    compare,
    continue_engine,
    continue_pass,
    engine_logits,
    prompts,
)
from edgeship.evaluate.windows import Windows
from edgeship_runtime.engines import open_engine
from edgeship_runtime.manifest import read_manifest
from exports import FLOAT32, built, export, recipe
from reference_models import opened

VOCAB = 320


@pytest.fixture(scope="module")
def windows() -> Windows:
    return Windows(np.random.default_rng(1).integers(0, VOCAB, (5, 24)), "random", "")


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(checkpoint, tmp_path_factory.mktemp("artifact"), scheme=FLOAT32)


@pytest.mark.parity
def test_perplexity_of_the_pass_is_that_of_transformers(checkpoint: Path, windows: Windows) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor(windows.ids)
    with torch.no_grad():
        logits = oracle(ids).logits[:, windows.first : -1]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[:, windows.first + 1 :].reshape(-1))
    with PassLogits(*opened(checkpoint), windows) as found:
        got = found.rows(0, windows.positions)
        fidelity = compare(found, found, windows, VOCAB)
    expected = logits.reshape(-1, VOCAB).numpy()
    assert np.abs(got - expected).max() <= tolerances.REFERENCE_LOGITS * np.abs(expected).max()
    assert fidelity.perplexity == pytest.approx(float(loss.exp()), rel=tolerances.REFERENCE_LOGITS)
    assert fidelity.reference_perplexity == fidelity.perplexity


def test_the_engine_on_float_weights_loses_nothing(checkpoint: Path, windows: Windows, artifact: Path) -> None:
    engine = open_engine(artifact, read_manifest(artifact), context=windows.length, threads=1)
    with closing(engine), PassLogits(*opened(checkpoint), windows) as reference:
        found = compare(reference, EngineLogits(engine, windows), windows, VOCAB)
    assert found.kl_mean == pytest.approx(0, abs=tolerances.FLOAT_KL)
    assert found.top1 == 1
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=tolerances.EXPORTED_LOGITS)


def test_llama_at_many_positions_at_once_is_its_engine_token_by_token(
    checkpoint: Path, windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    made = recipe(scheme=FLOAT32, formats=("gguf",))
    directory = built(made, tmp_path, ("gguf",), checkpoint=checkpoint) / "gguf"
    engine = open_engine(directory, read_manifest(directory), context=windows.length, threads=1)
    with closing(engine):
        one_by_one = EngineLogits(engine, windows).rows(0, windows.positions)
        scale = np.abs(one_by_one).max()
        for held in (1 << 20, 4 * VOCAB * 4):  # in whole windows, and four positions at a time
            monkeypatch.setattr(sources, "BLOCK_BYTES", held)
            with engine_logits(engine, windows) as logits:
                whole = logits.rows(0, windows.positions)
                assert np.abs(whole - one_by_one).max() <= tolerances.TOY_GGUF_LOGITS * scale
            with engine_logits(engine, windows) as logits:
                parts = [logits.rows(a, min(a + 7, windows.positions)) for a in range(0, windows.positions, 7)]
                assert np.abs(np.concatenate(parts) - one_by_one).max() <= tolerances.TOY_GGUF_LOGITS * scale
    with PassLogits(*opened(checkpoint), windows) as reference:
        assert np.abs(reference.rows(0, windows.positions) - whole).max() <= tolerances.TOY_GGUF_LOGITS * scale


def test_how_much_is_held_at_once_changes_nothing(
    checkpoint: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    with PassLogits(*opened(checkpoint), windows, told.append) as whole:
        rows = whole.rows(0, windows.positions)
    monkeypatch.setattr(sources, "BATCH_TOKENS", 30)  # a window at a time
    monkeypatch.setattr(sources, "BLOCK_BYTES", 4 * VOCAB * 7)
    with PassLogits(*opened(checkpoint), windows, told.append) as cut:
        np.testing.assert_allclose(
            cut.rows(0, windows.positions), rows, rtol=0, atol=tolerances.REFERENCE_LOGITS * np.abs(rows).max()
        )
        blocks: list[int] = []
        compare(cut, cut, windows, VOCAB, blocks.append)
    assert told == [120, 24, 24, 24, 24, 24]
    assert sum(blocks) == windows.positions
    assert max(blocks) == 7


def test_logits_of_a_whole_text_never_exist_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = 20_000
    checkpoint = write_checkpoint(tmp_path, vocab=vocab, hidden=32, ff=32, layers=1)
    windows = Windows(np.random.default_rng(1).integers(0, vocab, (4, 128)), "random", "")
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 20)
    decoder, weights = opened(checkpoint)
    tracemalloc.start()
    try:
        with PassLogits(decoder, weights, windows) as side:
            compare(side, side, windows, vocab)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 4 * vocab * windows.positions > 20e6
    assert peak < 12e6  # both sides' blocks, a copy of each, and a chunk of weights


@pytest.mark.parity
def test_greedy_text_is_that_of_transformers(checkpoint: Path, windows: Windows, artifact: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    oracle = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    begun = [ids[:n] for ids, n in zip(prompts(windows), (24, 11, 5, 17), strict=True)]
    stop = (int(oracle.config.eos_token_id),)
    expected = []
    for ids in begun:
        with torch.no_grad():
            made = oracle.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
        expected.append(made[len(ids) :])
    assert continue_pass(*opened(checkpoint), begun, 12, stop) == expected
    engine = open_engine(artifact, read_manifest(artifact), context=64, threads=1)
    with closing(engine):
        assert continue_engine(engine, begun, 12, stop) == expected


def test_a_token_that_ends_a_text_ends_it_alone(checkpoint: Path, windows: Windows, artifact: Path) -> None:
    begun = prompts(windows)
    free = continue_pass(*opened(checkpoint), begun, 12, ())
    assert [len(text) for text in free] == [12] * len(begun)
    stop = free[1][3]
    cut = [text[: text.index(stop) + 1] if stop in text else text for text in free]
    assert continue_pass(*opened(checkpoint), begun, 12, (stop,)) == cut
    engine = open_engine(artifact, read_manifest(artifact), context=64, threads=1)
    with closing(engine):
        assert continue_engine(engine, begun, 12, (stop,)) == cut
