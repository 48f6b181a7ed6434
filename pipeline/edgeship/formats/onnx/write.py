"""Writes model.onnx.data in place, from several threads, and hashes it in file order while it grows."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Rope
from edgeship.formats.onnx.layout import Layout, Place, Region
from edgeship.formats.onnx.packing import pack
from edgeship.tensors import QuantizedRows

HASH_BLOCK = 1 << 20


class DataFile:
    """The data file of one export. `put` is safe from several threads, for rows that do not overlap."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Opens (or reopens) the file and reserves its whole size; raises OSError (ENOSPC) where that does not fit."""
        self.layout = layout
        self.places = {p.role.key: p for p in layout.places}
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(self._fd).st_size != layout.size:
                os.ftruncate(self._fd, 0)  # zeros between the regions, whatever lay here before
                os.posix_fallocate(self._fd, 0, layout.size)
        except BaseException:
            os.close(self._fd)
            raise

    def put(self, key: str, a: int, rows: QuantizedRows | NDArray[np.float32]) -> None:
        """Store the rows of a tensor that begin at row `a`."""
        place = self.places[key]
        if isinstance(rows, QuantizedRows):
            self._write(pack(rows), place.offset + a * place.row_bytes)
            self._write(rows.scales, place.scale_offset + a * place.scale_row_bytes)
        else:
            dtype = np.float16 if place.encoding.name == "float16" else np.float32
            self._write(rows.astype(dtype, copy=False), place.offset + a * place.row_bytes)

    def put_rope(self, rope: Rope, rows: int = 1 << 12) -> None:
        """Store the rotary tables, a few thousand positions at a time."""
        cos, sin = self.layout.cos, self.layout.sin
        for a in range(0, cos.dims[0], rows):
            for region, table in zip((cos, sin), rope.tables(a, min(a + rows, cos.dims[0])), strict=True):
                self._write(table, region.offset + a * _row_bytes(region))

    def _write(self, values: NDArray[np.generic], offset: int) -> None:
        view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        """Bring what was written to the disk itself."""
        os.fdatasync(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        os.close(self._fd)


def _row_bytes(region: Region) -> int:
    return region.nbytes // region.dims[0]


class TrailingHash:
    """sha256 of a growing file, computed in a thread that follows the bytes known to be final."""

    def __init__(self, data: DataFile) -> None:
        self._data, self._final = data, 0
        self._hash = hashlib.sha256()
        self._changed, self._stop = threading.Condition(), False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name="hash", daemon=True)
        self._thread.start()

    def advance(self, final: int) -> None:
        """All bytes before `final` will not change any more."""
        with self._changed:
            self._final = max(self._final, final)
            self._changed.notify()

    def finish(self) -> str:
        """The digest of the whole file, once everything is final."""
        self.advance(self._data.layout.size)
        self._thread.join()
        if self._error:
            raise self._error
        return self._hash.hexdigest()

    def abandon(self) -> None:
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join()

    def _wait_past(self, at: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._stop or self._final > at)
            return self._final

    def _follow(self) -> None:
        at, size = 0, self._data.layout.size
        try:
            while at < size and not self._stop:
                final = self._wait_past(at)
                while at < final and not self._stop:
                    block = self._data.read(at, min(HASH_BLOCK, final - at))
                    if not block:
                        raise OSError(f"model.onnx.data ends at byte {at}, expected {size}: something else changed it")
                    self._hash.update(block)
                    at += len(block)
        except OSError as error:
            self._error = error


def final_before(unfinished: list[Place], size: int) -> int:
    """The offset before which nothing is left to write: the first unfinished tensor's codes.

    Scales lie behind the codes of their region and before the next region, so they never come first.
    """
    return min((p.offset for p in unfinished), default=size)
