"""Round to nearest on the shared grid, choosing scales and codes exactly as ggml's reference quantizers do.

Source: quantize_row_q4_0_ref and quantize_row_q8_0_ref in ggml-quants.c. The 4-bit scale carries the sign of
the group's largest element, so that element sits at code 0, the one code without a mirror image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeship.scratch import Scratch
from edgeship.tensors import QuantizedRows, Raw

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]


def quantize(raw: Raw, bits: int, group: int, scratch: Scratch | None = None) -> QuantizedRows:
    """Stored rows `[rows, columns]` on the grid of `bits` (4 or 8) and `group`, which must divide the columns.

    With `scratch`, codes and scales lie in its memory: they are valid until the thread's next call.
    """
    scratch = scratch or Scratch()
    rows, columns = raw.shape
    values = _by_position(raw.reshape(rows * columns // group, group), scratch)
    codes = scratch.take("codes", values.shape, np.uint8)
    with np.errstate(invalid="ignore"):  # a NaN or infinity ends in its group's scale, where the caller looks for it
        scales = _int4(values, codes) if bits == 4 else _int8(values, codes)
    return QuantizedRows(bits, rows, codes, scales)


def _by_position(groups: Raw, scratch: Scratch) -> Floats:
    """Stored groups `[groups, group]` transposed and widened to float32: every later step runs along long lines."""
    count, size = groups.shape
    out = scratch.take("values", (size, count), np.float32)
    if groups.dtype == np.uint16 and size % 2 == 0 and groups.flags.c_contiguous:
        # A bfloat16 is the upper half of a float32, so two neighbours are moved as one number: half as many to move.
        pairs = scratch.take("pairs", (size // 2, count), np.uint32)
        np.copyto(pairs, groups.view("<u4").T)
        bits = out.view(np.uint32)
        np.left_shift(pairs, 16, out=bits[0::2])
        np.bitwise_and(pairs, np.uint32(0xFFFF0000), out=bits[1::2])
    elif groups.dtype == np.uint16:
        np.left_shift(groups.T, 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        np.copyto(out, groups.T)
    return out


def _int4(x: Floats, codes: Codes) -> Floats:
    extreme = _signed_extreme(x)
    exact = extreme / np.float32(-8)
    # The codes come from the scale before it is rounded to float16, as in ggml.
    np.multiply(x, _reciprocal(exact), out=x)
    np.add(x, np.float32(8.5), out=x)
    np.copyto(codes, x, casting="unsafe")
    # The bound as a line of its own: with a single number numpy does not vectorize the minimum.
    np.minimum(codes, np.full(codes.shape[1], 15, np.uint8), out=codes)
    return _as_float16(exact)


def _int8(x: Floats, codes: Codes) -> Floats:
    largest = np.maximum(x.max(axis=0), -x.min(axis=0)) + np.float32(0)  # no -0.0, which C's fabsf never gives
    exact = largest / np.float32(127)
    np.multiply(x, _reciprocal(exact), out=x)
    np.copyto(codes.view(np.int8), _round_half_away(x), casting="unsafe")
    np.bitwise_xor(codes, 128, out=codes)  # two's complement to offset 128
    return _as_float16(exact)


def _signed_extreme(x: Floats) -> Floats:
    """Per column, the element of largest magnitude with its sign; the first one where several tie."""
    high, low = x.max(axis=0), x.min(axis=0)
    extreme: Floats = np.where(high >= -low, high, low) + np.float32(0)  # never -0.0: ggml begins at 0.0
    ties = np.flatnonzero((high == -low) & (high != 0))
    if ties.size:
        columns = x[:, ties]
        first = np.abs(columns).argmax(axis=0)
        extreme[ties] = np.take_along_axis(columns, first[None], axis=0)[0]
    return extreme


def _reciprocal(scale: Floats) -> Floats:
    """1 / scale, and 0 for the scales of all-zero groups and those so small that the reciprocal is infinite."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _as_float16(scale: Floats) -> Floats:
    """The nearest value that float16 holds."""
    with np.errstate(over="ignore"):
        return scale.astype(np.float16).astype(np.float32)


def _round_half_away(x: Floats) -> Floats:
    """C's roundf, in place: to nearest, halves away from zero (numpy's rint sends them to even)."""
    whole = np.trunc(x)
    np.subtract(x, whole, out=x)
    np.add(x, x, out=x)  # exact; at least 1 in magnitude where roundf moves away from zero
    np.trunc(x, out=x)
    return np.add(whole, x, out=x)
