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

AT_ONCE = 1 << 18  # weights times places rounded in one call: of small ones numpy's own overhead is most


def choose_scales(x: Floats, weights: Floats, bits: int) -> Floats:
    """The scale of each group of x `[group, n]`, float32 `[n]` that float16 represents.

    `weights`, `[group, n]` or what broadcasts to it, weigh the squared errors. A group of zeros has scale 0; one that
    is not finite, or too large for float16, a scale that is not finite.
    """
    places = np.asarray(PLACES[bits], np.float32)
    step = max(1, AT_ONCE // x.size)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
        best, gain = np.zeros_like(extreme), np.zeros_like(extreme)
        whole = np.ascontiguousarray(np.broadcast_to(weights, x.shape))  # a view takes einsum three times as long
        weighted = x * whole
        for start in range(0, len(places), step):
            tried = extreme / places[start : start + step, None]  # [places, n]
            codes = round_to(x, tried[:, None], bits)
            fit, size = np.einsum("gn,pgn->pn", weighted, codes), np.einsum("pgn,pgn,gn->pn", codes, codes, whole)
            for scale, found in zip(fit / size, fit * fit / size, strict=True):
                better = found > gain
                np.copyto(gain, found, where=better)
                np.copyto(best, scale, where=better)
        # No rounding can be better than none where the weights are all zero: any scale will do, that of the extreme.
        best = np.where(gain > 0, best, extreme / places[0])
        rounded: Floats = best.astype(np.float16).astype(np.float32)
        return rounded


def round_to(x: Floats, scales: Floats, bits: int) -> Floats:
    """x in steps of `scales`, which broadcast to it, to nearest within the grid; 0 where a scale is 0."""
    zero = np.float32(1 << (bits - 1))
    steps = x * inverses(scales)
    np.rint(steps, out=steps)
    return np.clip(steps, -zero, zero - 1, out=steps)


def inverses(scales: Floats) -> Floats:
    """One over each scale; 0 where it is 0."""
    return np.where(scales != 0, np.float32(1) / scales, np.float32(0))


def quantize(rows: Floats, moments: NDArray[np.float64], bits: int, group: int) -> QuantizedRows:
    """Rows float32 `[rows, columns]` on the grid, errors weighed by the second moments `[columns]` of their inputs."""
    groups = rows.shape[1] // group
    codes, scales = np.empty((group, len(rows) * groups), np.uint8), np.empty(len(rows) * groups, np.float32)
    step = max(1, AT_ONCE // rows.shape[1])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for a in range(0, len(rows), step):
            some, at = rows[a : a + step], slice(a * groups, (a + step) * groups)
            x = np.ascontiguousarray(some.reshape(-1, group).T)  # [group, rows * groups]
            scales[at] = choose_scales(x, weigh(some, moments, group), bits)
            codes[:, at] = round_to(x, scales[at], bits) + np.float32(1 << (bits - 1))
    return QuantizedRows(bits, len(rows), codes, scales)


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
