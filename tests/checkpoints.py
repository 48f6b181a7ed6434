"""Tiny checkpoints for tests: config.json, safetensors with small random weights, and a real tokenizer.

The same arguments give the same bytes of config and weights. Tensor names and shapes are the roles of `edgeship.archs`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgeship import archs

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # in id order, after the BPE vocabulary
SMALLEST_VOCAB = 256 + len(SPECIAL)  # byte-level BPE holds every byte
NO_LIMIT = int(1e30)  # what transformers saves for a tokenizer that has none
STORED: dict[str, type] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a small model.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

CORPUS = (
    "The cat sat on the mat. The dog sat by the door.",
    "user and assistant and system: what colour is the sky? The sky is blue.",
    "def add(a, b):\n    return a + b\n",
    "Schöne Grüße aus München, 你好，世界。 こんにちは 🙂🙂",
)

# Qwen2's pre-tokenizer, as its tokenizer.json holds it.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_checkpoint(
    path: Path,
    model_type: str = "qwen2",
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    ff: int = 96,
    vocab: int = 320,
    tied: bool = True,
    shards: int = 1,
    dtype: str = "BF16",
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a checkpoint to `path` (created) and return it; `config` adds to or replaces fields of config.json.

    qwen3 takes `head_dim` (16 here when not given); a field given as None is left out of config.json.
    """
    path.mkdir(parents=True, exist_ok=True)
    values = _config(model_type, hidden, layers, heads, kv_heads, ff, vocab, tied, dtype) | config
    values = {k: v for k, v in values.items() if v is not None}
    _write_json(path / "config.json", values)
    write_weights(path, random_weights(values, seed), shards=shards, dtype=dtype)
    write_tokenizer(path, vocab)
    return path


def _config(
    model_type: str, hidden: int, layers: int, heads: int, kv_heads: int, ff: int, vocab: int, tied: bool, dtype: str
) -> dict[str, Any]:
    first_special = min(vocab, 320) - len(SPECIAL)
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ff,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        "bos_token_id": first_special,
        "eos_token_id": first_special + 2,
    }
    if model_type == "qwen3":
        values |= {"head_dim": 16, "attention_bias": False}
    if model_type == "llama":
        values |= {"attention_bias": False, "mlp_bias": False}
    else:
        values |= {"use_sliding_window": False}
    return values


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """A float32 value for every role: weights of variance 1 / columns, norms near 1, biases of size 0.1."""
    rng = np.random.default_rng(seed)
    out = {}
    for role in archs.read(config).roles():
        values = rng.standard_normal(role.shape, dtype=np.float32)
        if len(role.shape) == 2:
            values *= np.float32(role.shape[1] ** -0.5)
        else:
            values = np.float32(0.1) * values + np.float32(role.tensor.endswith("norm.weight"))
        out[role.tensor] = values
    return out


def write_weights(
    path: Path, weights: Mapping[str, NDArray[np.float32]], *, shards: int = 1, dtype: str = "BF16"
) -> list[Path]:
    """Write `weights` to `path` as model.safetensors, or as `shards` files with their index; returns the files."""
    names = list(weights)
    per = -(-len(names) // shards)
    groups = [names[i : i + per] for i in range(0, len(names), per)]
    files = []
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups):
        name = "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        write_safetensors(path / name, {n: (dtype, narrow(weights[n], dtype)) for n in group})
        files.append(path / name)
        weight_map |= dict.fromkeys(group, name)
    if shards > 1:
        total = sum(narrow(w, dtype).nbytes for w in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(path / "model.safetensors.index.json", index)
    return files


def narrow(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 values as stored: BF16 rounded to nearest even, as its bits in uint16."""
    if dtype != "BF16":
        return values.astype(STORED[dtype])
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]]) -> None:
    """Write one safetensors file from name -> (dtype name, values as stored), in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    blob = json.dumps(header, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(blob)) + blob)
        for _, values in tensors.values():
            f.write(np.ascontiguousarray(values).tobytes())


def write_tokenizer(path: Path, vocab: int = 320) -> None:
    """Write tokenizer.json (byte-level BPE, at most 320 ids), tokenizer_config.json and generation_config.json."""
    text, size = _trained(min(vocab, 320))
    (path / "tokenizer.json").write_text(text, encoding="utf-8")
    ids = dict(zip(SPECIAL, range(size - len(SPECIAL), size), strict=True))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": t, **flags} for t, i in ids.items()},
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": NO_LIMIT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(path / "tokenizer_config.json", config)
    generation = {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.05,
    }
    _write_json(path / "generation_config.json", generation)


@cache
def _trained(size: int) -> tuple[str, int]:
    assert size >= SMALLEST_VOCAB, f"byte-level BPE needs a vocabulary of at least {SMALLEST_VOCAB}, got {size}"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    assert tokenizer.get_vocab_size() == size
    return tokenizer.to_str(pretty=True), size


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
