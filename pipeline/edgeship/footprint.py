"""What an artifact takes in one format: bytes on disk by part and encoding, and memory at run time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgeship.recipe import Format

if TYPE_CHECKING:  # a plan has footprints, not the other way round
    from edgeship.plan import Plan, PlannedTensor

RUNTIME_BYTES: dict[Format, int] = {"onnx": 60_000_000, "gguf": 100_000_000}
"""Python, numpy, the engine and its work space (measured: 43 MB to import onnxruntime 1.31; 64 MB for 512 tokens of
a prompt to a 1.5B model in the llama.cpp of llama-cpp-python 0.3.36)."""

TOKENIZER_BYTES: dict[Format, int] = {"onnx": 600, "gguf": 330}
"""Per vocabulary entry (measured on Qwen's 151,665: 86 MB in the tokenizers package, 50 MB in llama.cpp)."""

VOCABULARY_BYTES = 39
"""Per vocabulary entry in the header of a GGUF file: token, type and merge (measured on Qwen's: 5.9 MB)."""

KV_BYTES: dict[Format, int] = {"onnx": 4, "gguf": 2}
"""Per value of the KV cache: float32 in onnxruntime, float16 in llama.cpp."""

_ARM_REPACKED = frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q1_0", "IQ4_NL", "MXFP4"})
_REPACKED = {
    "avx2": frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}),
    "avx512": frozenset({"Q2_K"}),
    "dotprod": _ARM_REPACKED,
    "i8mm": _ARM_REPACKED,
}
"""What llama.cpp copies into another layout, by the processor's instructions (ggml_repack_get_optimal_repack_type in
repack.cpp). The others it reads where the file is mapped."""


def repacked_types(isa: Collection[str]) -> frozenset[str]:
    """The ggml types that llama.cpp keeps a copy of on a processor with these instructions (names of `device.ISA`)."""
    return frozenset[str]().union(*(types for name, types in _REPACKED.items() if name in isa))


PAGE = 4096
"""Weights in model.onnx.data begin at whole pages, so that a runtime can map them (onnx, docs/ExternalData.md)."""

PARTS = ("body", "embeddings", "embeddings + head", "head", "float")


@dataclass(frozen=True)
class PartSize:
    """What one part of the model takes in one encoding; sizes in bytes."""

    part: str  # of PARTS: "embeddings + head" is a table stored once, float are norms and biases
    encoding: str
    tensors: int
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True)
class Memory:
    """RAM the artifact takes at run time with its KV cache full, in bytes."""

    weights: int  # pages of the file that stay in use
    repacked: int  # the engine's own copy of matrices, laid out for the CPU's instructions
    kv_per_token: int  # K and V of all layers
    kv_total: int
    runtime: int  # interpreter, engine, tokenizer

    @property
    def total(self) -> int:
        return self.weights + self.repacked + self.kv_total + self.runtime


