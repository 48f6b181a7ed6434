"""A GGUF file drawn up before its first byte of weights: header, and where every tensor lies.

Format: ggml's docs/gguf.md, version 3. Names are gguf's own tensor map; the header's keys come from `metadata`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TypeVar

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGUF_MAGIC,
    GGUF_VERSION,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    TENSOR_NAMES,
    GGMLQuantizationType,
    TensorNameMap,
    get_tensor_name_map,
)
from numpy.typing import NDArray

from edgeship.archs.base import Decoder, Role, Rope
from edgeship.encodings import Encoding
from edgeship.errors import PlanError
from edgeship.formats.gguf.metadata import KeyValue, pack_string
from edgeship.plan import Plan, PlannedTensor


@dataclass(frozen=True)
class Place:
    """Where the rows of one checkpoint tensor go, and as what."""

    role: Role
    encoding: Encoding
    name: str  # "blk.0.attn_q.weight"
    kind: GGMLQuantizationType
    offset: int  # of row 0, in the file
    row_bytes: int
    heads: int = 0  # llama's q and k: rows of each head are interleaved, see `targets`

    @property
    def rows(self) -> int:
        return self.role.shape[0]

    @property
    def columns(self) -> int:
        return prod(self.role.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes

    def targets(self, a: int, b: int) -> NDArray[np.int64]:
        """The rows of the file that rows `[a, b)` of the checkpoint go to.

        Rotary embeddings pair element i of a head with i + head_dim / 2 in transformers, and neighbours in llama.cpp's
        `llama`: row j of half s goes to row 2 j + s of its head (`LlamaModel.permute` in conversion/llama.py).
        """
        rows = np.arange(a, b, dtype=np.int64)
        if not self.heads:
            return rows
        size = self.rows // self.heads
        head, within = np.divmod(rows, size)
        half, j = np.divmod(within, size // 2)
        targets: NDArray[np.int64] = head * size + 2 * j + half
        return targets


@dataclass(frozen=True)
class Constant:
    """A float32 vector that follows from the plan alone."""

    name: str
    offset: int
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """A whole GGUF file: its first bytes, and what lies where behind them."""

    header: bytes  # magic, keys, tensor infos, and padding up to the first tensor
    constants: tuple[Constant, ...]
    places: tuple[Place, ...]  # in file order
    size: int

    @cached_property
    def by_key(self) -> dict[str, Place]:
        return {p.role.key: p for p in self.places}


def lay_out(plan: Plan, metadata: Sequence[KeyValue]) -> Layout:
    """Assign every tensor of the plan its name and offset; raises PlanError where GGUF or llama.cpp cannot hold it."""
    names = _names(plan.decoder)
    at = 0  # from the first tensor on
    infos: list[bytes] = []
    constants: list[Constant] = []
    places: list[Place] = []
    for name, values in _constants(plan.decoder):
        infos.append(_info(name, values.shape, GGMLQuantizationType.F32, at))
        constants.append(Constant(name, at, values))
        at = _aligned(at + values.nbytes)
    for t in plan.stored():
        place = _place(t, names, plan.decoder, at)
        infos.append(_info(place.name, t.role.shape, place.kind, at))
        places.append(place)
        at = _aligned(at + place.nbytes)
    head = struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(infos), len(metadata))
    header = b"".join([head, *(kv.encode() for kv in metadata), *infos])
    header += bytes(_aligned(len(header)) - len(header))
    return Layout(
        header,
        tuple(_moved(c, len(header)) for c in constants),
        tuple(_moved(p, len(header)) for p in places),
        len(header) + at,
    )


Moved = TypeVar("Moved", Place, Constant)


def _aligned(at: int) -> int:
    return -(-at // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT


def _moved(tensor: Moved, base: int) -> Moved:
    return replace(tensor, offset=tensor.offset + base)


def _info(name: str, shape: Sequence[int], kind: GGMLQuantizationType, offset: int) -> bytes:
    """gguf_tensor_info_t: the fastest dimension first, and the offset counted from the first tensor."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return pack_string(name) + dims + struct.pack("<IQ", kind, offset)


def _names(decoder: Decoder) -> TensorNameMap:
    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == decoder.model_type), None)
    if arch is None:
        raise PlanError(
            f"{decoder.model_type}: gguf knows no architecture of this name; nothing was written.",
            hint="export it to ONNX (--format onnx)",
        )
    return get_tensor_name_map(arch, decoder.layers)


def _place(t: PlannedTensor, names: TensorNameMap, decoder: Decoder, at: int) -> Place:
    role = t.role
    tensor = "lm_head.weight" if role.key == "head.weight" else role.tensor  # a tied head may be stored apart
    name = names.get_name(tensor, (".weight", ".bias"))
    kind = GGMLQuantizationType.__members__.get(t.encoding.gguf or "")
    columns = prod(role.shape[1:])
    block, block_bytes = GGML_QUANT_SIZES[kind] if kind is not None else (1, 0)
    if name is None or kind is None or columns % block:
        why = (
            f"{decoder.model_type} has no such tensor in llama.cpp"
            if name is None
            else f"GGUF has no type for {t.encoding.name}"
            if kind is None
            else f"rows of {columns} do not divide into {kind.name}'s blocks of {block}"
        )
        raise PlanError(
            f"{role.tensor} {list(role.shape)}: {why}; nothing was written.",
            hint="choose another type for it in the recipe's scheme, or formats: [onnx]",
        )
    owner = role.key.rpartition(".")[0]
    heads = 0
    if decoder.model_type == "llama":
        heads = decoder.heads if owner.endswith(".q") else decoder.kv_heads if owner.endswith(".k") else 0
    return Place(role, t.encoding, name, kind, at, columns // block * block_bytes, heads)


def _constants(decoder: Decoder) -> Iterator[tuple[str, NDArray[np.float32]]]:
    scaling = decoder.rope.scaling
    if scaling is None or scaling["rope_type"] != "llama3":
        return
    if decoder.model_type != "llama":
        raise PlanError(
            f"{decoder.model_type}: llama.cpp knows llama3 rope scaling for llama only; nothing was written.",
            hint="export it to ONNX (--format onnx)",
        )
    yield TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS] + ".weight", llama3_factors(decoder.rope)


def llama3_factors(rope: Rope) -> NDArray[np.float32]:
    """What llama.cpp divides each frequency by, float32 `[head_dim / 2]`.

    Every step is rounded to float32 in the order of `generate_extra_tensors` (conversion/llama.py), whose torch divides
    a number by a tensor by way of the reciprocal; so the bits are equal.
    """
    s, one = {k: np.float32(v) for k, v in (rope.scaling or {}).items() if k != "rope_type"}, np.float32(1)
    original, low, high = s["original_max_position_embeddings"], s["low_freq_factor"], s["high_freq_factor"]
    exponents = np.arange(0, rope.head_dim, 2, dtype=np.float32) / np.float32(rope.head_dim)
    powers = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    wavelength = (one / (one / powers)) * np.float32(2 * math.pi)
    smooth = ((one / wavelength) * original - low) / (high - low)
    blended = one / ((one - smooth) / s["factor"] + smooth)
    factors = np.where(wavelength > original / low, s["factor"], blended)
    return np.where(wavelength < original / high, one, factors)
