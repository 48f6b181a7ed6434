"""An ONNX artifact as transformers.js loads it: its own names for the graph and its data, and a `config.json`.

Layout: src/utils/model-loader.js of @huggingface/transformers 4.3. `onnx/model_q4.onnx` is the graph, and the weights
are `onnx/model_q4.onnx_data`, which is also the name that the graph has to call them by.
"""

from __future__ import annotations

from typing import Any

import onnx

from edgeship.errors import ArtifactError
from edgeship_runtime.manifest import Manifest

DATA = "model.onnx.data"
GRAPH = "model.onnx"

_SUFFIXES = {"int4": ("q4", "_q4"), "int8": ("int8", "_int8"), "float16": ("fp16", "_fp16"), "float32": ("fp32", "")}
"""By the encoding of the body: the dtype of transformers.js, and what it appends to the file's name."""


def dtype(manifest: Manifest) -> str:
    """What transformers.js calls the type of the weights; fp32 for any it has no name for."""
    return _suffix(manifest)[0]


def graph_name(manifest: Manifest) -> str:
    """Where transformers.js looks for the graph."""
    return f"onnx/model{_suffix(manifest)[1]}.onnx"


def data_name(manifest: Manifest) -> str:
    """Where transformers.js looks for the weights."""
    return f"{graph_name(manifest)}_data"


def _suffix(manifest: Manifest) -> tuple[str, str]:
    body = manifest.weights.parts.get("body", "").split("-")[0]
    return _SUFFIXES.get(body, _SUFFIXES["float32"])


def graph(raw: bytes, manifest: Manifest) -> bytes:
    """The graph, its weights called by the name of `data_name`; raises ArtifactError for a graph of other files."""
    model = onnx.load_model_from_string(raw)
    name = data_name(manifest).rpartition("/")[2]
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            if entry.value != DATA:
                hint = "bundles for a browser are made of artifacts that `edgeship export` wrote"
                raise ArtifactError(f"{tensor.name}: expected its data in {DATA}, found another file.", hint=hint)
            entry.value = name
    return bytes(model.SerializeToString(deterministic=True))


def config(manifest: Manifest, attention_heads: int) -> dict[str, Any]:
    """`config.json`, from the manifest and what it leaves out."""
    m, graph_file = manifest.model, graph_name(manifest).rpartition("/")[2]
    apart = {"use_external_data_format": {graph_file: 1}} if DATA in manifest.files else {}
    return {
        "model_type": m.type,
        "vocab_size": m.vocab_size,
        "hidden_size": m.hidden_size,
        "num_hidden_layers": m.layers,
        "num_attention_heads": attention_heads,
        "num_key_value_heads": m.kv_heads,
        "head_dim": m.head_dim,
        "max_position_embeddings": m.context_length,
        "bos_token_id": m.bos_token_id,
        "eos_token_id": list(m.eos_token_ids),
        "pad_token_id": m.pad_token_id,
        "transformers.js_config": {"dtype": dtype(manifest)} | apart,
    }
