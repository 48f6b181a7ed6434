"""Every stored form of a weight: a row per encoding.

The quantized ones share one grid: groups of consecutive input elements, value = (code - zero) * scale with
zero = 2**(bits - 1) and a signed scale that float16 represents. At group 32 that is GGUF's `Q4_0` and `Q8_0`
(ggml-common.h, block_q4_0 and block_q8_0) and ONNX Runtime's `MatMulNBits` without zero points; the wider groups
exist in ONNX only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

WeightType = Literal["int4", "int8", "float16", "float32"]


@dataclass(frozen=True)
class Encoding:
    """How the values of a weight are stored, and what each format calls it."""

    name: str
    bits: int  # of one code, or of one float
    group: int  # input elements that share a scale; 0 for floats
    onnx: str  # the node that multiplies by it
    gguf: str | None  # ggml's type name, None where GGUF has none

    @property
    def quantized(self) -> bool:
        return self.group > 0

    @property
    def zero(self) -> int:
        """The code that stands for 0.0."""
        return 1 << (self.bits - 1)

    def onnx_bytes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes in model.onnx.data: codes (or floats), and float32 scales."""
        if not self.quantized:
            return prod(shape) * self.bits // 8, 0
        groups = prod(shape[:-1]) * -(-shape[-1] // self.group)
        return groups * self.group * self.bits // 8, groups * 4


ENCODINGS: dict[str, Encoding] = {
    e.name: e
    for e in (
        Encoding("int4-32", 4, 32, "MatMulNBits", "Q4_0"),
        Encoding("int4-64", 4, 64, "MatMulNBits", None),
        Encoding("int4-128", 4, 128, "MatMulNBits", None),
        Encoding("int8-32", 8, 32, "MatMulNBits", "Q8_0"),
        Encoding("int8-64", 8, 64, "MatMulNBits", None),
        Encoding("int8-128", 8, 128, "MatMulNBits", None),
        Encoding("float16", 16, 0, "FusedMatMul", "F16"),
        Encoding("float32", 32, 0, "FusedMatMul", "F32"),
    )
}


def encoding_of(weights: WeightType, group_size: int) -> Encoding:
    """The encoding a recipe's type and group size name; the group size plays no part for floats."""
    return ENCODINGS[weights if weights.startswith("float") else f"{weights}-{group_size}"]
