"""Scales on the shared grid, searched for the least weighted error instead of taken from the largest element.

For given codes the best scale is a least-squares fit, and its error falls as (sum w x q)^2 / (sum w q^2) grows; several
roundings are tried and the best kept. ggml searches alike where it has an importance matrix (make_qx_quants in
ggml-quants.c), among fewer: here scales of either sign, and such that cut off the largest element, are tried too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeship.tensors import QuantizedRows

Floats = NDArray[np.float32]

# Where the element of largest magnitude comes to lie, in steps from zero; the grid ends at -8 and 7, or -128 and 127.
PLACES: dict[int, tuple[float, ...]] = {
    4: tuple(-8 * f for f in np.arange(0.86, 1.36, 0.04)) + tuple(7 * f for f in np.arange(0.92, 1.36, 0.06)),
    8: (-128.0, -127.5, 127.0, 127.5),
}


def choose_scales(x: Floats, weights: Floats, bits: int) -> Floats:
    """The scale of each group of x `[group, n]`, float32 `[n]` that float16 represents.

    `weights`, `[group, n]` or what broadcasts to it, weigh the squared errors. A group of zeros has scale 0; one that
    is not finite, or too large for float16, a scale that is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
        best, gain = np.zeros_like(extreme), np.zeros_like(extreme)
        weighted = x * weights
        for place in PLACES[bits]:
            codes = round_to(x, extreme / np.float32(place), bits)
            fit, size = (
                np.einsum("gn,gn->n", weighted, codes),
                np.einsum("gn,gn,gn->n", codes, codes, _full(weights, x)),
            )
            found = fit * fit / size
            better = found > gain
            gain[better] = found[better]
            best[better] = (fit / size)[better]
        # No rounding can be better than none where the weights are all zero: any scale will do, that of the extreme.
        best = np.where(gain > 0, best, extreme / np.float32(PLACES[bits][0]))
        rounded: Floats = best.astype(np.float16).astype(np.float32)
        return rounded


def round_to(x: Floats, scales: Floats, bits: int) -> Floats:
    """x `[..., n]` in steps of `scales` `[n]`, to nearest within the grid; 0 where a scale is 0."""
    zero = 1 << (bits - 1)
    inverse = np.where(scales != 0, np.float32(1) / scales, np.float32(0))
    steps = np.rint(x * inverse)
    return np.clip(steps, -zero, zero - 1, out=steps)


def quantize(rows: Floats, moments: NDArray[np.float64], bits: int, group: int) -> QuantizedRows:
    """Rows float32 `[rows, columns]` on the grid, errors weighed by the second moments `[columns]` of their inputs."""
    count = len(rows)
    x = np.ascontiguousarray(rows.reshape(-1, group).T)  # [group, rows * groups]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        scales = choose_scales(x, weigh(rows, moments, group), bits)
        codes = round_to(x, scales, bits) + np.float32(1 << (bits - 1))
        return QuantizedRows(bits, count, codes.astype(np.uint8), scales)


def weigh(rows: Floats, moments: NDArray[np.float64], group: int) -> Floats:
    """The weight of each element's squared error, `[group, rows * groups]`.

    As in ggml (quantize_row_q4_0_impl), large elements weigh more than moments alone would have it: that keeps the
    scale from shrinking all of them alike. Measured: a tenth less divergence of the whole model.
    """
    size = np.sqrt(np.square(rows) + np.mean(np.square(rows), axis=1, keepdims=True))
    return np.ascontiguousarray((relative(moments) * size).reshape(-1, group).T)


def relative(moments: NDArray[np.float64]) -> Floats:
    """Second moments as weights around 1, none of them zero: an input that calibration never saw may come yet."""
    mean = moments.mean()
    return np.asarray(np.maximum(moments / mean, 1e-3) if mean > 0 else np.ones_like(moments), np.float32)


def _full(weights: Floats, x: Floats) -> Floats:
    return np.broadcast_to(weights, x.shape)
