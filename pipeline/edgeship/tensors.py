"""Tensors as the pipeline passes them: lazy handles on float rows, and quantized rows on the shared grid."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

FloatDtype = Literal["BF16", "F16", "F32"]

Raw = NDArray[np.uint16] | NDArray[np.float16] | NDArray[np.float32]
"""Rows as stored: BF16 as its bits in uint16 (numpy has no bfloat16), F16 and F32 as themselves."""

ITEM_BYTES: dict[FloatDtype, int] = {"BF16": 2, "F16": 2, "F32": 4}


class RowReader(Protocol):
    """Reads rows `[a, b)` of one stored tensor, in its storage dtype; safe to call from several threads."""

    def __call__(self, a: int, b: int) -> Raw: ...


@dataclass(frozen=True)
class LazyTensor:
    """A float tensor of a checkpoint that is read row by row; holding one costs no memory."""

    name: str
    shape: tuple[int, ...]
    dtype: FloatDtype
    source: str  # the file it lies in, for messages
    raw: RowReader  # rows [a, b) in storage dtype, shape [b - a, *shape[1:]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    def rows(self, a: int, b: int) -> NDArray[np.float32]:
        """Rows `[a, b)` as float32 `[b - a, *shape[1:]]`; exact, since every stored dtype widens without loss."""
        return widen(self.raw(a, b))


def widen(raw: Raw) -> NDArray[np.float32]:
    """Stored values as float32, exactly; uint16 is taken as bfloat16 bits (the upper half of a float32)."""
    if raw.dtype == np.uint16:
        bits = raw.astype(np.uint32)
        np.left_shift(bits, 16, out=bits)
        return bits.view(np.float32)
    return raw.astype(np.float32, copy=False)


@dataclass(frozen=True)
class QuantizedRows:
    """Consecutive rows of a weight on the shared grid: value = (code - zero) * scale, zero = 2**(bits - 1).

    `codes` is position-major, `[group, rows * groups]`: element i of every group of the rows, in row order.
    Both formats pair elements along the first axis when they pack, and numpy then runs over long
    contiguous lines. `scales` is `[rows * groups]`, float32 holding values that float16 represents exactly.
    """

    bits: int
    rows: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]

    def dequantize(self) -> NDArray[np.float32]:
        """The rows' values as float32 `[rows, columns]`."""
        centred = self.codes.astype(np.float32)
        centred -= np.float32(1 << (self.bits - 1))
        centred *= self.scales
        return np.ascontiguousarray(centred.T).reshape(self.rows, -1)


@dataclass(frozen=True)
class EncodedRows:
    """Consecutive rows of a weight in one of ggml's own types, as its quantizer wrote them."""

    type: str  # ggml's name: "Q4_K"
    data: NDArray[np.uint8]  # [rows, row_bytes]
