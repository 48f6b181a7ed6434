"""GPTQ: each column's rounding error is made up for by the columns that follow, as the inputs' Hessian says.

Method: arXiv:2210.17323. Columns are rounded one after the other so that ||(W - Q) X|| stays small. In its equal form
without an inverse (LDLQ, arXiv:2307.13304, theorem 6): with H = X X^T = U D U^T, U upper triangular with ones on the
diagonal, column k is rounded from W_k + sum over j < k of (W_j - Q_j) U_jk; the error is then the sum of D_k times
the square of what rounding column k itself took.

Groups share a scale, but may be worked through in any order, and so may the columns of a group: the codes are stored
where they belong. The columns that matter most go first, while most others are left to make up for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeship.blas import add_product, product
from edgeship.quant.search import choose_scales, inverses
from edgeship.tensors import QuantizedRows

Floats = NDArray[np.float32]

DAMPING = 0.01  # of the mean diagonal, added to it: as in the paper's code
PANEL = 256  # columns of the Hessian factored at a time


@dataclass(frozen=True)
class Feedback:
    """A Hessian, factored: everything the rounding of a matrix's rows needs to know of its inputs."""

    order: NDArray[np.int64]  # [columns]: the column that goes k-th; groups stay together
    upper: Floats  # [columns, columns], in that order: U
    errors: Floats  # [columns]: D
    group: int

    @cached_property
    def corners(self) -> list[Floats]:
        """The inverse of each group's square on the diagonal of U; every chunk of rows asks for them."""
        return self._inverses(self.group)

    @cached_property
    def panels(self) -> list[Floats]:
        """The inverse of each panel's."""
        return self._inverses(PANEL)

    def _inverses(self, size: int) -> list[Floats]:
        return [_inverse(self.upper[a : a + size, a : a + size]) for a in range(0, len(self.upper), size)]


def prepare(hessian: Floats, group: int, *, damping: float = DAMPING, ordered: bool = True) -> Feedback:
    """Factor the Hessian `[columns, columns]`, of which only the upper triangle is read; it becomes the answer's.

    `group` divides the columns. Without `ordered` the columns go as they come.
    """
    diagonal = hessian.diagonal().astype(np.float64)
    mean = float(diagonal.mean())
    order = _order(diagonal, group) if ordered else np.arange(len(diagonal))
    upper = hessian
    if ordered:
        _permute(upper, order)
    upper[np.diag_indices_from(upper)] += np.float32(damping * mean if mean > 0 else 1)
    factor(upper)
    pivots = upper.diagonal().copy()
    upper /= pivots
    return Feedback(order, upper, pivots**2, group)


def _order(diagonal: NDArray[np.float64], group: int) -> NDArray[np.int64]:
    """Groups by their largest diagonal element, falling, and so the columns of each."""
    by_group = diagonal.reshape(-1, group)
    groups = np.argsort(-by_group.max(axis=1), kind="stable")
    within = np.argsort(-by_group, axis=1, kind="stable")
    return (groups[:, None] * group + within[groups]).reshape(-1)


def _permute(hessian: Floats, order: NDArray[np.int64]) -> None:
    """Put rows and columns of the Hessian, whose upper triangle is read, in another order, in place."""
    panels = [slice(a, a + PANEL) for a in range(0, len(order), PANEL)]
    for p in panels:  # mirrored first: whole rows are gathered several times as fast as elements
        corner = hessian[p, p]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
        hessian[p.stop :, p] = hessian[p, p.stop :].T
    for p in panels:
        hessian[p] = np.take(hessian[p], order, axis=1, mode="clip")
    for p in panels:
        hessian[:, p] = np.take(hessian[:, p], order, axis=0, mode="clip")


def factor(a: Floats) -> None:
    """Replace the upper triangle of a symmetric `a` `[n, n]` by V, upper triangular, with a = V V^T.

    Cholesky from the last column to the first, a panel at a time, in place; below the diagonal lies no number of use.
    """
    for end in range(len(a), 0, -PANEL):
        start = max(0, end - PANEL)
        corner = _factor_corner(a[start:end, start:end].astype(np.float64))
        a[start:end, start:end] = corner
        if start == 0:
            return
        panel = a[:start, start:end]
        panel[:] = product(np.linalg.inv(corner).astype(np.float32), panel.T).T
        for at in range(0, start, PANEL):
            rows = slice(at, min(at + PANEL, start))
            add_product(a[rows, at:start], -panel[rows], panel[at:].T)


