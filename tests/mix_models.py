"""What llama-quantize chooses for models of many shapes, recorded: `mix_models.json`.

    python tests/mix_models.py /path/to/llama-quantize

writes the record anew, from `llama-quantize --dry-run` on GGUF files that hold headers only (their data is a hole).
The tool is built from the source distribution of llama-cpp-python (vendor/llama.cpp, target llama-quantize).
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edgeship import archs
from edgeship.archs.base import Decoder
from edgeship.quant.mixes import MixName

RECORD = Path(__file__).with_suffix(".json")


def shape(kind: str, d: int, layers: int, ff: int, heads: int, kv: int, vocab: int, tied: bool, **extra: Any) -> Any:
    return {
        "model_type": kind,
        "hidden_size": d,
        "num_hidden_layers": layers,
        "intermediate_size": ff,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        **extra,
    }


MODELS: dict[str, dict[str, Any]] = {  # as published in each model's config.json
    "qwen2.5-0.5b": shape("qwen2", 896, 24, 4864, 14, 2, 151936, True),
    "qwen2.5-1.5b": shape("qwen2", 1536, 28, 8960, 12, 2, 151936, True),
    "qwen2.5-3b": shape("qwen2", 2048, 36, 11008, 16, 2, 151936, True),
    "qwen2.5-7b": shape("qwen2", 3584, 28, 18944, 28, 4, 152064, False),
    "qwen2.5-72b": shape("qwen2", 8192, 80, 29568, 64, 8, 152064, False),
    "qwen1.5-0.5b": shape("qwen2", 1024, 24, 2816, 16, 16, 151936, True),
    "qwen3-0.6b": shape("qwen3", 1024, 28, 3072, 16, 8, 151936, True, head_dim=128),
    "qwen3-1.7b": shape("qwen3", 2048, 28, 6144, 16, 8, 151936, True, head_dim=128),
    "qwen3-4b": shape("qwen3", 2560, 36, 9728, 32, 8, 151936, True, head_dim=128),
    "qwen3-8b": shape("qwen3", 4096, 36, 12288, 32, 8, 151936, False, head_dim=128),
    "llama-3.2-1b": shape("llama", 2048, 16, 8192, 32, 8, 128256, True),
    "llama-3.1-8b": shape("llama", 4096, 32, 14336, 32, 8, 128256, False),
    "llama-3.1-70b": shape("llama", 8192, 80, 28672, 64, 8, 128256, False),
    "llama-65b": shape("llama", 8192, 80, 22016, 64, 64, 32000, False),
    "smollm2-135m": shape("llama", 576, 30, 1536, 9, 3, 49152, True),
    "untied-896": shape("qwen2", 896, 5, 4864, 14, 2, 1000, False),
    "two-layers": shape("qwen2", 512, 2, 1024, 8, 2, 1000, True),
    "odd-172": shape("qwen2", 128, 3, 172, 4, 2, 1000, True),
    "odd-80": shape("qwen2", 80, 4, 256, 4, 4, 1000, False),
}

NAMES = {
    "embed": "token_embd", "head": "output", "norm": "output_norm",
    "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v", "attn.o": "attn_output",
    "mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}  # fmt: skip
"""llama.cpp's names (gguf-py/gguf/constants.py, TENSOR_NAMES)."""


def decoder(model: str) -> Decoder:
    return archs.read(MODELS[model], model)


def gguf_name(key: str) -> str:
    """llama.cpp's name of a role: `blk.0.attn_q.weight` of `layers.0.attn.q.weight`."""
    place, _, last = key.rpartition(".")
    match = re.fullmatch(r"layers\.(\d+)\.(.*)", place)
    return f"blk.{match[1]}.{NAMES[match[2]]}.{last}" if match else f"{NAMES[place]}.{last}"


def matrices(d: Decoder) -> dict[str, tuple[int, ...]]:
    """Shape by llama.cpp's name, of every tensor that a mix chooses for."""
    return {gguf_name(r.key): r.shape for r in d.roles() if r.part != "float"}


def digest(types: Mapping[str, str]) -> str:
    """Identifies the types of a whole model, by name in lower case."""
    lines = "\n".join(f"{name} {kind.lower()}" for name, kind in sorted(types.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def write_header(path: Path, d: Decoder) -> None:
    """A GGUF with the keys and tensor infos that llama-quantize looks at, and a hole for data."""
    import gguf

    writer = gguf.GGUFWriter(path, d.model_type)
    writer.add_block_count(d.layers)
    writer.add_context_length(d.max_positions)
    writer.add_embedding_length(d.hidden_size)
    writer.add_feed_forward_length(d.feed_forward)
    writer.add_head_count(d.heads)
    writer.add_head_count_kv(d.kv_heads)
    writer.add_key_length(d.head_dim)
    writer.add_value_length(d.head_dim)
    writer.add_layer_norm_rms_eps(d.norm_eps)
    writer.add_vocab_size(d.vocab_size)
    for name, dims in matrices(d).items():
        writer.add_tensor_info(name, dims, np.dtype(np.float32), int(np.prod(dims)) * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = sum(-(-int(np.prod(dims)) * 4 // 32) * 32 for dims in matrices(d).values())
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + size)


def write_imatrix(path: Path, sizes: Mapping[str, int]) -> None:
    """An importance matrix of ones, as llama-imatrix writes it."""
    import gguf

    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["ones"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    for name, columns in sizes.items():
        writer.add_tensor(f"{name}.in_sum2", np.ones((1, columns), np.float32))
        writer.add_tensor(f"{name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def chosen_by_tool(tool: Path, file: Path, mix: str, imatrix: Path | None = None) -> dict[str, str]:
    """The type of each tensor, as llama-quantize says it would choose it; {} where it gives up."""
    guided = ["--imatrix", str(imatrix)] if imatrix else []
    done = subprocess.run(
        [tool, "--dry-run", *guided, file, mix], capture_output=True, text=True, errors="replace", check=False
    )
    line = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*type = *(\w+), size = *[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?")
    found = {m[1]: m[3] or m[2] for m in line.finditer(done.stdout + done.stderr)}
    return found if done.returncode == 0 else {}


def record(tool: Path) -> dict[str, dict[str, str]]:
    """For each model and mix the digest without and with an importance matrix; `refused` where there is none."""
    out: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as home:
        for model in MODELS:
            file, imatrix = Path(home) / "model.gguf", Path(home) / "imatrix.gguf"
            write_header(file, decoder(model))
            write_imatrix(imatrix, {name: dims[-1] for name, dims in matrices(decoder(model)).items()})
            out[model] = {
                mix: " ".join(
                    digest(types) if types else "refused"
                    for types in (chosen_by_tool(tool, file, mix, i) for i in (None, imatrix))
                )
                for mix in get_args(MixName)
            }
            print(model, file=sys.stderr)
    return out


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(Path(sys.argv[1])), indent=1) + "\n")
