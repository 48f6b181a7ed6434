"""The numbers a GGUF file holds, row by row, for the reference pass."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from gguf import dequantize
from numpy.typing import NDArray

from edgeship.errors import ArtifactError
from edgeship.formats.gguf.layout import Layout, Place

Floats = NDArray[np.float32]


class GgufWeights:
    """The weights of a file this package laid out, dequantized by the `gguf` package; use it as a context manager."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def weights(self, key: str, a: int, b: int) -> Floats:
        """Rows [a, b) in the checkpoint's order, float32 [b - a, columns]."""
        places = self._layout.by_key
        place = places.get(key) or places["embed.weight"]  # a tied head is the embedding
        targets = place.targets(a, b)
        first, end = int(targets.min()), int(targets.max()) + 1
        stored = self._read(place, first, end)
        if place.heads:  # rows of a head are interleaved in the file
            stored = stored[targets - first]
        values: Floats = dequantize(stored, place.kind)
        return values.reshape(b - a, place.columns)

    def vector(self, key: str) -> Floats:
        """A norm's gain or a bias, float32 [n]."""
        place = self._layout.by_key[key]
        values: Floats = dequantize(self._read(place, 0, place.rows), place.kind).reshape(-1)
        return values[place.targets(0, place.rows)]

    def _read(self, place: Place, first: int, end: int) -> NDArray[np.uint8]:
        size = (end - first) * place.row_bytes
        blob = os.pread(self._fd, size, place.offset + first * place.row_bytes)
        if len(blob) != size:
            raise ArtifactError(
                f"{self._path}: {place.name} ends early: expected {size} bytes, found {len(blob)}.",
                hint="something else changed the file: export again",
            )
        return np.frombuffer(blob, np.uint8).reshape(end - first, place.row_bytes)
