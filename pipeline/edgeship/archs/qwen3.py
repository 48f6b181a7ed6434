"""Qwen3: Qwen2's blocks with an RMS norm on each head of q and k, a free head size, and biases only where asked."""

from __future__ import annotations

from dataclasses import replace

from edgeship.archs import qwen2
from edgeship.archs.base import Config, Decoder


def read(config: Config) -> Decoder:
    """The decoder that a `qwen3` config.json describes; raises ArchitectureError at anything not known."""
    config.expect("attention_bias", (False,), False)
    config.positive("head_dim", 128)  # Qwen3's default is 128, not hidden / heads
    with_default = Config({"head_dim": 128} | {k: v for k, v in config.values.items() if v is not None}, config.file)
    return replace(qwen2.read(with_default), model_type="qwen3", qkv_bias=False, qk_norm=True)
