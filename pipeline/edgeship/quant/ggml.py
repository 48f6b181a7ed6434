"""ggml's own quantizer, called through ctypes in the library that llama-cpp-python brings.

For the types whose codes only ggml chooses: K-quants, IQ types and their like. The package itself is not imported;
only `libggml-base`, which holds the quantizers and knows no backend, is loaded.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.encodings import ENCODINGS
from edgeship.errors import CheckpointError, DependencyError
from edgeship.tensors import QuantizedRows

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

PACKAGE = "llama_cpp"
INSTALL = "`make llamacpp` builds and installs it, once"

TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23,
    "IQ1_M": 29, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "Q1_0": 41,
}  # fmt: skip
"""ggml's number of a type (`enum ggml_type` in ggml.h): part of the file format, so it never changes."""

_SIZES = {e.gguf: (max(e.group, 1), e.block) for e in ENCODINGS.values() if e.gguf}  # elements and bytes of a block
_LARGEST = float(np.finfo(np.float16).max)  # every type but the floats scales its blocks by a float16


@cache
def library() -> ctypes.CDLL:
    """libggml-base, loaded once. Raises DependencyError where llama-cpp-python is not installed or not usable."""
    path = _find()
    try:
        functions = ctypes.CDLL(str(path))  # a CDLL's calls release the GIL
        size, number, pointer = ctypes.c_size_t, ctypes.c_int64, ctypes.c_void_p
        for name, result, *arguments in (
            ("ggml_row_size", size, ctypes.c_int, number),
            ("ggml_quantize_init", None, ctypes.c_int),
            ("ggml_quantize_requires_imatrix", ctypes.c_bool, ctypes.c_int),
            ("ggml_quantize_chunk", size, ctypes.c_int, pointer, pointer, number, number, number, pointer),
            ("ggml_validate_row_data", ctypes.c_bool, ctypes.c_int, pointer, size),
        ):
            function = getattr(functions, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise DependencyError(f"{path}: expected ggml's quantizers, but: {error}.", hint=INSTALL) from error
    for kind, (elements, nbytes) in _SIZES.items():
        if functions.ggml_row_size(TYPES[kind], elements) != nbytes:
            raise DependencyError(
                f"{path}: expected blocks of {nbytes} bytes for {kind}, found others. What it writes would not load.",
                hint=INSTALL,
            )
    return functions


def _find() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    homes = [Path(home) / "lib" for home in (spec.submodule_search_locations or ())] if spec else []
    names = {"win32": ("ggml-base.dll", "libggml-base.dll"), "darwin": ("libggml-base.dylib", "libggml-base.so")}
    for path in (home / name for home in homes for name in names.get(sys.platform, ("libggml-base.so",))):
        if path.is_file():
            return path
    found = f"{homes[0].parent} without libggml-base" if homes else "none"
    raise DependencyError(
        f"quantizing to ggml's own types is done by ggml's code: expected the package llama-cpp-python, found {found}.",
        hint=INSTALL,
    )


def quantize(rows: Floats, kind: str, importance: Floats | None = None, *, what: str = "the rows") -> Bytes:
    """Rows float32 `[n, k]` as ggml stores them in `kind` (`Q4_K`, ...): uint8 `[n, bytes of a row]`.

    `importance`, float32 `[k]`, weighs the error of each column; `what` names the rows in messages. Safe in several
    threads at once, which run in parallel. Raises DependencyError without llama-cpp-python, CheckpointError where a
    value is not finite or beyond float16, and ValueError at shapes that are not as said here.
    """
    n, k = rows.shape
    elements, nbytes = _SIZES[kind]
    if k % elements or (importance is not None and importance.shape != (k,)):
        shape = None if importance is None else importance.shape
        raise ValueError(
            f"{kind}: expected rows of a multiple of {elements} and as many weights, found {k} and {shape}"
        )
    limit = np.finfo(np.float32).max if kind in ("F32", "BF16") else _LARGEST
    if n and not (-limit <= rows.min() and rows.max() <= limit):  # false for a NaN too
        raise _not_finite(what)
    ggml, number = library(), TYPES[kind]
    if importance is None and ggml.ggml_quantize_requires_imatrix(number):  # it would abort the process
        raise ValueError(f"{kind}: expected an importance matrix, found none")
    ggml.ggml_quantize_init(number)
    source = np.ascontiguousarray(rows, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    guided = None if weights is None else weights.ctypes.data
    out = np.empty((n, k // elements * nbytes), np.uint8)
    ggml.ggml_quantize_chunk(number, source.ctypes.data, out.ctypes.data, 0, n, k, guided)
    if not ggml.ggml_validate_row_data(number, out.ctypes.data, out.nbytes):  # as llama-quantize checks its own
        raise CheckpointError(
            f"{what}: ggml's {kind} cannot hold these weights: a scale is not finite. "
            f"The artifact would answer with garbage.",
            hint=f"check the checkpoint{' and the importance matrix' if guided else ''}, or choose another type",
        )
    return out


@cache
def dequantizer(kind: str) -> Callable[[Bytes, Floats], None] | None:
    """ggml's own way back for one type: rows uint8 `[n, row bytes]` into float32 `[n, k]`; None where it has none.

    Also None without llama-cpp-python. The function is safe in several threads at once, which run in parallel.
    """
    name = f"dequantize_row_{kind[:-1].lower()}{kind[-1]}" if kind.endswith("_K") else f"dequantize_row_{kind.lower()}"
    try:
        convert = getattr(library(), name)
    except (DependencyError, AttributeError):
        return None
    convert.restype, convert.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    elements, nbytes = _SIZES[kind]

    def dequantize(rows: Bytes, out: Floats) -> None:
        if rows.nbytes // nbytes * elements != out.size or not (rows.flags.c_contiguous and out.flags.c_contiguous):
            raise ValueError(f"{kind}: {rows.nbytes} bytes do not make {out.size} numbers")
        convert(rows.ctypes.data, out.ctypes.data, out.size)

    return dequantize


def quantize_to_grid(rows: Floats, importance: Floats, *, what: str = "the rows") -> QuantizedRows:
    """Rows float32 `[n, k]` on the shared 4-bit grid of 32, chosen by ggml's Q4_0 with an importance matrix.

    `importance` is float32 `[k]`. (Without one, `rtn.quantize` chooses the same codes as ggml and needs no library.)
    Raises as `quantize` does.
    """
    blocks = quantize(rows, "Q4_0", importance, what=what).reshape(-1, 18)  # a float16 scale, then 16 pairs of codes
    codes = np.empty((32, len(blocks)), np.uint8)
    np.bitwise_and(blocks[:, 2:].T, 0xF, out=codes[:16])  # ggml pairs element i with i + 16
    np.right_shift(blocks[:, 2:].T, 4, out=codes[16:])
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).ravel().astype(np.float32)
    return QuantizedRows(4, len(rows), codes, scales)


def _not_finite(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what}: expected finite weights within the range of float16, found NaN, infinity or a larger value. "
        f"The artifact would answer with garbage.",
        hint="the checkpoint is damaged or was saved mid-divergence: fetch it again, or export an earlier one",
    )
