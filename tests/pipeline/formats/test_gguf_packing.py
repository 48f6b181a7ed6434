"""Blocks as ggml stores them, against gguf's own quantizers."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize
from gguf import quantize as ggml_quantize
from hypothesis import given
from hypothesis import strategies as st

from edgeship.formats.gguf.packing import narrow, pack, unpack
from edgeship.quant.rtn import quantize
from edgeship.tensors import QuantizedRows

TYPES = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}


def random_rows(bits: int, rows: int, groups: int, seed: int) -> QuantizedRows:
    """Any codes and any finite float16 scales, also those that rounding would never choose."""
    rng = np.random.default_rng(seed)
    scales = rng.integers(0, 0x7C00, rows * groups).astype(np.uint16) | (rng.integers(0, 2, rows * groups) << 15)
    return QuantizedRows(
        bits,
        rows,
        rng.integers(0, 1 << bits, (32, rows * groups)).astype(np.uint8),
        scales.astype(np.uint16).view(np.float16).astype(np.float32),
    )


@pytest.mark.parametrize("bits", TYPES)
@given(rows=st.integers(1, 9), groups=st.integers(1, 9), seed=st.integers(0, 1 << 20))
def test_packed_rows_hold_the_same_numbers(bits: int, rows: int, groups: int, seed: int) -> None:
    quantized = random_rows(bits, rows, groups, seed)
    packed = pack(quantized)
    assert packed.shape == (rows, groups * (18 if bits == 4 else 34))
    assert np.array_equal(dequantize(packed, TYPES[bits]), quantized.dequantize())
    back = unpack(packed, bits)
    assert np.array_equal(back.codes, quantized.codes)
    assert np.array_equal(back.scales, quantized.scales)


@pytest.mark.parametrize("bits", TYPES)
@pytest.mark.parametrize("columns", [32, 96, 256])
def test_bytes_are_those_of_ggml(bits: int, columns: int) -> None:
    values = np.random.default_rng(columns).standard_normal((21, columns)).astype(np.float32)
    values[3] = 0
    assert np.array_equal(pack(quantize(values, bits, 32)), ggml_quantize(values, TYPES[bits]))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_floats_are_rounded_as_ggml_does(kind: str) -> None:
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    edges = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F817FFF, 0x7F7FFFFF, 1, 0x80000000, 0xFF800000], np.uint32)
    values = np.concatenate([bits, edges]).view(np.float32)
    values = values[np.abs(values) < 65504] if kind == "F16" else values[~np.isnan(values)]
    assert np.array_equal(
        np.ascontiguousarray(narrow(values, kind)).view(np.uint8),
        np.ascontiguousarray(ggml_quantize(values, GGMLQuantizationType[kind])).view(np.uint8),
    )


def test_a_nan_stays_one_in_bfloat16() -> None:
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32)  # the first would round to infinity
    stored = narrow(bits.view(np.float32), "BF16")
    assert list(stored) == [0x7FC0, 0xFFFF, 0x7FC0]
