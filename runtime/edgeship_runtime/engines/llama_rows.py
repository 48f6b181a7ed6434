"""The batch that llama.cpp is given, in memory that is filled by numpy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Rows:
    """The memory of a llama_batch: a row for each token, with its place, its sequence and whether logits are wanted."""

    def __init__(self, lib: Any, size: int) -> None:
        self.size = size
        self._ids = np.zeros(size, np.int32)
        self._places = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)  # sequences of each row
        self._numbers = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        address = self._numbers.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        self._pointers = address.astype(np.uintp)
        batch = self.batch = lib.llama_batch()
        batch.token = self._ids.ctypes.data_as(ctypes.POINTER(lib.llama_token))
        batch.pos = self._places.ctypes.data_as(ctypes.POINTER(lib.llama_pos))
        batch.n_seq_id = self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        batch.seq_id = self._pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(lib.llama_seq_id)))
        batch.logits = self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def put(self, row: int, ids: NDArray[np.int64], place: int, number: int, *, last: bool) -> None:
        """Put ids from a row on, the first at `place` of its sequence; `last`: logits of the last are wanted."""
        end = row + len(ids)
        self._ids[row:end] = ids
        self._places[row:end] = np.arange(place, place + len(ids))
        self._numbers[row:end] = number
        self._wanted[row:end] = 0
        self._wanted[end - 1] = last
