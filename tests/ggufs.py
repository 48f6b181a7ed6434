"""GGUF files for tests: tiny checkpoints written through the real layout and writer, and what llama.cpp makes of them.

`tests/llamacpp/recorded.json` is what llama.cpp's own tools made of them, written by `tests/llamacpp/compare.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, ReaderField

from checkpoints import random_weights, write_checkpoint, write_weights
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.encodings import ENCODINGS, Encoding
from edgeship.formats.gguf.layout import Layout, lay_out
from edgeship.formats.gguf.metadata import make_metadata
from edgeship.formats.gguf.vocabulary import read_vocabulary
from edgeship.formats.gguf.write import GgufFile
from edgeship.plan import Plan, make_plan
from edgeship.quant.rtn import quantize
from edgeship.recipe import Sampling
from edgeship.text import open_text
from exports import recipe

RECORDED = Path(__file__).parent / "llamacpp" / "recorded.json"

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q8_0")

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen2-tied": {"model_type": "qwen2"},
    "qwen2-untied": {"model_type": "qwen2", "tied": False, "heads": 7, "kv_heads": 1, "hidden": 224, "vocab": 330},
    "qwen2-yarn": {"model_type": "qwen2", "rope_scaling": YARN},
    "qwen2-yarn-attention": {
        "model_type": "qwen2",
        "rope_scaling": {**YARN, "attention_factor": 1.25, "beta_fast": 16},
    },
    "qwen3-tied": {"model_type": "qwen3", "head_dim": 32},
    "qwen3-untied": {"model_type": "qwen3", "tied": False, "dtype": "F32"},
    "llama-tied": {"model_type": "llama", "kv_heads": 1},
    "llama-untied": {"model_type": "llama", "tied": False, "dtype": "F16", "attention_bias": True},
    "llama-scaled": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3},
}
"""Tiny checkpoints, by keyword arguments of `write_checkpoint`."""

DIFFERENCES = {
    "general.organization": "the owner of the repository; the converter knows a directory",
    "general.quantized_by": "who made the file",
    "general.license": "from the license file; the converter reads a model card",
    "general.base_model.": "the model that was exported; the converter reads a model card",
    "general.source.": "where the model's files came from; the converter reads a model card",
    "general.sampling.min_p": "the recipe's, as every sampling parameter: llama.cpp has a default of its own, 0.05",
    "general.sampling.penalty_last_n": "the whole text, as in transformers; llama.cpp's default is 64 tokens",
    ".context_length": "what YaRN extends it to, since runtimes cap the context at it",
    ".rope.scaling.attn_factor": "an explicit attention factor, which llama.cpp does not take from yarn_attn_factor",
}
"""Keys that differ from the converter's, by how they begin or end, and why."""


def reason_to_differ(key: str) -> str | None:
    return next((why for p, why in DIFFERENCES.items() if key.startswith(p) or (p[0] == "." and key.endswith(p))), None)


def case(name: str, directory: Path) -> Path:
    """The tiny checkpoint of this name, in a directory of this name, with rows that are hard to round."""
    path = write_checkpoint(directory / name, **CASES[name])
    config = json.loads((path / "config.json").read_text())
    weights = random_weights(config)
    for values in weights.values():
        if values.ndim == 2:
            values[0], values[1] = 0, -0.0
            values[2] = 0.75 * (-1) ** np.arange(values.shape[1])  # the largest element is none
            values[3, :32], values[4] = 0, 1e-9
    write_weights(path, weights, dtype=CASES[name].get("dtype", "BF16"))
    return path


def encoding(kind: str) -> Encoding:
    """The encoding of one of ggml's types."""
    known = {e.gguf: e for e in ENCODINGS.values() if e.gguf}
    return known.get(kind) or Encoding(kind.lower(), 16, 0, "", kind)


def draw_up(checkpoint: Path, kind: str = "Q4_0", **fields: Any) -> tuple[Plan, Layout]:
    """Plan and layout of a checkpoint, its matrices as ggml's type `kind`; `fields` are the recipe's.

    The recipe's repository has the directory's name, and its sampling defaults are the checkpoint's own.
    """
    source = open_checkpoint(checkpoint)
    named = {"source": {"host": "local", "repo": f"tests/{checkpoint.name}", "path": "unused"}}
    plan = make_plan(recipe(**{**named, "sampling": _sampling(checkpoint), **fields}), source.config)
    stored = encoding(kind)
    plan = replace(
        plan,
        tensors=tuple(t if t.role.part == "float" else replace(t, encoding=stored) for t in plan.tensors),
        shared_head=plan.decoder.tied,
    )
    text = open_text(source, plan)
    vocabulary = read_vocabulary(text.files, text.special, plan.decoder.vocab_size)
    return plan, lay_out(plan, make_metadata(plan, vocabulary, text.files))


def _sampling(checkpoint: Path) -> dict[str, Any]:
    values = json.loads((checkpoint / "generation_config.json").read_text())
    return {k: v for k, v in values.items() if k in Sampling.model_fields}


def write_gguf(checkpoint: Path, path: Path, kind: str = "Q4_0", *, chunk: int = 7, **fields: Any) -> Layout:
    """Write a checkpoint as GGUF, `chunk` rows at a time: by default no multiple of a head, so rows are scattered."""
    plan, layout = draw_up(checkpoint, kind, **fields)
    tensors = account(open_checkpoint(checkpoint), plan.decoder.roles())
    file = GgufFile(path, layout)
    try:
        for place in layout.places:
            tensor, e = tensors[place.role.key], place.encoding
            for a in range(0, place.rows, chunk):
                b = min(a + chunk, place.rows)
                rows = quantize(tensor.raw(a, b), e.bits, e.group) if e.quantized else tensor.rows(a, b)
                file.put(place.role.key, a, rows)
        file.complete()
        file.sync()
    finally:
        file.close()
    return layout


def value(field: ReaderField) -> Any:
    """A key's value, with its type: arrays of over 20 items as their number and digest."""
    contents = field.contents()
    kinds = "/".join(GGUFValueType(t).name for t in field.types)
    if isinstance(contents, list) and len(contents) > 20:
        contents = f"{len(contents)} items, sha256 {hashlib.sha256(json.dumps(contents).encode()).hexdigest()}"
    return [kinds, contents]


def keys(path: Path) -> dict[str, Any]:
    """Every key of a GGUF in file order, as JSON values."""
    fields = GGUFReader(path).fields
    return {name: value(f) for name, f in fields.items() if not name.startswith("GGUF.")}


def tensors(path: Path) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """Name, type, shape and bytes of every tensor of a GGUF, sorted by name."""
    for t in sorted(GGUFReader(path).tensors, key=lambda t: str(t.name)):
        yield str(t.name), t.tensor_type.name, tuple(map(int, t.shape)), np.asarray(t.data).tobytes()


def digest(path: Path) -> str:
    """sha256 over every tensor's name, type, shape and bytes, whatever their order in the file."""
    whole = hashlib.sha256()
    for name, kind, shape, data in tensors(path):
        whole.update(f"{name} {kind} {shape}\n".encode())
        whole.update(data)
    return whole.hexdigest()


def compare_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys with different values, ours first; None where a file lacks the key."""
    names = dict.fromkeys([*theirs, *ours])
    return {n: (ours.get(n), theirs.get(n)) for n in names if ours.get(n) != theirs.get(n)}
