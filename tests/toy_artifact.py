"""A whole ONNX artifact of one attention layer, written in a millisecond, and the same model in numpy.

x = embed[ids] (+ POSITION_STEP * position);  a = attention(x wq, x wk, x wv);  logits = (x + a) head
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from checkpoints import SPECIAL, write_tokenizer
from edgeship_runtime.manifest import collect_files, parse_manifest, write_manifest
from manifests import VALID

VOCAB, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 320, 4, 2, 16, 96
HIDDEN = HEADS * HEAD_DIM
POSITION_STEP = 0.01
END = (VOCAB - len(SPECIAL) + 2, VOCAB - len(SPECIAL))  # <|im_end|>, <|endoftext|>


@dataclass(frozen=True)
class Toy:
    """Where the artifact lies, and its weights: [in, out] but embed [vocab, hidden]."""

    directory: Path
    weights: dict[str, NDArray[np.float32]]
    positions: bool

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of all positions, float32 [len(ids), vocab]."""
        w, count = self.weights, len(ids)
        x = w["embed"][np.asarray(ids)]
        if self.positions:
            x = x + np.float32(POSITION_STEP) * np.arange(count, dtype=np.float32)[:, None]
        q = (x @ w["wq"]).reshape(count, HEADS, HEAD_DIM)
        k, v = (
            (x @ w[name]).reshape(count, KV_HEADS, HEAD_DIM).repeat(HEADS // KV_HEADS, axis=1) for name in ("wk", "wv")
        )
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(HEAD_DIM)
        scores += np.triu(np.full((count, count), -np.inf), 1)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        attended = np.einsum("hij,jhd->ihd", scores, v).reshape(count, HIDDEN)
        return np.asarray((x + attended) @ w["head"], np.float32)


def write_toy(
    directory: Path, *, logits: str = "last", positions: bool = False, sealed: bool = True, half: bool = False
) -> Toy:
    """Write the artifact; `logits`: "last" or "all"; `positions`: it takes position_ids; `half`: all is float16."""
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shapes = {
        "embed": (VOCAB, HIDDEN),
        "wq": (HIDDEN, HIDDEN),
        "wk": (HIDDEN, KV_HEADS * HEAD_DIM),
        "wv": (HIDDEN, KV_HEADS * HEAD_DIM),
        "head": (HIDDEN, VOCAB),
    }
    weights = {name: rng.standard_normal(shape, np.float32) / np.float32(HIDDEN**0.5) for name, shape in shapes.items()}
    weights["embed"] *= 8
    if half:
        weights = {name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()}
    graph = _graph(weights, logits, positions, np.float16 if half else np.float32)
    onnx.save(
        graph, directory / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )
    write_tokenizer(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "chat_template.jinja").write_text(config.pop("chat_template"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "genai_config.json").write_text(json.dumps(_genai_config(positions)))
    if sealed:
        facts = {
            "vocab_size": VOCAB,
            "layers": 1,
            "kv_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "hidden_size": HIDDEN,
            "context_length": CONTEXT,
            "default_context": CONTEXT // 2,
            "eos_token_ids": list(END),
            "logits": logits,
        }
        files = {name: {"size": e.size, "sha256": e.sha256} for name, e in collect_files(directory).items()}
        value = VALID | {"name": "toy", "model": VALID["model"] | facts, "files": files}
        write_manifest(directory, parse_manifest(json.dumps(value).encode()))
    return Toy(directory, weights, positions)


def _graph(
    weights: dict[str, NDArray[np.float32]], logits: str, positions: bool, dtype: type[np.floating]
) -> onnx.ModelProto:
    node = helper.make_node
    int64, real = TensorProto.INT64, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    cache = ["batch", KV_HEADS, "past", HEAD_DIM]
    inputs = [("input_ids", int64, ["batch", "sequence"]), ("attention_mask", int64, ["batch", "total"])]
    inputs += [("position_ids", int64, ["batch", "sequence"])] if positions else []
    inputs += [(f"past_key_values.0.{kind}", real, cache) for kind in ("key", "value")]
    outputs = [(f"present.0.{kind}", real, ["batch", KV_HEADS, "total", HEAD_DIM]) for kind in ("key", "value")]
    outputs += [("logits", real, ["batch", "sequence" if logits == "all" else 1, VOCAB])]
    constants = {
        "one": np.array([1], np.int64),
        "minus_one": np.array([-1], np.int64),
        "index_one": np.array(1, np.int64),
        "step": np.array(POSITION_STEP, dtype),
    }
    nodes = [
        node("ReduceSum", ["attention_mask", "one"], ["count"], keepdims=0),
        node("Sub", ["count", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["mask_shape"]),
        node("Gather", ["mask_shape", "index_one"], ["total_64"]),
        node("Cast", ["total_64"], ["total"], to=TensorProto.INT32),
        node("Gather", ["embed", "input_ids"], ["x" if not positions else "embedded"]),
    ]
    if positions:
        nodes += [
            node("Cast", ["position_ids"], ["positions"], to=real),
            node("Mul", ["positions", "step"], ["shift"]),
            node("Unsqueeze", ["shift", "minus_one"], ["shift_3d"]),
            node("Add", ["embedded", "shift_3d"], ["x"]),
        ]
    nodes += [node("MatMul", ["x", f"w{each}"], [each]) for each in "qkv"]
    nodes += [
        node(
            "GroupQueryAttention",
            ["q", "k", "v", "past_key_values.0.key", "past_key_values.0.value", "seqlens_k", "total"],
            ["attended", "present.0.key", "present.0.value"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
        ),
        node("Add", ["x", "attended"], ["hidden"]),
        node("Slice", ["hidden", "minus_one", "end", "one"], ["hidden_last"]),
        node("MatMul", ["hidden" if logits == "all" else "hidden_last", "head"], ["logits"]),
    ]
    constants["end"] = np.array([np.iinfo(np.int64).max], np.int64)
    stored = {name: value.astype(dtype) for name, value in weights.items()}
    values = [numpy_helper.from_array(value, name) for name, value in (stored | constants).items()]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        values,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _genai_config(positions: bool) -> dict[str, object]:
    inputs = {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    decoder = {
        "filename": "model.onnx",
        "head_size": HEAD_DIM,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": 1,
        "num_key_value_heads": KV_HEADS,
        "inputs": inputs | ({"position_ids": "position_ids"} if positions else {}),
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        "type": "qwen2",
        "vocab_size": VOCAB,
        "context_length": CONTEXT,
        "eos_token_id": list(END),
        "decoder": decoder,
    }
    return {"model": model, "search": {"do_sample": False}}
