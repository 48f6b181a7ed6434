"""A GGUF file of one small qwen2 layer, written with gguf's own writer, and the same model in numpy.

Shapes, vocabulary and end tokens are those of `toy_artifact`, so that the same tests run on both engines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

from checkpoints import CHAT_TEMPLATE, SPECIAL, write_tokenizer
from edgeship_runtime.manifest import collect_files, parse_manifest, write_manifest
from manifests import VALID
from toy_artifact import CONTEXT, END, HEADS, KV_HEADS, VOCAB

FF, EPS, THETA = 96, 1e-6, 10000.0

needs_llamacpp = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")

FORMS = ["onnx", pytest.param("gguf", marks=needs_llamacpp)]
"""An artifact's two forms, for a test of each engine."""


@dataclass(frozen=True)
class ToyGguf:
    """Where it lies, and its weights: [out, in]."""

    path: Path
    weights: dict[str, NDArray[np.float32]]
    head_dim: int

    @cached_property
    def directory(self) -> Path:
        return self.path.parent

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of all positions, float32 [len(ids), vocab]."""
        w, count, d = self.weights, len(ids), self.head_dim
        x = w["token_embd.weight"][np.asarray(ids)]
        h = _norm(x, w["blk.0.attn_norm.weight"])
        q, k, v = (
            (h @ w[f"blk.0.attn_{name}.weight"].T + w[f"blk.0.attn_{name}.bias"]).reshape(count, -1, d)
            for name in "qkv"
        )
        k, v = (each.repeat(HEADS // KV_HEADS, axis=1) for each in (_rotate(k), v))
        scores = np.einsum("ihd,jhd->hij", _rotate(q), k) / np.sqrt(d) + np.triu(np.full((count, count), -np.inf), 1)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hij,jhd->ihd", scores, v).reshape(count, -1) @ w["blk.0.attn_output.weight"].T
        h = _norm(x, w["blk.0.ffn_norm.weight"])
        gate = h @ w["blk.0.ffn_gate.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["blk.0.ffn_up.weight"].T)) @ w["blk.0.ffn_down.weight"].T
        return np.asarray(_norm(x, w["output_norm.weight"]) @ w["output.weight"].T, np.float32)


def _norm(x: NDArray[Any], weight: NDArray[np.float32]) -> NDArray[Any]:
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * weight)


def _rotate(x: NDArray[Any]) -> NDArray[Any]:
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * THETA ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def write_toy_gguf(path: Path, *, head_dim: int = 16, template: str = CHAT_TEMPLATE, **metadata: Any) -> ToyGguf:
    """Write the file; `metadata` adds keys (a dot written as two underscores) with value and GGUFValueType."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = HEADS * head_dim
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, hidden),
        "blk.0.attn_norm.weight": (hidden,),
        "blk.0.ffn_norm.weight": (hidden,),
        "output_norm.weight": (hidden,),
        "blk.0.attn_output.weight": (hidden, hidden),
        "blk.0.ffn_gate.weight": (FF, hidden),
        "blk.0.ffn_up.weight": (FF, hidden),
        "blk.0.ffn_down.weight": (hidden, FF),
        "output.weight": (VOCAB, hidden),
    }
    for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        shapes[f"blk.0.attn_{name}.weight"] = (heads * head_dim, hidden)
        shapes[f"blk.0.attn_{name}.bias"] = (heads * head_dim,)
    weights = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        weights[name] = values + np.float32(name.endswith("norm.weight"))
    weights["output.weight"] *= 8
    writer = GGUFWriter(path, "qwen2")
    _write_metadata(writer, hidden, template)
    for key, value in metadata.items():
        writer.add_key_value(key.replace("__", "."), value[0], GGUFValueType(value[1]))
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ToyGguf(path, weights, head_dim)


def _write_metadata(writer: GGUFWriter, hidden: int, template: str) -> None:
    writer.add_name("toy")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_rope_freq_base(THETA)
    writer.add_file_type(LlamaFileType.ALL_F32)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(END[0])
    writer.add_pad_token_id(END[1])
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of the tokenizer that `checkpoints` writes."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        write_tokenizer(Path(directory))
        value = json.loads((Path(directory) / "tokenizer.json").read_text(encoding="utf-8"))
    ids = value["model"]["vocab"] | {token["content"]: token["id"] for token in value["added_tokens"]}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in value["model"]["merges"]]
    return sorted(ids, key=ids.__getitem__), merges


def write_toy_gguf_artifact(directory: Path, *, head_dim: int = 16) -> ToyGguf:
    """Write a whole sealed artifact directory, as an export lays it out, without acceptance files."""
    toy = write_toy_gguf(directory / "Toy-F32.gguf", head_dim=head_dim)
    write_tokenizer(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "chat_template.jinja").write_text(config.pop("chat_template"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    facts = {
        "vocab_size": VOCAB,
        "layers": 1,
        "kv_heads": KV_HEADS,
        "head_dim": head_dim,
        "hidden_size": HEADS * head_dim,
        "context_length": CONTEXT,
        "default_context": CONTEXT // 2,
        "eos_token_ids": list(END),
    }
    files = {name: {"size": e.size, "sha256": e.sha256} for name, e in collect_files(directory).items()}
    given = {"name": "toy", "format": "gguf", "ops": [], "versions": {"llama-cpp-python": ">=0.3.36"}}
    value = VALID | given | {"model": VALID["model"] | facts, "files": files}
    write_manifest(directory, parse_manifest(json.dumps(value).encode()))
    return toy
