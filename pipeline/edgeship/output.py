"""One format's output while the checkpoint streams by: its file, what is missing in it, its journal and its hash."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgeship.formats.base import Format
from edgeship.formats.hashing import TrailingHash
from edgeship.partial import PartialExport
from edgeship.tensors import EncodedRows, QuantizedRows

SYNC_EVERY = 256 << 20  # bytes of the checkpoint between two syncs: what a power cut costs at most


class Output:
    """The data file of one format in its partial export; use it as a context manager."""

    def __init__(self, form: Format, partial: PartialExport) -> None:
        self.form, self.partial = form, partial
        self._missing = {key: start for key, start in form.starts.items() if key not in partial.finished}
        self._fresh: list[str] = []
        self._unsynced = 0
        self._data = form.open(partial.directory / form.data_file)
        self._hash = TrailingHash(self._data)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hash.abandon()
        self._data.close()

    def wants(self, key: str) -> bool:
        """Whether the tensor is part of this format and not yet in its file."""
        return key in self._missing

    def put(self, key: str, a: int, rows: QuantizedRows | EncodedRows | NDArray[np.float32]) -> None:
        """Store rows of a tensor; safe from several threads."""
        self._data.put(key, a, rows)

    def note(self, key: str, nbytes: int, done: bool) -> None:
        """`nbytes` of the checkpoint have gone into this file, and the tensor is whole if `done`."""
        self._unsynced += nbytes
        if done:
            del self._missing[key]
            self._fresh.append(key)
            self._hash.advance(min(self._missing.values(), default=0))
        if self._unsynced >= SYNC_EVERY and self._fresh:
            self._record()

    def _record(self) -> None:
        self._data.sync()
        self.partial.record(self._fresh)
        self._fresh, self._unsynced = [], 0

    def finish(self) -> str:
        """Write what does not come from the checkpoint and sync all; returns the file's sha256."""
        self._data.complete()
        self._record()
        return self._hash.finish()
