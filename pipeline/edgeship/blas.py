"""Matrix products on all cores, with the same bits whatever their number.

OpenBLAS sums in another order with another count of threads, and its threads wait for each other spinning, which on a
busy machine takes many times as long. So it runs one thread here, and a product is shared out in pieces that depend on
its shape alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from threading import Event
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.cpu import usable_cores

Floats = NDArray[np.float32]
T = TypeVar("T")

# The spellings of numpy's wheels, old and new, and of a plain OpenBLAS.
SPELLINGS = ("scipy_openblas_{}64_", "openblas_{}64_", "openblas_{}")

PIECE = 192  # columns of a product at least: packing the other factor anew for fewer costs more than it gains
PIECES = 16
SMALL = 1 << 24  # multiply-adds of a product that takes no longer than sharing it out

_crew: ContextVar[ThreadPoolExecutor | None] = ContextVar("crew", default=None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold OpenBLAS to one thread: others would fight over the cores with ours, and idle ones spin, which costs too.

    Where numpy brings another BLAS (or a system one) nothing happens: slower, never wrong.
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
def all_cores() -> Iterator[None]:
    """Have what this thread gives to `each`, and its products, run on a thread a core inside the block."""
    with one_thread(), ThreadPoolExecutor(usable_cores()) as pool:
        token = _crew.set(pool)
        try:
            yield
        finally:
            _crew.reset(token)


def each(work: Callable[[T], None], items: Sequence[T], most: int) -> None:
    """Call `work` with each of the items: in order, or in `all_cores` on its threads, `most` of them at once."""
    count, over = min(most, len(items)), Event()
    crew = _crew.get() if count > 1 else None

    def share(first: int) -> None:
        for item in items[first::count]:
            if over.is_set():
                return
            try:
                work(item)
            except BaseException:
                over.set()
                raise

    try:
        for _ in map(work, items) if crew is None else crew.map(share, range(count)):
            pass
    finally:
        over.set()  # an error or Ctrl-C waits for what is at work, not for the rest


def product(a: Floats, b: Floats) -> Floats:
    """a `[m, k]` times b `[k, n]`: float32 `[m, n]`."""
    out = np.empty((len(a), b.shape[1]), np.float32)

    def put(piece: slice) -> None:
        np.matmul(a, b[:, piece], out=out[:, piece])

    _share(a, b, put)
    return out


def add_product(into: Floats, a: Floats, b: Floats) -> None:
    """Add a `[m, k]` times b `[k, n]` to `into` `[m, n]`."""

    def put(piece: slice) -> None:
        into[:, piece] += a @ b[:, piece]

    _share(a, b, put)


def _share(a: Floats, b: Floats, put: Callable[[slice], None]) -> None:
    """Call `put` with pieces of the columns of b; with the threads of `all_cores` where that pays."""
    columns = b.shape[1]
    count = min(PIECES, 1 << max(0, (columns // PIECE).bit_length() - 1))
    step = max(1, -(-columns // count // 16)) * 16  # whole tiles of the kernels
    pieces = [slice(start, min(start + step, columns)) for start in range(0, columns, step)]
    each(put, pieces, PIECES if a.size * columns > SMALL else 1)


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
