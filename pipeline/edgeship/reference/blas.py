"""One thread inside numpy's matrix product, while the reference pass runs several of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np

# The spellings of numpy's wheels, old and new, and of a plain OpenBLAS.
SPELLINGS = ("scipy_openblas_{}64_", "openblas_{}64_", "openblas_{}")

SMALL_COLUMNS = 512


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold OpenBLAS to one thread inside the block.

    Its threads and ours would otherwise fight over the cores, and idle ones spin, which is CPU time. Where numpy
    brings another BLAS (or a system one) nothing happens: slower, never wrong.
    """
    found = _switch()
    if found is None:
        yield
        return
    get, put = found
    before = get()
    put(1)
    try:
        yield
    finally:
        put(before)


@contextmanager
def threads_for(columns: int) -> Iterator[None]:
    """Hold OpenBLAS to one thread inside the block where matrices have so few columns that its threads wait mostly.

    Measured on a busy machine, 128 columns: a tenth of the time.
    """
    if columns > SMALL_COLUMNS:
        yield
        return
    with one_thread():
        yield


@cache
def _switch() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's functions that read and set its thread count, from the library numpy already loaded."""
    package = Path(np.__file__).parent
    libraries = [*package.parent.glob("numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")]
    for library in sorted(libraries):
        with suppress(OSError):
            loaded = ctypes.CDLL(str(library))
            for spelling in SPELLINGS:
                if hasattr(loaded, spelling.format("set_num_threads")):
                    return (
                        getattr(loaded, spelling.format("get_num_threads")),
                        getattr(loaded, spelling.format("set_num_threads")),
                    )
    return None