def _factor_corner(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """V for a small matrix, whose upper triangle is read."""
    flipped = a[::-1, ::-1]  # Cholesky's lower factor of it, flipped back, is the upper one
    try:
        lower = np.linalg.cholesky(flipped)
    except np.linalg.LinAlgError:  # float32 sums of a Hessian of low rank: lift what fell below zero
        whole = np.tril(flipped) + np.tril(flipped, -1).T
        values, vectors = np.linalg.eigh(whole)
        values = np.maximum(values, 1e-6 * max(float(values[-1]), 1e-30))
        lower = np.linalg.cholesky((vectors * values) @ vectors.T)
    return np.ascontiguousarray(lower[::-1, ::-1])


def correction(lacking: Floats, feedback: Feedback) -> Floats:
    """What makes rows up for inputs that earlier layers' rounding has moved: L H^-1, as `[columns, rows]`, ordered.

    `lacking`, `[rows, columns]`, is L = W (X_exact - X) X^T. With it the rows, times the inputs as they are, come
    nearest to what the exact inputs would give (arXiv:2504.02692, in the symmetric form of its least-squares problem).
    """
    upper, n = feedback.upper, len(feedback.order)
    z = np.ascontiguousarray(lacking.T[feedback.order])  # [columns, n]; becomes H^-1 L^T, from U D U^T z = L^T
    spans = [(a, min(a + PANEL, n), inverse) for a, inverse in zip(range(0, n, PANEL), feedback.panels, strict=True)]
    for a, b, inverse in reversed(spans):
        z[a:b] = product(inverse, z[a:b])
        add_product(z[:a].T, -z[a:b].T, upper[:a, a:b].T)
    z /= feedback.errors[:, None]
    for a, b, inverse in spans:
        z[a:b] = product(inverse.T, z[a:b] - product(upper[:a, a:b].T, z[:a]))
    return z


def _inverse(corner: Floats) -> Floats:
    """Of an upper triangular matrix with ones on the diagonal, of which only what lies above that is read."""
    inverse: Floats = np.linalg.inv(np.triu(corner, 1).astype(np.float64) + np.eye(len(corner))).astype(np.float32)
    return inverse


def quantize(rows: Floats, feedback: Feedback, bits: int, missing: Floats | None = None) -> QuantizedRows:
    """Rows float32 `[rows, columns]` on the grid of `bits`; rows do not depend on each other.

    `missing` is their `correction`, whose memory is used. That taken beside it: three times that of the rows.
    """
    group, columns = feedback.group, rows.shape[1]
    w = np.ascontiguousarray(rows.T[feedback.order])  # [columns, rows], in the order they are worked through
    if missing is not None:
        w = np.add(w, missing, out=missing)
    errors = np.empty_like(w)  # W - Q
    codes = np.empty((columns, len(rows)), np.uint8)
    scales = np.empty((columns // group, len(rows)), np.float32)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for a, inverse in zip(range(0, columns, group), feedback.corners, strict=True):
            b = a + group
            moved, corner = product(feedback.upper[:a, a:b].T, errors[:a]), feedback.upper[a:b, a:b]
            # Where the columns would go if none of the group were rounded: each makes up for the others' moves too.
            free = inverse.T @ moved
            scale = choose_scales(w[a:b] + free, feedback.errors[a:b, None], bits)
            chosen = _round_group(w[a:b], w[a:b] + moved, errors[a:b], corner, scale, bits)
            codes[feedback.order[a:b]] = chosen
            scales[feedback.order[a] // group] = scale
    by_position = codes.reshape(columns // group, group, len(rows)).transpose(1, 2, 0)  # [group, rows, groups]
    return QuantizedRows(
        bits,
        len(rows),
        np.ascontiguousarray(by_position).reshape(group, -1),
        np.ascontiguousarray(scales.T).reshape(-1),
    )


def _round_group(
    w: Floats, target: Floats, errors: Floats, upper: Floats, scale: Floats, bits: int
) -> NDArray[np.uint8]:
    """Round a group's columns `[group, rows]` one by one, noting W - Q of each in `errors`; the codes."""
    zero, inverse = np.float32(1 << (bits - 1)), inverses(scale)
    steps, before = np.empty_like(w), np.ascontiguousarray(upper.T)
    for k, step in enumerate(steps):
        np.matmul(before[k, :k], errors[:k], out=step)
        step += target[k]
        step *= inverse
        np.rint(step, out=step)
        np.maximum(step, -zero, out=step)  # on so few numbers these two take less than np.clip
        np.minimum(step, zero - 1, out=step)
        np.multiply(step, scale, out=errors[k])
        np.subtract(w[k], errors[k], out=errors[k])
    steps += zero
    return steps.astype(np.uint8)
