"""Memory that a thread works in again and again: fresh pages for every chunk cost more than the arithmetic on them."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Scratch(threading.local):
    """Named buffers of the calling thread; what one hands out is valid until the thread asks for that name again."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An uninitialized array of `shape` and `dtype`, in memory that grows to the largest asked for."""
        count, dtype = prod((shape,) if isinstance(shape, int) else shape), np.dtype(dtype)
        size = count * dtype.itemsize
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, np.uint8)
        return kept[:size].view(dtype).reshape(shape)
