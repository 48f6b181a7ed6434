"""Codes chosen by a calibrated algorithm, kept on disk until every format has taken them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.encodings import Encoding
from edgeship.kept import written_whole
from edgeship.tensors import QuantizedRows


@dataclass(frozen=True)
class StoredCodes:
    """One weight's codes and scales in a file: per row its codes (4 bits: pairs of neighbours), per row its scales."""

    path: Path
    encoding: Encoding
    shape: tuple[int, int]

    @property
    def code_bytes(self) -> int:
        """Of a row."""
        return self.shape[1] * self.encoding.bits // 8

    @property
    def groups(self) -> int:
        """Of a row."""
        return self.shape[1] // self.encoding.group

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return self.shape[0] * (self.code_bytes + 2 * self.groups)

    @property
    def whole(self) -> bool:
        """Whether the file is there, and as long as it should be."""
        return self.path.is_file() and self.path.stat().st_size == self.nbytes

    def rows(self, a: int, b: int) -> QuantizedRows:
        """Rows `[a, b)`; safe from several threads."""
        bits, group = self.encoding.bits, self.encoding.group
        packed = np.fromfile(self.path, np.uint8, (b - a) * self.code_bytes, offset=a * self.code_bytes)
        at = self.shape[0] * self.code_bytes + 2 * a * self.groups
        scales = np.fromfile(self.path, "<f2", (b - a) * self.groups, offset=at).astype(np.float32)
        if bits == 4:
            codes = np.empty((packed.size, 2), np.uint8)
            np.bitwise_and(packed, 15, out=codes[:, 0])
            np.right_shift(packed, 4, out=codes[:, 1])
            packed = codes
        return QuantizedRows(bits, b - a, np.ascontiguousarray(packed.reshape(-1, group).T), scales)

    @contextmanager
    def writing(self) -> Iterator[CodeWriter]:
        """Write all rows, in any order; the file takes its name when the block ends without an error."""
        with written_whole(self.path) as file:
            yield CodeWriter(self, file.fileno())


@dataclass(frozen=True)
class CodeWriter:
    """Takes a weight's rows."""

    kept: StoredCodes
    descriptor: int

    def put(self, a: int, rows: QuantizedRows) -> None:
        """Rows from row `a` on; raises OSError (ENOSPC) where the disk is full."""
        kept = self.kept
        codes = np.ascontiguousarray(rows.codes.T).reshape(-1)  # as they lie in a row
        if rows.bits == 4:
            codes = codes[0::2] | np.left_shift(codes[1::2], 4, dtype=np.uint8)
        self._write(codes, a * kept.code_bytes)
        scales = rows.scales.astype("<f2").view(np.uint8)
        self._write(scales, kept.shape[0] * kept.code_bytes + 2 * a * kept.groups)

    def _write(self, values: NDArray[np.uint8], offset: int) -> None:
        view = values.data
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written
