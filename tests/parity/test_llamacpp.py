"""llama.cpp on our F32 files against transformers: permuted rows, rotary factors and YaRN mean what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ggufs
import tolerances
from checkpoints import write_checkpoint


@pytest.mark.parity
@pytest.mark.parametrize("name", ggufs.CASES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    from llamas import opened

    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    checkpoint = write_checkpoint(tmp_path / name, **ggufs.CASES[name])
    ggufs.write_gguf(checkpoint, tmp_path / "m.gguf", "F32")
    ids = np.random.default_rng(0).integers(0, 300, 200).tolist()
    with opened(tmp_path / "m.gguf") as llama:
        got = llama.logits(ids, context=256)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        want = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(got - want).max() <= tolerances.LLAMACPP_LOGITS * np.abs(want).max()
