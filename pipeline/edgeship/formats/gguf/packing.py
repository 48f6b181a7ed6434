"""How ggml stores what the pipeline hands over: Q4_0 and Q8_0 blocks of the shared grid, F32, F16 and BF16.

Layout: block_q4_0 and block_q8_0 in ggml-common.h. A block of 32 weights is its scale as float16 and then its codes:
at 4 bits byte i holds element i in its low half and element i + 16 in its high half (ONNX pairs neighbours instead);
at 8 bits the codes are two's complement, where the grid's are offset by 128.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeship.tensors import QuantizedRows

BLOCK = 32
SCALE_BYTES = 2


def pack(rows: QuantizedRows) -> NDArray[np.uint8]:
    """Quantized rows as Q4_0 or Q8_0 blocks: uint8 `[rows, groups * 18]` at 4 bits, `[rows, groups * 34]` at 8."""
    # Bytes are joined to uint16 while they lie in long lines: half as many elements to scatter into blocks.
    codes = _halves(rows.codes) if rows.bits == 4 else rows.codes
    pairs = codes[1::2].astype(np.uint16)
    np.left_shift(pairs, 8, out=pairs)
    np.bitwise_or(pairs, codes[0::2], out=pairs)
    if rows.bits == 8:
        np.bitwise_xor(pairs, 0x8080, out=pairs)
    blocks = np.empty((rows.scales.size, 1 + len(pairs)), "<u2")
    blocks[:, 0] = rows.scales.astype(np.float16).view(np.uint16)
    for i, pair in enumerate(pairs, 1):
        blocks[:, i] = pair
    return blocks.view(np.uint8).reshape(rows.rows, -1)


def _halves(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Element i and i + 16 of every group in one byte, uint8 `[16, groups]`."""
    # Codes are below 16, so nothing is carried when eight of them are shifted as one number.
    wide = codes.view(np.uint64) if codes.shape[1] % 8 == 0 else codes
    packed = np.left_shift(wide[BLOCK // 2 :], 4)
    np.bitwise_or(packed, wide[: BLOCK // 2], out=packed)
    return packed.view(np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int) -> QuantizedRows:
    """The inverse of `pack`, for uint8 `[rows, row_bytes]`."""
    blocks = packed.reshape(-1, SCALE_BYTES + BLOCK * bits // 8)
    scales = np.ascontiguousarray(blocks[:, :SCALE_BYTES]).view("<f2").astype(np.float32).reshape(-1)
    stored = blocks[:, SCALE_BYTES:].T
    codes = np.concatenate([stored & 15, stored >> 4]) if bits == 4 else stored ^ np.uint8(128)
    return QuantizedRows(bits, packed.shape[0], np.ascontiguousarray(codes), scales)


def narrow(values: NDArray[np.float32], kind: str) -> NDArray[np.generic]:
    """Float rows as F32, F16 or BF16 (its bits in uint16), rounded to nearest even as ggml does."""
    if kind == "BF16":
        return _bfloat16(values)
    return values.astype({"F32": "<f4", "F16": "<f2"}[kind], copy=False)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """ggml_compute_fp32_to_bf16 in ggml-impl.h; a NaN stays one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = (bits[nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(64)
    return rounded
