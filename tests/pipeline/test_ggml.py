"""ggml's quantizer through ctypes: bytes against the numpy port in `gguf`, errors against each type's own size."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from edgeship.encodings import ENCODINGS
from edgeship.errors import CheckpointError, DependencyError
from edgeship.quant import ggml, rtn
from edgeship.quant.ggml import quantize, quantize_to_grid
from tolerances import GGML_RELATIVE_ERROR

INSTALLED = importlib.util.find_spec("llama_cpp") is not None
needs_ggml = pytest.mark.skipif(not INSTALLED, reason="llama-cpp-python is not installed (make llamacpp)")

KINDS = [e.gguf for e in ENCODINGS.values() if e.gguf]
IN_NUMPY = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "TQ1_0", "TQ2_0"]
PIPELINE = Path(ggml.__file__).parents[2]


def weights(rows: int = 48, columns: int = 512, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 0.02).astype(np.float32)


def importance(columns: int = 512) -> NDArray[np.float32]:
    """As activations have it: a few columns matter much more than the rest."""
    return np.random.default_rng(1).lognormal(0, 2, columns).astype(np.float32)


def dequantized(data: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    return gguf.dequantize(data, GGMLQuantizationType[kind])


def relative_error(x: NDArray[np.float32], y: NDArray[np.float32], weights: NDArray[np.float32] | float = 1) -> float:
    return float(np.sqrt(((x - y) ** 2 * weights).sum() / (x**2 * weights).sum()))


def test_numbers_and_sizes_are_those_of_the_gguf_package() -> None:
    assert sorted(ggml.TYPES) == sorted(KINDS)
    for kind, number in ggml.TYPES.items():
        assert GGMLQuantizationType(number).name == kind
        assert ggml._SIZES[kind] == GGML_QUANT_SIZES[GGMLQuantizationType(number)]


@needs_ggml
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"F32", "F16", "BF16", "Q1_0"}))  # the gguf package has no Q1_0
def test_the_way_back_gives_the_bits_of_the_numpy_port(kind: str) -> None:
    data, out = quantize(weights(), kind, importance()), np.empty((48, 512), np.float32)
    dequantize = ggml.dequantizer(kind)
    assert dequantize is not None
    dequantize(data, out)
    np.testing.assert_array_equal(out, dequantized(data, kind))
    with pytest.raises(ValueError, match="do not make"):
        dequantize(data, out[:-1])


@needs_ggml
@pytest.mark.parametrize("kind", IN_NUMPY)
@pytest.mark.parametrize("scale", [0.02, 1.0, 1e-3, 300.0])
def test_bytes_equal_the_numpy_port(kind: str, scale: float) -> None:
    x = weights() * np.float32(scale / 0.02)
    x[0], x[1], x[2, ::2] = 0, 0.37, -x[2, 1::2]
    expected = gguf.quantize(x, GGMLQuantizationType[kind])
    np.testing.assert_array_equal(quantize(x, kind), expected.view(np.uint8).reshape(len(x), -1))


@needs_ggml
@pytest.mark.parametrize(("bits", "kind"), [(4, "Q4_0"), (8, "Q8_0")])
@pytest.mark.parametrize("magnitude", [0, -3, -6, -12, -25])
def test_our_grid_equals_ggml_bit_for_bit(bits: int, kind: str, magnitude: int) -> None:
    x = (weights() * 10.0**magnitude).astype(np.float32)
    x[0] = 0
    x[1, :64] = np.tile([0.5, -0.5], 32) * 10.0**magnitude
    np.testing.assert_array_equal(rtn.quantize(x.copy(), bits, 32).dequantize(), dequantized(quantize(x, kind), kind))


@needs_ggml
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "Q1_0"])  # which gguf cannot read
def test_values_come_back_within_the_error_of_the_type(kind: str) -> None:
    x = weights()
    guided = importance() if kind in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M") else None
    error = relative_error(x, dequantized(quantize(x, kind, guided), kind), 1 if guided is None else guided)
    assert error <= GGML_RELATIVE_ERROR[kind]
    assert error >= 0.5 * GGML_RELATIVE_ERROR[kind] or kind == "F32"


@needs_ggml
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S"])
def test_an_importance_matrix_lowers_the_weighed_error(kind: str) -> None:
    x, heavy = weights(), importance()
    plain, guided = (relative_error(x, dequantized(quantize(x, kind, i), kind), heavy) for i in (None, heavy))
    assert guided < plain


@needs_ggml
def test_the_grid_with_an_importance_matrix_is_that_of_q4_0() -> None:
    x, heavy = weights(rows=5), importance()
    rows = quantize_to_grid(x, heavy)
    assert (rows.bits, rows.rows, rows.codes.shape) == (4, 5, (32, 5 * 16))
    np.testing.assert_array_equal(rows.dequantize(), dequantized(quantize(x, "Q4_0", heavy), "Q4_0"))


@needs_ggml
@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_chunks_give_the_same_bytes(kind: str) -> None:
    x, heavy = weights(rows=64), importance()
    whole = quantize(x, kind, heavy)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda a: quantize(x[a : a + 3], kind, heavy), range(0, 64, 3)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.dtype == np.uint8
    assert whole.nbytes == next(e for e in ENCODINGS.values() if e.gguf == kind).gguf_bytes(x.shape)


@needs_ggml
def test_rows_may_lie_anywhere() -> None:
    x = weights(rows=8, columns=512)
    for view in (x[::2], np.asfortranarray(x), np.flip(x, 0)):
        np.testing.assert_array_equal(quantize(view, "Q4_K"), quantize(view.copy(order="C"), "Q4_K"))
    assert quantize(x[:0], "Q4_K").shape == (0, 288)


@needs_ggml
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "BF16", "F16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(kind: str, value: float) -> None:
    x = weights()
    x[7, 100] = value
    with pytest.raises(CheckpointError, match=r"a\.safetensors: tensor w: expected finite weights"):
        quantize(x, kind, what="a.safetensors: tensor w")


@needs_ggml
def test_what_no_scale_holds_is_refused() -> None:
    with pytest.raises(CheckpointError, match="expected finite weights within the range of float16"):
        quantize(np.full((1, 256), 1e5, np.float32), "Q4_K")
    assert dequantized(quantize(np.full((1, 256), 1e5, np.float32), "BF16"), "BF16").max() > 9e4
    wild = (10.0 ** np.linspace(-30, 30, 256)).astype(np.float32)
    with pytest.raises(CheckpointError, match="cannot hold these weights") as caught:
        quantize(np.full((1, 256), 65504, np.float32), "Q4_K", wild)
    assert "importance matrix" in caught.value.hint


@needs_ggml
def test_what_would_abort_the_process_is_refused_before() -> None:
    for kind in ("IQ2_XXS", "IQ2_XS", "IQ1_S"):
        with pytest.raises(ValueError, match="expected an importance matrix, found none"):
            quantize(weights(), kind)
    with pytest.raises(ValueError, match="expected rows of a multiple of 256"):
        quantize(weights(columns=896), "Q4_K")
    with pytest.raises(ValueError, match="as many weights"):
        quantize(weights(), "Q4_K", importance(256))


@needs_ggml
def test_the_package_itself_is_not_imported() -> None:
    code = (
        "import sys; from edgeship.quant import ggml; ggml.library(); print([m for m in sys.modules if 'llama' in m])"
    )
    environment = {"PYTHONPATH": f"{PIPELINE}:{PIPELINE.parent / 'runtime'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


@pytest.fixture
def fresh() -> Iterator[None]:
    ggml.library.cache_clear()
    yield
    ggml.library.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "expected the package llama-cpp-python, found none"),
        ("", "without libggml-base"),
        ("not a library", "expected ggml's quantizers, but: "),
        ("/lib/x86_64-linux-gnu/libm.so.6", "undefined symbol: ggml_row_size"),
    ],
)
def test_without_the_library_the_command_to_install_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, says: str
) -> None:
    spec = ModuleSpec("llama_cpp", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "llama_cpp")]
    library = tmp_path / "llama_cpp" / "lib" / "libggml-base.so"
    library.parent.mkdir(parents=True)
    if content and content.startswith("/"):
        if sys.platform != "linux" or not Path(content).exists():
            pytest.skip("needs a C library that is not ggml")
        library.symlink_to(content)
    elif content:
        library.write_text(content)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if content is not None else None)
    with pytest.raises(DependencyError, match=says) as caught:
        quantize(weights(), "Q4_K")
    assert "make llamacpp" in caught.value.hint
