"""Llama 2, 3.x and what shares its blocks (SmolLM2, TinyLlama): Qwen2's blocks, biases only where asked."""

from __future__ import annotations

from dataclasses import replace

from edgeship.archs import qwen2
from edgeship.archs.base import Config, Decoder


def read(config: Config) -> Decoder:
    """The decoder that a `llama` config.json describes; raises ArchitectureError at anything not known."""
    config.expect("mlp_bias", (False,), False)
    config.expect("pretraining_tp", (1,), 1)
    biased = config.get("attention_bias", bool, False)
    return replace(qwen2.read(config), model_type="llama", qkv_bias=biased, output_bias=biased)
