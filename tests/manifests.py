"""Manifests for tests: a valid one, and the directory around it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from edgeship_runtime.manifest import Manifest, parse_manifest

ONE = hashlib.sha256(b"one").hexdigest()
VALID: dict[str, Any] = {
    "schema": 1,
    "name": "tiny-int4",
    "format": "onnx",
    "edgeship": "0.1.0",
    "source": {"host": "local", "repo": "edgeship/tiny", "revision": "abc"},
    "recipe": {"name": "tiny-int4", "scheme": {"body": "int4"}},
    "model": {
        "type": "qwen2",
        "vocab_size": 100,
        "layers": 2,
        "kv_heads": 2,
        "head_dim": 16,
        "hidden_size": 64,
        "context_length": 512,
        "default_context": 256,
        "bos_token_id": None,
        "eos_token_ids": [1, 2],
        "pad_token_id": 1,
        "logits": "last",
    },
    "sampling": {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "min_p": 0.0,
        "repetition_penalty": 1.05,
        "presence_penalty": 0.0,
    },
    "weights": {"bits_per_weight": 4.9, "parts": {"body": "int4-32"}},
    "ops": ["com.microsoft.GroupQueryAttention"],
    "versions": {"onnxruntime": ">=1.20"},
    "budgets": {"size_mb": 10, "ram_mb": None},
    "hints": {"threads": None},
    "files": {"model.onnx": {"size": 3, "sha256": ONE}, "acceptance/chats.json": {"size": 3, "sha256": ONE}},
}
GENAI: dict[str, Any] = {
    "model": {
        "type": "qwen2",
        "vocab_size": 100,
        "context_length": 32768,
        "bos_token_id": 3,
        "eos_token_id": [1, 2],
        "pad_token_id": 1,
        "decoder": {
            "filename": "model.onnx",
            "head_size": 16,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "inputs": {"input_ids": "input_ids"},
        },
    },
    "search": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "num_beams": 1},
}


def write_artifact(directory: Path, value: Any = None) -> Path:
    for name in VALID["files"]:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"one")
    (directory / "edgeship.json").write_text(json.dumps(VALID if value is None else value))
    return directory


def parse(value: Any) -> Manifest:
    return parse_manifest(json.dumps(value).encode())
