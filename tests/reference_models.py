"""Tiny models for the reference's passes: the shapes that they must get right, and a checkpoint as they take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeship import archs
from edgeship.archs.base import Decoder
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.reference.weights import CheckpointWeights

_LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

MODELS: dict[str, dict[str, Any]] = {
    "qwen2 tied": {},
    "qwen2 untied, GQA 7": {"tied": False, "heads": 7, "kv_heads": 1, "hidden": 112},
    "qwen2 yarn": {"rope_scaling": _YARN},
    "llama biases": {"model_type": "llama", "attention_bias": True},
    "llama 3 rope": {"model_type": "llama", "rope_scaling": _LLAMA3, "rope_theta": 500000.0},
    "qwen3, both rope blocks": {
        "model_type": "qwen3", "rope_theta": None, "rope_parameters": _PLAIN, "rope_scaling": _YARN
    },
    "qwen2, two thetas": {"rope_theta": 1e6, "rope_parameters": _PLAIN},
    "qwen2, two thetas with yarn": {"rope_theta": 1e6, "rope_scaling": _YARN | {"rope_theta": 10000.0}},
}  # fmt: skip
"""Arguments of `write_checkpoint`, by name."""


def opened(path: Path) -> tuple[Decoder, CheckpointWeights]:
    """The model of a checkpoint and its weights, every tensor accounted for."""
    checkpoint = open_checkpoint(path)
    decoder = archs.read(checkpoint.config)
    return decoder, CheckpointWeights(account(checkpoint, decoder.roles()))
