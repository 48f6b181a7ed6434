"""GPTQ against a direct float64 implementation of the paper's algorithm, and what its parts promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import tolerances
from edgeship.quant import gptq, rtn, search

Matrix = NDArray[np.float64]
GROUP = 32


def layer(rows: int = 48, columns: int = 160, tokens: int = 400, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Weights `[rows, columns]`, and inputs `[tokens, columns]` that correlate and differ in size, as real ones do."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((columns, columns)) / np.sqrt(columns) + 0.5 * np.eye(columns)
    inputs = rng.standard_normal((tokens, columns)) @ mixing * rng.lognormal(0, 1, columns)
    return rng.standard_normal((rows, columns)) * 0.02, inputs


def hessian(inputs: Matrix) -> Matrix:
    return inputs.T @ inputs / len(inputs)


def direct(weights: Matrix, h: Matrix, order: NDArray[np.int64], bits: int = 4) -> Matrix:
    """The paper's algorithm 1 (arXiv:2210.17323) column by column in float64: the inverse Hessian's upper Cholesky
    factor passes each error on. Scales are chosen at each group's first column, as there.
    """
    h, w = h[np.ix_(order, order)].copy(), weights[:, order].copy()
    h += np.eye(len(h)) * gptq.DAMPING * np.diag(h).mean()
    inverse = np.linalg.cholesky(np.linalg.inv(h)).T
    out = np.empty_like(w)
    scale = np.empty(0, np.float32)
    for k in range(len(h)):
        if k % GROUP == 0:
            pivots = 1 / np.diag(inverse)[k : k + GROUP] ** 2
            scale = search.choose_scales(w[:, k : k + GROUP].T.astype(np.float32), pivots[:, None].astype("f4"), bits)
        steps = np.where(scale != 0, np.rint(w[:, k] / np.where(scale != 0, scale, 1)), 0)
        out[:, k] = np.clip(steps, -(1 << bits - 1), (1 << bits - 1) - 1) * scale
        error = (w[:, k] - out[:, k]) / inverse[k, k]
        w[:, k + 1 :] -= error[:, None] * inverse[k, k + 1 :]
    restored = np.empty_like(out)
    restored[:, order] = out
    return restored


def loss(weights: Matrix, quantized: NDArray[np.float32], inputs: Matrix) -> float:
    return float(np.square((weights - quantized) @ inputs.T).sum() / np.square(weights @ inputs.T).sum())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [32, 160, 288])
def test_the_layer_error_equals_that_of_a_direct_float64_implementation(columns: int, bits: int, ordered: bool) -> None:
    w, x = layer(columns=columns)
    feedback = gptq.prepare(hessian(x).astype(np.float32), GROUP, ordered=ordered)
    ours = gptq.quantize(w.astype(np.float32), feedback, bits).dequantize()
    theirs = direct(w, hessian(x), feedback.order, bits)
    assert loss(w, ours, x) == pytest.approx(loss(w, theirs, x), rel=tolerances.GPTQ_LAYER_ERROR)
    assert np.isclose(ours, theirs, rtol=1e-3, atol=1e-9).mean() > tolerances.GPTQ_SAME_VALUES[bits]


def test_it_loses_half_of_what_rounding_loses() -> None:
    w, x = layer(rows=128, tokens=2000)
    rows = w.astype(np.float32)
    feedback = gptq.prepare(hessian(x).astype(np.float32), GROUP)
    searched = search.quantize(rows, np.square(x).mean(axis=0), 4, GROUP)
    rounded = loss(w, rtn.quantize(rows.copy(), 4, GROUP).dequantize(), x)
    assert loss(w, gptq.quantize(rows, feedback, 4).dequantize(), x) < 0.5 * rounded
    assert loss(w, searched.dequantize(), x) < rounded


def test_columns_that_do_not_correlate_are_rounded_as_the_search_does() -> None:
    w, _ = layer()
    moments = np.random.default_rng(1).lognormal(0, 1, w.shape[1])
    feedback = gptq.prepare(np.diag(moments).astype(np.float32), GROUP, damping=0)
    ours = gptq.quantize(w.astype(np.float32), feedback, 4)
    x = w.astype(np.float32).reshape(-1, GROUP).T
    scales = search.choose_scales(x, np.tile(moments.astype(np.float32).reshape(-1, GROUP).T, (1, len(w))), 4)
    assert (ours.scales == scales).mean() > tolerances.GPTQ_SAME_VALUES[4]
    assert (ours.codes == search.round_to(x, scales, 4) + 8).mean() > tolerances.GPTQ_SAME_VALUES[4]


def test_columns_that_matter_go_first_and_groups_stay_together() -> None:
    diagonal = np.random.default_rng(2).lognormal(0, 1, 128)
    order = gptq.prepare(np.diag(diagonal).astype(np.float32), GROUP).order
    groups = order.reshape(-1, GROUP)
    assert sorted(order) == list(range(128))
    assert (groups // GROUP == groups[:, :1] // GROUP).all()
    firsts = diagonal[groups]
    assert (np.diff(firsts, axis=1) <= 0).all()
    assert (np.diff(firsts[:, 0]) <= 0).all()


@pytest.mark.parametrize("n", [1, 5, 256, 257, 600])
def test_the_factor_gives_the_matrix_back(n: int) -> None:
    rng = np.random.default_rng(n)
    a = rng.standard_normal((n, 2 * n + 4))
    whole = a @ a.T / n
    factored = np.triu(whole).astype(np.float32) + np.tril(np.full((n, n), np.nan, np.float32), -1)
    gptq.factor(factored)
    upper = np.triu(factored).astype(np.float64)
    assert np.abs(upper @ upper.T - whole).max() <= tolerances.GPTQ_FACTOR * np.abs(whole).max()


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_hessians_of_low_rank_are_taken(tokens: int) -> None:
    w, x = layer(columns=288, tokens=8)
    h = (x[:tokens].T @ x[:tokens]).astype(np.float32)
    out = gptq.quantize(w.astype(np.float32), gptq.prepare(h, GROUP), 4).dequantize()
    assert np.isfinite(out).all()
    if tokens:
        assert loss(w, out, x[:tokens]) < loss(w, rtn.quantize(w.astype(np.float32), 4, GROUP).dequantize(), x[:tokens])


def test_a_weight_that_is_not_finite_shows_in_a_scale_of_its_row() -> None:
    w, x = layer()
    rows = w.astype(np.float32)
    rows[3, 40] = np.nan
    scales = gptq.quantize(rows, gptq.prepare(hessian(x).astype(np.float32), GROUP), 4).scales.reshape(48, -1)
    assert not np.isfinite(scales[3]).all()
    assert np.isfinite(np.delete(scales, 3, axis=0)).all()


@pytest.mark.parametrize("columns", [96, 544])
def test_the_correction_equals_a_solution_in_float64(columns: int) -> None:
    w, x = layer(columns=columns, tokens=3000)
    h = hessian(x)
    lacking = np.random.default_rng(3).standard_normal(w.shape) * np.abs(h).mean() * 0.01
    feedback = gptq.prepare(h.astype(np.float32), GROUP)
    got = w + gptq.correction(lacking.astype("f4"), feedback)[np.argsort(feedback.order)].T
    damped = h + np.eye(columns) * gptq.DAMPING * np.diag(h).mean()
    wanted = w + np.linalg.solve(damped, lacking.T).T
    assert np.abs(got - wanted).max() <= tolerances.GPTQ_FACTOR * 10 * np.abs(wanted).max()


def test_corrected_weights_come_nearer_to_the_exact_outputs() -> None:
    w, x = layer(rows=64, tokens=4000)
    moved = x + 0.1 * np.random.default_rng(4).standard_normal(x.shape) * np.abs(x) + 0.05 * np.roll(x, 1, axis=1)
    feedback = gptq.prepare(hessian(moved).astype(np.float32), GROUP)
    lacking = w @ ((x - moved).T @ moved) / len(x)
    plain = gptq.quantize(w.astype("f4"), feedback, 4).dequantize()
    better = gptq.quantize(w.astype("f4"), feedback, 4, gptq.correction(lacking.astype("f4"), feedback)).dequantize()
    off = [np.square(w @ x.T - q @ moved.T).sum() for q in (plain, better)]
    assert off[1] < 0.95 * off[0]
