"""Qwen's own tokenizer and chat templates, which lie beside the repository on the development machine, not in it.

A test that needs one skips where it is not.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from checkpoints import write_checkpoint

_SHARED = Path(__file__).resolve().parents[2] / "shared"
TOKENIZER = _SHARED / "qwen2-tokenizer"
"""A directory with tokenizer.json, tokenizer_config.json and the vectors that llama.cpp recorded of it."""

needs_tokenizer = pytest.mark.skipif(
    not (TOKENIZER / "tokenizer.json").exists(), reason="Qwen2's tokenizer is not beside this checkout"
)


def write_model(path: Path) -> Path:
    """A checkpoint of one narrow layer with the whole vocabulary: 151,936 rows of 32 random numbers."""
    ids = {"bos_token_id": 151_643, "eos_token_id": 151_645, "pad_token_id": 151_643}
    write_checkpoint(path, vocab=151_936, hidden=32, ff=32, layers=1, **ids)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(TOKENIZER / name, path / name)
    return path


def vectors() -> list[tuple[str, list[int]]]:
    """The texts that llama.cpp recorded, and their token ids."""
    texts = (TOKENIZER / "vectors.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (TOKENIZER / "vectors.out").read_text(encoding="utf-8").split("\n")
    assert len(texts) > 40
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]


def chat_template(name: str) -> str:
    """The text of a model's template, such as Qwen-Qwen3-0.6B."""
    path = _SHARED / "chat-templates" / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    return path.read_text(encoding="utf-8")
