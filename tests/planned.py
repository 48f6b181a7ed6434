"""Plans without a checkpoint: a small model's config.json, and recipes whose source is never read."""

from __future__ import annotations

from typing import Any

from edgeship.recipe import Recipe

CONFIG: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def recipe(**fields: Any) -> Recipe:
    """A recipe for it; `fields` as in a recipe's YAML."""
    return Recipe.model_validate({"name": "case", "source": {"repo": "a/b"}, "context": 256, **fields})
