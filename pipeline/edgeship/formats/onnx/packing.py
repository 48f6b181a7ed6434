"""How `MatMulNBits` and `GatherBlockQuantized` store the shared grid.

Layout: onnxruntime's ContribOperators.md, MatMulNBits. Codes are `[rows, groups, group * bits / 8]` bytes; at
4 bits a byte holds two neighbours, the first in its low half (GGUF's Q4_0 pairs element i with i + 16 instead).
Without a zero-point input the zero is 2**(bits - 1), the grid's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeship.tensors import QuantizedRows


def pack(rows: QuantizedRows) -> NDArray[np.uint8]:
    """The codes of quantized rows as bytes, `[rows * groups, group * bits / 8]`."""
    codes = rows.codes
    if rows.bits == 4:
        codes = _join(codes, np.uint8, 16)
    # Bytes are joined while they lie in long lines: four times fewer numbers to move into their groups.
    if len(codes) % 4 == 0:
        codes = _join(_join(codes, np.uint16, 1 << 8), np.uint32, 1 << 16)
    return np.ascontiguousarray(codes.T).view(np.uint8)


def _join(lines: NDArray[Any], dtype: type[Any], factor: int) -> NDArray[Any]:
    """Every second line times `factor` plus the line before it, `[lines / 2, groups]` of `dtype`."""
    # A product, since numpy does not vectorize shifts of bytes.
    joined: NDArray[Any] = np.multiply(lines[1::2], dtype(factor), dtype=dtype)
    joined += lines[0::2]
    return joined


def unpack(packed: NDArray[np.uint8], scales: NDArray[np.float32], bits: int) -> QuantizedRows:
    """The inverse of `pack`, for packed bytes `[rows, groups, blob]` and scales `[rows, groups]`."""
    rows = packed.shape[0]
    flat = np.ascontiguousarray(packed.reshape(-1, packed.shape[-1]).T)
    if bits == 4:
        codes = np.empty((2 * flat.shape[0], flat.shape[1]), np.uint8)
        np.bitwise_and(flat, 15, out=codes[0::2])
        np.right_shift(flat, 4, out=codes[1::2])
    else:
        codes = flat
    return QuantizedRows(bits, rows, codes, scales.reshape(-1))
