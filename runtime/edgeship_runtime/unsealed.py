"""What a GGUF file says of itself, as a manifest: for files that come alone, whoever made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeship_runtime.facts import (
    MAX_CONTEXT,
    MAX_VOCAB,
    Budgets,
    Hints,
    ModelFacts,
    SamplingDefaults,
    SourceFacts,
    WeightFacts,
    sampling_defaults,
)
from edgeship_runtime.gguf import Array, Header, Tensor
from edgeship_runtime.gguf_model import read_model
from edgeship_runtime.manifest import UNSEALED_CONTEXT, Manifest
from edgeship_runtime.strict import Fields, show

if TYPE_CHECKING:
    from edgeship_runtime.chat import ChatTemplate

# llama.cpp's own (common.h), for a file without `general.sampling.*`: its makers will have tried it with them.
_SAMPLING = SamplingDefaults(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
_SAMPLING_KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_gguf(path: Path) -> Manifest:
    """The manifest of a GGUF file, not sealed; raises ArtifactError for a file that is damaged or no decoder."""
    headers = read_model(path)
    header = headers[0]
    given = _name(header)
    model = _model_facts(header)
    return Manifest(
        name=given,
        format="gguf",
        edgeship="",
        source=SourceFacts("local", given, ""),
        recipe={},
        model=model,
        sampling=_sampling(header),
        weights=_weights([tensor for each in headers for tensor in each.tensors.values()]),
        ops=(),
        versions={},
        budgets=Budgets(),
        files={},
        hints=Hints(),
        sealed=False,
        model_file=path.name,
    )


def _name(header: Header) -> str:
    name = header.metadata.get("general.name")
    return name if isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable() else header.path.stem


def _model_facts(header: Header) -> ModelFacts:
    architecture = header.text("general.architecture")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array) or tokens.type != "string" or not 0 < tokens.count <= MAX_VOCAB:
        raise header.error(f"tokenizer.ggml.tokens: expected 1 to {MAX_VOCAB} texts, found {show(str(tokens))}")

    def size(key: str, high: int, absent: int | None = None) -> int:
        return _integer(header, f"{architecture}.{key}", high, absent)

    layers, hidden = size("block_count", 1 << 16), size("embedding_length", 1 << 24)
    context = size("context_length", MAX_CONTEXT)
    heads = size("attention.head_count", 1 << 16, 0)
    special = {key: _token(header, key, tokens.count) for key in ("bos_token_id", "padding_token_id", *_ENDS)}
    return ModelFacts(
        type=architecture,
        vocab_size=tokens.count,
        layers=layers,
        kv_heads=size("attention.head_count_kv", 1 << 16, heads),
        head_dim=size("attention.key_length", 1 << 16, hidden // heads if heads else 0),
        hidden_size=hidden,
        context_length=context,
        default_context=min(context, UNSEALED_CONTEXT),
        bos_token_id=special["bos_token_id"],
        eos_token_ids=tuple(sorted({end for key in _ENDS if (end := special[key]) is not None})),
        pad_token_id=special["padding_token_id"],
    )


def _integer(header: Header, key: str, high: int, absent: int | None) -> int:
    """A whole number from 1, or the largest of one per layer; `absent` where there is none."""
    if absent is not None and key not in header.metadata:
        return absent
    value = header.largest(key)
    if value is None or not 1 <= value <= high:
        found = header.metadata.get(key) if value is None else value
        raise header.error(f"{key}: expected a whole number from 1 to {high}, found {show(str(found))}")
    return value


def _token(header: Header, key: str, vocab: int) -> int | None:
    """A special token's id; None where there is none, or one that llama.cpp would not take."""
    found = header.metadata.get(f"tokenizer.ggml.{key}")
    return found if type(found) is int and 0 <= found < vocab else None


def _sampling(header: Header) -> SamplingDefaults:
    prefix = "general.sampling."
    given = {
        name: float(f"{value:.6g}") if isinstance(value, float) else value  # a float32 has no more digits
        for key, name in _SAMPLING_KEYS.items()
        if (value := header.metadata.get(prefix + key)) is not None
    }
    fields = Fields(given, str(header.path), prefix.rstrip("."), (), tuple(given))
    return sampling_defaults(fields, SamplingDefaults() if given else _SAMPLING)


def _weights(tensors: Sequence[Tensor]) -> WeightFacts:
    """Bits over all weights, and the type of most weights of each part."""
    parts: dict[str, Counter[str]] = {}
    for tensor in tensors:
        part = {"token_embd.weight": "embeddings", "output.weight": "head"}.get(tensor.name, "body")
        parts.setdefault(part, Counter())[tensor.type] += tensor.elements
    count = sum(tensor.elements for tensor in tensors)
    bits = sum(tensor.size for tensor in tensors) * 8 / count if count else None
    return WeightFacts(bits, {part: types.most_common(1)[0][0].lower() for part, types in sorted(parts.items())})


def read_template(path: Path, special: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template inside a GGUF file, None without one; `special`: texts of bos_token and the like.

    Raises TemplateError as ChatTemplate does.
    """
    from edgeship_runtime.chat import ChatTemplate

    prefix = "tokenizer.chat_template"
    metadata = read_model(path)[0].metadata
    sources = {
        key.removeprefix(prefix).removeprefix(".") or "default": text
        for key, text in metadata.items()
        if (key == prefix or key.startswith(f"{prefix}.")) and isinstance(text, str)
    }
    return ChatTemplate(sources, special) if "default" in sources else None
