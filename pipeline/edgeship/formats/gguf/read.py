"""The numbers a GGUF file holds, row by row, for the reference pass.

ggml's own code turns blocks into numbers where llama-cpp-python brings it, the `gguf` package's (several times slower,
the same numbers) elsewhere.
"""

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
from edgeship.quant import ggml
from edgeship.scratch import Scratch

Floats = NDArray[np.float32]


class GgufWeights:
    """The weights of a file this package laid out; use it as a context manager."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._scratch = Scratch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def weights(self, key: str, a: int, b: int) -> Floats:
        """Rows [a, b) in the checkpoint's order, float32 [b - a, columns], valid until the thread's next call."""
        places = self._layout.by_key
        place = places.get(key) or places["embed.weight"]  # a tied head is the embedding
        targets = place.targets(a, b)
        first, end = int(targets.min()), int(targets.max()) + 1
        stored = self._read(place, first, end)
        if place.heads:  # rows of a head are interleaved in the file
            stored = stored[targets - first]
        convert = ggml.dequantizer(place.kind.name) if place.encoding.quantized else None
        if convert is None:
            return dequantize(stored, place.kind).reshape(b - a, place.columns)
        values: Floats = self._scratch.take("values", (b - a, place.columns), np.float32)
        convert(stored, values)
        return values

    def vector(self, key: str) -> Floats:
        """A norm's gain or a bias, float32 [n]."""
        place = self._layout.by_key[key]
        values: Floats = dequantize(self._read(place, 0, place.rows), place.kind).reshape(-1)
        return values[place.targets(0, place.rows)]

    def _read(self, place: Place, first: int, end: int) -> NDArray[np.uint8]:
        stored: NDArray[np.uint8] = self._scratch.take("stored", (end - first, place.row_bytes), np.uint8)
        count = os.preadv(self._fd, [stored.data], place.offset + first * place.row_bytes)
        if count != stored.nbytes:
            raise ArtifactError(
                f"{self._path}: {place.name} ends early: expected {stored.nbytes} bytes, found {count}.",
                hint="something else changed the file: export again",
            )
        return stored
