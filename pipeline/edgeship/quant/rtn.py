"""Round to nearest on the shared grid, choosing scales and codes exactly as ggml's reference quantizers do.

Source: quantize_row_q4_0_ref and quantize_row_q8_0_ref in ggml-quants.c. The 4-bit scale carries the sign of
the group's largest element, so that element sits at code 0, the one code without a mirror image.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from edgeship.tensors import QuantizedRows, Raw, widen

Floats = NDArray[np.float32]


def quantize(raw: Raw, bits: int, group: int) -> QuantizedRows:
    """Stored rows `[rows, columns]` on the grid of `bits` (4 or 8) and `group`, which must divide the columns."""
    rows, columns = raw.shape
    # One transposing copy in the (narrow) storage dtype; every step after it runs along long contiguous lines.
    by_position = np.array(raw.reshape(rows * columns // group, group).T, order="C")
    values = widen(cast(Raw, by_position))
    with np.errstate(invalid="ignore"):  # a NaN or infinity ends in its group's scale, where the caller looks for it
        codes, scales = (_int4 if bits == 4 else _int8)(values)
    return QuantizedRows(bits, rows, codes, scales)


def _int4(x: Floats) -> tuple[NDArray[np.uint8], Floats]:
    extreme = _signed_extreme(x)
    exact = extreme / np.float32(-8)
    # The codes come from the scale before it is rounded to float16, as in ggml.
    np.multiply(x, _reciprocal(exact), out=x)
    np.add(x, np.float32(8.5), out=x)
    np.minimum(x, np.float32(15), out=x)
    return x.astype(np.uint8), _as_float16(exact)


def _int8(x: Floats) -> tuple[NDArray[np.uint8], Floats]:
    largest = np.maximum(x.max(axis=0), -x.min(axis=0)) + np.float32(0)  # no -0.0, which C's fabsf never gives
    exact = largest / np.float32(127)
    np.multiply(x, _reciprocal(exact), out=x)
    codes = _round_half_away(x).astype(np.int8).view(np.uint8)
    np.bitwise_xor(codes, 128, out=codes)  # two's complement to offset 128
    return codes, _as_float16(exact)


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
