"""Qwen's own tokenizer and chat templates, which lie beside the repository on the development machine, not in it.

A test that needs one skips where it is not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[2] / "shared"
TOKENIZER = _SHARED / "qwen2-tokenizer"
"""A directory with tokenizer.json, tokenizer_config.json and the vectors that llama.cpp recorded of it."""

needs_tokenizer = pytest.mark.skipif(
    not (TOKENIZER / "tokenizer.json").exists(), reason="Qwen2's tokenizer is not beside this checkout"
)


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
