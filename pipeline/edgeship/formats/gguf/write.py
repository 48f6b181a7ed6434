"""Writes a GGUF file in place, from several threads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.formats.gguf.layout import Layout, Place
from edgeship.formats.gguf.packing import narrow, pack
from edgeship.tensors import EncodedRows, QuantizedRows


class GgufFile:
    """The file of one export. `put` is safe from several threads, for rows that do not overlap."""

    def __init__(self, path: Path, layout: Layout) -> None:
        """Opens (or reopens) the file, reserves its whole size and writes its header.

        Raises OSError (ENOSPC) where the size does not fit.
        """
        self.layout = layout
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(self._fd).st_size != layout.size:
                os.ftruncate(self._fd, 0)  # zeros between the tensors, whatever lay here before
                os.posix_fallocate(self._fd, 0, layout.size)
            self._write(np.frombuffer(layout.header, np.uint8), 0)
            for constant in layout.constants:
                self._write(constant.values, constant.offset)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def size(self) -> int:
        return self.layout.size

    def put(self, key: str, a: int, rows: QuantizedRows | EncodedRows | NDArray[np.float32]) -> None:
        """Store the rows of a tensor that begin at row `a` of the checkpoint's."""
        place = self.layout.by_key[key]
        stored = _stored(rows, place)
        if not place.heads:
            self._write(stored, place.offset + a * place.row_bytes)
            return
        targets = place.targets(a, a + len(stored))
        order = np.argsort(targets)
        breaks = np.flatnonzero(np.diff(targets[order]) != 1) + 1  # between whole heads there are none
        for run in np.split(order, breaks):
            self._write(stored[run], place.offset + int(targets[run[0]]) * place.row_bytes)

    def _write(self, values: NDArray[np.generic], offset: int) -> None:
        view = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def complete(self) -> None:
        """Nothing: what does not come from the checkpoint was written with the header."""

    def sync(self) -> None:
        """Bring what was written to the disk itself."""
        os.fdatasync(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        os.close(self._fd)


def _stored(rows: QuantizedRows | EncodedRows | NDArray[np.float32], place: Place) -> NDArray[np.uint8]:
    """The rows' bytes, uint8 `[rows, row_bytes]`."""
    if isinstance(rows, QuantizedRows):
        stored = pack(rows)
    elif isinstance(rows, EncodedRows):
        assert rows.type == place.kind.name, f"{place.name} is {place.kind.name}, not {rows.type}"
        stored = rows.data
    else:
        stored = np.ascontiguousarray(narrow(rows, place.kind.name)).reshape(len(rows), -1).view(np.uint8)
    assert stored.shape[1] == place.row_bytes, f"{place.name}: a row has {place.row_bytes} bytes, not {stored.shape[1]}"
    return stored