@dataclass(frozen=True)
class Footprint:
    """Sizes of an artifact in one format, in bytes."""

    parts: tuple[PartSize, ...]
    parameters: int  # weights of the checkpoint; a tied table counts once
    overhead: int  # of the file, beside weights: rotary tables in ONNX, the vocabulary in GGUF
    memory: Memory

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights, scales included."""
        return sum(p.nbytes for p in self.parts)

    @cached_property
    def size_bytes(self) -> int:
        """Size of model.onnx.data, or of the .gguf file, but for padding and a few keys."""
        return self.weight_bytes + self.overhead

    @cached_property
    def bits_per_weight(self) -> float:
        """Bits stored per weight of the checkpoint, scales included."""
        return 8 * self.weight_bytes / self.parameters

    def to_json(self) -> dict[str, Any]:
        """The footprint as JSON values; sizes in bytes."""
        return {
            "parts": [
                {"part": p.part, "encoding": p.encoding, "tensors": p.tensors, "weights": p.weights}
                | {"bytes": p.nbytes, "bits_per_weight": p.bits_per_weight}
                for p in self.parts
            ],
            "overhead_bytes": self.overhead,
            "size_bytes": self.size_bytes,
            "bits_per_weight": self.bits_per_weight,
            "ram_bytes": asdict(self.memory) | {"total": self.memory.total},
        }


def footprint(plan: Plan, form: Format, isa: Collection[str] = ("avx2",)) -> Footprint:
    """What a plan comes to in a format that holds all its encodings, on a processor with these instructions."""
    d = plan.decoder
    per_token = d.layers * 2 * d.kv_heads * d.head_dim * KV_BYTES[form]
    weights, repacked = _onnx_memory(plan) if form == "onnx" else _gguf_memory(plan, repacked_types(isa))
    return Footprint(
        parts=_parts(plan, form),
        parameters=plan.parameters,
        overhead=rope_bytes(plan) if form == "onnx" else VOCABULARY_BYTES * d.vocab_size,
        memory=Memory(
            weights=weights,
            repacked=repacked,
            kv_per_token=per_token,
            kv_total=per_token * plan.recipe.context,
            runtime=RUNTIME_BYTES[form] + TOKENIZER_BYTES[form] * d.vocab_size,
        ),
    )


def rope_bytes(plan: Plan) -> int:
    """Bytes of the float32 cos and sin tables of the ONNX graph, each [rope_positions, head_dim / 2]."""
    return 2 * plan.rope_positions * (plan.decoder.head_dim // 2) * 4


def _parts(plan: Plan, form: Format) -> tuple[PartSize, ...]:
    groups: dict[tuple[str, str], list[PlannedTensor]] = defaultdict(list)
    for t in plan.stored():
        part = "embeddings + head" if t.role.part == "embeddings" and plan.shared_head else t.role.part
        groups[part, t.encoding.name].append(t)
    return tuple(
        PartSize(*key, len(ts), sum(t.weights for t in ts), sum(t.nbytes(form) for t in ts))
        for key, ts in sorted(groups.items(), key=lambda item: PARTS.index(item[0][0]))
    )


def _matrices(plan: Plan) -> list[PlannedTensor]:
    """What every token is multiplied by; of an embedding table that is not the head only rows are read."""
    return [t for t in plan.tensors if t.role.part == "body"] + [plan.head]


def _onnx_memory(plan: Plan) -> tuple[int, int]:
    """Bytes of the file in use, and of onnxruntime's copies: every matrix has one, its codes in the file are let go."""
    mapped, repacked = rope_bytes(plan), 0
    for t in plan.stored():
        codes, scales = t.encoding.onnx_bytes(t.role.shape)
        mapped += scales + (codes if t.role.part == "float" else 0)
    for t in _matrices(plan):
        codes, scales = t.encoding.onnx_bytes(t.role.shape)
        # MatMulNBits at level 4 adds a float32 sum per group; float16 is widened, for the CPU multiplies float32
        repacked += codes + 2 * scales if t.encoding.quantized else 4 * t.weights
    return mapped, repacked


def _gguf_memory(plan: Plan, types: Collection[str]) -> tuple[int, int]:
    """Bytes of the file in use, and of llama.cpp's copies: it maps the file, and copies some types only.

    The pages of a copied matrix stay mapped, and count in RSS until the system needs them; they are not counted here.
    """
    matrices = _matrices(plan)
    copied = sum(t.nbytes("gguf") for t in matrices if t.encoding.gguf in types)
    vectors = sum(t.nbytes("gguf") for t in plan.stored() if t.role.part == "float")
    return vectors + sum(t.nbytes("gguf") for t in matrices) - copied, copied


def passing_bytes(plan: Plan, form: Format, isa: Collection[str] = ("avx2",)) -> int:
    """Pages of the file that count in the process's peak beside `Memory`, and that the system can take back.

    onnxruntime reads one matrix after another to copy it; llama.cpp leaves what it copied mapped.
    """
    if form == "onnx":
        return max(t.encoding.onnx_bytes(t.role.shape)[0] for t in _matrices(plan))
    return _gguf_memory(plan, repacked_types(isa))[1]
