"""The scale search: never worse than rounding to nearest, at least as good as ggml's, near the best there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgeship.quant import ggml, rtn, search
from edgeship.tensors import QuantizedRows


def loss(x: NDArray[np.float32], rows: QuantizedRows, moments: NDArray[np.float64]) -> float:
    """Weighed as ggml weighs it."""
    weights = search.relative(moments) * np.sqrt(np.square(x) + np.square(x).mean(axis=1, keepdims=True))
    return float((np.square(x - rows.dequantize()) * weights).sum())


@pytest.fixture(scope="module")
def moments() -> NDArray[np.float64]:
    return np.random.default_rng(1).lognormal(0, 1, 256)


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return (np.random.default_rng(0).standard_t(5, (64, 256)) * 0.02).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_it_loses_less_than_rounding_to_nearest(
    bits: int, group: int, x: NDArray[np.float32], moments: NDArray[np.float64]
) -> None:
    searched, rounded = search.quantize(x, moments, bits, group), rtn.quantize(x.copy(), bits, group)
    assert loss(x, searched, moments) < 0.95 * loss(x, rounded, moments)
    assert searched.scales.astype(np.float16).astype(np.float32).tobytes() == searched.scales.tobytes()


def test_it_loses_less_than_ggml_with_the_same_importance(x: NDArray[np.float32], moments: NDArray[np.float64]) -> None:
    pytest.importorskip("llama_cpp", reason="ggml's quantizers come with llama-cpp-python")
    theirs = ggml.quantize_to_grid(x, moments.astype(np.float32))
    assert loss(x, search.quantize(x, moments, 4, 32), moments) < loss(x, theirs, moments)


def test_it_comes_near_the_best_of_all_scales(moments: NDArray[np.float64]) -> None:
    x = (np.random.default_rng(5).standard_normal((40, 32)) * 0.02).astype(np.float32)
    weights = search.weigh(x, moments[:32], 32).T
    best = np.full(len(x), np.inf)
    for scale in np.linspace(-0.02, 0.02, 4001, dtype=np.float16).astype(np.float32):
        steps = np.clip(np.rint(x / scale), -8, 7) if scale else np.zeros_like(x)
        best = np.minimum(best, (np.square(x - steps * scale) * weights).sum(axis=1))
    ours = np.square(x - search.quantize(x, moments[:32], 4, 32).dequantize()) * weights
    assert ours.sum() < 1.03 * best.sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_the_same_however_many_are_tried_at_once(
    bits: int, x: NDArray[np.float32], moments: NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for most in (1, 1 << 13, 1 << 30):
        monkeypatch.setattr(search, "AT_ONCE", most)
        made = search.quantize(x, moments, bits, 32)
        found.append((made.codes.tobytes(), made.scales.tobytes()))
    assert found[0] == found[1] == found[2]


finite = st.floats(-60000, 60000, width=32)


@settings(max_examples=60)
@given(hnp.arrays(np.float32, (2, 64), elements=finite), st.sampled_from([4, 8]))
def test_any_weights_are_taken(x: NDArray[np.float32], bits: int) -> None:
    rows = search.quantize(x, np.ones(64), bits, 32)
    assert rows.codes.max(initial=0) < 1 << bits
    assert np.isfinite(rows.dequantize()).all()
    zero = ~x.reshape(-1, 32).any(axis=1)
    assert not rows.dequantize().reshape(-1, 32)[zero].any()


def test_what_is_not_finite_shows_in_its_scale() -> None:
    for bad in (np.nan, np.inf, -np.inf, 1e38):
        x = np.full((1, 64), 0.01, np.float32)
        x[0, 40] = bad
        assert list(np.isfinite(search.quantize(x, np.ones(64), 4, 32).scales)) == [True, False]


def test_inputs_that_calibration_never_saw_still_count() -> None:
    assert search.relative(np.zeros(4)).tolist() == [1, 1, 1, 1]
    assert (search.relative(np.array([0, 0, 4.0, 4.0])) > 0).all()
