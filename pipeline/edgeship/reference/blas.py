"""How many threads numpy's matrix product runs: one where the reference pass has several of its own, else all."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np

from edgeship_runtime.cpu import usable_cores

# The spellings of numpy's wheels, old and new, and of a plain OpenBLAS.
SPELLINGS = ("scipy_openblas_{}64_", "openblas_{}64_", "openblas_{}")

SMALL_COLUMNS = 512


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have OpenBLAS run `count` threads inside the block.

    Where numpy brings another BLAS (or a system one) nothing happens: slower, never wrong.
    """
    found = _switch()
    if found is None:
        yield
        return
    get, put = found
    before = get()
    put(count)
    try:
        yield
    finally:
        put(before)


def one_thread() -> AbstractContextManager[None]:
    """Hold OpenBLAS to one thread: others would fight over the cores with ours, and idle ones spin, which costs too."""
    return threads(1)


def threads_for(columns: int) -> AbstractContextManager[None]:
    """A thread a core where matrices are large, one where they have so few columns that threads wait mostly.

    Measured on a busy machine, 128 columns: a tenth of the time with one.
    """
    return threads(usable_cores() if columns > SMALL_COLUMNS else 1)


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
