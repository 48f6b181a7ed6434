"""Every stored form of a weight: a row per encoding.

Those with a name in ONNX share one grid with GGUF: groups of consecutive input elements, value = (code - zero) * scale
with zero = 2**(bits - 1) and a signed scale that float16 represents. At group 32 that is GGUF's `Q4_0` and `Q8_0`
(ggml-common.h, block_q4_0 and block_q8_0) and ONNX Runtime's `MatMulNBits` without zero points; the wider groups
exist in ONNX only. The others are ggml's own: its quantizer chooses the codes, and only GGUF holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

WeightType = Literal[
    "int4", "int8", "float16", "bfloat16", "float32",
    "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "iq4_xs",
    "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "mxfp4", "tq1_0", "tq2_0", "q1_0",
]  # fmt: skip
"""What a recipe may call for: a type of the shared grid, a float, or one of ggml's types by its name there."""


@dataclass(frozen=True)
class Encoding:
    """How the values of a weight are stored, and what each format calls it."""

    name: str
    bits: int  # of one code, or of one float
    group: int  # input elements that share a scale (ggml: a block); 0 for floats
    onnx: str | None  # the node that multiplies by it, None where ONNX has none
    gguf: str | None  # ggml's type name, None where GGUF has none
    block: int = 0  # bytes of a group, or of one float, in GGUF
    needs_importance: bool = False  # too coarse to be of use without an importance matrix

    @property
    def quantized(self) -> bool:
        return self.group > 0

    @property
    def on_grid(self) -> bool:
        """Whether it stores the shared grid: codes chosen here, for every format alike."""
        return self.quantized and self.onnx is not None

    @property
    def zero(self) -> int:
        """The code that stands for 0.0."""
        return 1 << (self.bits - 1)

    def in_format(self, form: Literal["onnx", "gguf"]) -> bool:
        """Whether a format can hold it."""
        return (self.gguf if form == "gguf" else self.onnx) is not None

    def fits(self, columns: int) -> bool:
        """Whether rows of that many elements divide into groups."""
        return columns % max(self.group, 1) == 0

    def onnx_bytes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes in model.onnx.data: codes (or floats), and float32 scales."""
        if not self.quantized:
            return prod(shape) * self.bits // 8, 0
        groups = prod(shape[:-1]) * -(-shape[-1] // self.group)
        return groups * self.group * self.bits // 8, groups * 4

    def gguf_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of the tensor's data in a GGUF file, scales included."""
        return prod(shape[:-1]) * -(-shape[-1] // max(self.group, 1)) * self.block


def _ggml(name: str, bits: int, group: int, block: int, needs_importance: bool = False) -> Encoding:
    return Encoding(name, bits, group, None, name.upper(), block, needs_importance)


ENCODINGS: dict[str, Encoding] = {
    e.name: e
    for e in (
        Encoding("int4-32", 4, 32, "MatMulNBits", "Q4_0", 18),
        Encoding("int4-64", 4, 64, "MatMulNBits", None),
        Encoding("int4-128", 4, 128, "MatMulNBits", None),
        Encoding("int8-32", 8, 32, "MatMulNBits", "Q8_0", 34),
        Encoding("int8-64", 8, 64, "MatMulNBits", None),
        Encoding("int8-128", 8, 128, "MatMulNBits", None),
        Encoding("float16", 16, 0, "FusedMatMul", "F16", 2),
        Encoding("bfloat16", 16, 0, None, "BF16", 2),
        Encoding("float32", 32, 0, "FusedMatMul", "F32", 4),
        # ggml's blocks: sizes of the structs in ggml-common.h; who needs an importance matrix: llama-quant.cpp
        _ggml("q2_k", 2, 256, 84),
        _ggml("q3_k", 3, 256, 110),
        _ggml("q4_k", 4, 256, 144),
        _ggml("q5_k", 5, 256, 176),
        _ggml("q6_k", 6, 256, 210),
        _ggml("q4_1", 4, 32, 20),
        _ggml("q5_0", 5, 32, 22),
        _ggml("q5_1", 5, 32, 24),
        _ggml("iq4_nl", 4, 32, 18),
        _ggml("iq4_xs", 4, 256, 136),
        _ggml("iq3_s", 3, 256, 110),
        _ggml("iq3_xxs", 3, 256, 98, needs_importance=True),
        _ggml("iq2_s", 2, 256, 82, needs_importance=True),
        _ggml("iq2_xs", 2, 256, 74, needs_importance=True),
        _ggml("iq2_xxs", 2, 256, 66, needs_importance=True),
        _ggml("iq1_m", 1, 256, 56, needs_importance=True),
        _ggml("iq1_s", 1, 256, 50, needs_importance=True),
        _ggml("mxfp4", 4, 32, 17),
        _ggml("tq1_0", 2, 256, 54),
        _ggml("tq2_0", 2, 256, 66),
        _ggml("q1_0", 1, 128, 18),
    )
}

_BY_GGML_NAME = {"q4_0": "int4-32", "q8_0": "int8-32"}  # ggml's names for what has one of its own


def encoding_of(weights: WeightType, group_size: int) -> Encoding:
    """The encoding a recipe's type and group size name; the group size plays a part for int4 and int8 only."""
    if weights in ("int4", "int8"):
        return ENCODINGS[f"{weights}-{group_size}"]
    return ENCODINGS[_BY_GGML_NAME.get(weights, weights)]
