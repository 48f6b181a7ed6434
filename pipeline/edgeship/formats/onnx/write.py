"""Writes model.onnx.data in place, from several threads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Rope
from edgeship.formats.onnx.layout import Layout, Region
from edgeship.formats.onnx.packing import pack
from edgeship.tensors import EncodedRows, QuantizedRows

ROPE_ROWS = 1 << 12


class OnnxDataFile:
    """The data file of one export. `put` is safe from several threads, for rows that do not overlap."""

    def __init__(self, path: Path, layout: Layout, rope: Rope) -> None:
        """Opens (or reopens) the file and reserves its whole size; raises OSError (ENOSPC) where that does not fit."""
        self.layout, self.rope = layout, rope
        self.places = {p.role.key: p for p in layout.places}
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(self._fd).st_size != layout.size:
                os.ftruncate(self._fd, 0)  # zeros between the regions, whatever lay here before
                os.posix_fallocate(self._fd, 0, layout.size)
        except BaseException:
            os.close(self._fd)
            raise

    def put(self, key: str, a: int, rows: QuantizedRows | EncodedRows | NDArray[np.float32]) -> None:
        """Store the rows of a tensor that begin at row `a`."""
        place = self.places[key]
        assert not isinstance(rows, EncodedRows), f"{key}: ONNX has no {rows.type}, and the plan said so"
        if isinstance(rows, QuantizedRows):
            self._write(pack(rows), place.offset + a * place.row_bytes)
            self._write(rows.scales, place.scale_offset + a * place.scale_row_bytes)
        else:
            dtype = np.float16 if place.encoding.name == "float16" else np.float32
            self._write(rows.astype(dtype, copy=False), place.offset + a * place.row_bytes)

    @property
    def size(self) -> int:
        return self.layout.size

    def complete(self) -> None:
        """Store the rotary tables, a few thousand positions at a time."""
        cos, sin = self.layout.cos, self.layout.sin
        for a in range(0, cos.dims[0], ROPE_ROWS):
            for region, table in zip((cos, sin), self.rope.tables(a, min(a + ROPE_ROWS, cos.dims[0])), strict=True):
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
