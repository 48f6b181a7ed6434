"""Round-to-nearest against an outside oracle: the numpy port of ggml's quantizers in the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeship.quant.rtn import quantize
from edgeship.tensors import widen

TYPES = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}


def bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def oracle(x: np.ndarray, bits: int) -> np.ndarray:
    return gguf.dequantize(gguf.quantize(x, TYPES[bits]), TYPES[bits])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (64, 896)])
def test_bf16_weights_equal_ggml_bit_for_bit(bits: int, shape: tuple[int, int]) -> None:
    raw = bf16(np.random.default_rng(0).standard_normal(shape) * 0.02)
    np.testing.assert_array_equal(quantize(raw, bits, 32).dequantize(), oracle(widen(raw), bits))


@pytest.mark.parametrize("bits", [4, 8])
def test_ties_of_plus_and_minus_take_the_first_as_ggml_does(bits: int) -> None:
    rows = np.zeros((4, 32), np.float32)
    rows[0, [3, 9]] = [1, -1]
    rows[1, [3, 9]] = [-1, 1]
    rows[2, :] = np.tile([0.5, -0.5], 16)
    np.testing.assert_array_equal(quantize(rows.copy(), bits, 32).dequantize(), oracle(rows, bits))


# Codes are chosen with the scale before it is rounded to float16; subnormal scales are outside what weights hold.
finite = st.floats(-1000, 1000, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@given(hnp.arrays(np.float32, (3, 64), elements=finite))
def test_any_float32_weights_equal_ggml(bits: int, x: np.ndarray) -> None:
    np.testing.assert_array_equal(quantize(x.copy(), bits, 32).dequantize(), oracle(x, bits))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_error_is_within_half_a_step_but_for_the_clipped_code(bits: int, group: int) -> None:
    x = np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    rows = quantize(x.copy(), bits, group)
    step = np.repeat(np.abs(rows.scales).reshape(16, -1), group, axis=1)
    # Four bits reach from -8 to 7 steps: an element near the mirror image of the extreme loses up to a whole step.
    allowed = 1.0 if bits == 4 else 0.5
    rounding_of_scale = 2.0**-11 * np.abs(x) + 1e-6
    assert (np.abs(rows.dequantize() - x) <= allowed * step + rounding_of_scale).all()


def test_zero_rows_stay_zero() -> None:
    for bits in (4, 8):
        assert not quantize(np.zeros((2, 32), np.float32), bits, 32).dequantize().any()


def test_the_input_is_left_alone() -> None:
    x = np.ones((2, 32), np.float32)
    quantize(x, 4, 32)
    assert (x == 1).all()
