"""A checkpoint in a recipe's real shape with random weights, for benches where the real one cannot be had.

Everything but the values (and the tokenizer, a small one) is what the hub serves: bf16 safetensors, config.json.
"""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

import numpy as np

from checkpoints import narrow, write_tokenizer
from edgeship import archs
from edgeship.recipe import Recipe

PIECE = 1 << 22  # elements drawn at a time


def write(recipe: Recipe, path: Path) -> Path:
    """Write the checkpoint of a recipe's `model:` fields to `path`, once; returns `path`."""
    if (path / "config.json").exists():
        return path
    assert recipe.model is not None, f"{recipe.name} has no model: fields to take the shape from"
    path.mkdir(parents=True, exist_ok=True)
    roles = archs.read(recipe.model).roles()
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for role in roles:
        size = 2 * prod(role.shape)
        header[role.tensor] = {"dtype": "BF16", "shape": list(role.shape), "data_offsets": [at, at + size]}
        at += size
    blob = json.dumps(header).encode()
    blob += b" " * (-len(blob) % 8)
    rng = np.random.default_rng(0)
    with open(path / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(blob)) + blob)
        for role in roles:
            offset, scale = (1.0, 0.1) if role.tensor.endswith("norm.weight") else (0.0, 0.02)
            for a in range(0, prod(role.shape), PIECE):
                n = min(PIECE, prod(role.shape) - a)
                values = rng.standard_normal(n, dtype=np.float32) * np.float32(scale) + np.float32(offset)
                f.write(narrow(values, "BF16").tobytes())
    write_tokenizer(path)
    (path / "config.json").write_text(
        json.dumps({"architectures": [_class(recipe)], "torch_dtype": "bfloat16", **recipe.model})
    )
    return path


def _class(recipe: Recipe) -> str:
    assert recipe.model is not None
    return f"{recipe.model['model_type'].capitalize()}ForCausalLM"
