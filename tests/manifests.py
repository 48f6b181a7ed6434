"""Manifests for tests: a valid one, one member changed, several mutated, and the directory around it."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

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


def changed(path: str, value: Any) -> dict[str, Any]:
    """VALID with the member at a dotted path set; `...` removes it."""
    root = copy.deepcopy(VALID)
    *outer, last = path.split("/")
    inner = root
    for key in outer:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return root


def write_artifact(directory: Path, value: Any = None) -> Path:
    for name in VALID["files"]:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"one")
    (directory / "edgeship.json").write_text(json.dumps(VALID if value is None else value))
    return directory


def parse(value: Any) -> Manifest:
    return parse_manifest(json.dumps(value).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every member inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


def mutate(data: st.DataObject, valid: dict[str, Any]) -> dict[str, Any]:
    root = copy.deepcopy(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(root)
        if not found:
            break
        *outer, last = data.draw(st.sampled_from(found))
        inner: Any = root
        for key in outer:
            inner = inner[key]
        action = data.draw(st.sampled_from(("set", "remove", "add")))
        if action == "set":
            inner[last] = data.draw(JSON)
        elif action == "remove":
            del inner[last]
        elif isinstance(inner, dict):
            inner[data.draw(st.text(max_size=12))] = data.draw(JSON)
    return root
