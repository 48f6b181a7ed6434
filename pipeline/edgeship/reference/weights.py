"""Where the reference pass takes its weights from: a float checkpoint, or the bytes of an artifact.

`StoredWeights` reads `model.onnx.data` as `formats/onnx/packing.py` lays it out (onnxruntime, docs/ContribOperators.md,
MatMulNBits): what it hands to the pass are the numbers the artifact holds, not the ones it was made from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeship.encodings import Encoding
from edgeship.errors import ArtifactError
from edgeship.scratch import Scratch
from edgeship.tensors import LazyTensor

Floats = NDArray[np.float32]
T = TypeVar("T")

HEAD, EMBED = "head.weight", "embed.weight"


class Weights(Protocol):
    """Weights by role key (`archs.base.Role.key`); "head.weight" answers for a tied model too. Thread-safe."""

    def weights(self, key: str, a: int, b: int) -> Floats:
        """Rows [a, b) of a linear weight or the embedding, float32 [b - a, columns].

        Valid until the same thread's next call: an implementation may reuse its buffer.
        """
        ...

    def vector(self, key: str) -> Floats:
        """A norm's gain or a bias, float32 [n]."""
        ...


class CheckpointWeights:
    """The float weights of a checkpoint, widened to float32 as they are read."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        """`tensors` by role key, as `checkpoint.account` answers them."""
        self._tensors = tensors

    def weights(self, key: str, a: int, b: int) -> Floats:
        return _of(self._tensors, key).rows(a, b)

    def place(self, key: str) -> str:
        """Where a weight comes from, for messages: its file, the adapters merged into it, its name there."""
        tensor = _of(self._tensors, key)
        return f"{tensor.source}: tensor {tensor.name}"

    def vector(self, key: str) -> Floats:
        tensor = self._tensors[key]
        return tensor.rows(0, tensor.shape[0])


class Stored(Protocol):
    """Where an artifact keeps the rows of one tensor; `formats.onnx.layout.Place` is one."""

    @property
    def encoding(self) -> Encoding: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def scale_offset(self) -> int: ...
    @property
    def scale_row_bytes(self) -> int: ...


class StoredWeights:
    """The weights of an artifact's data file, dequantized row by row; close it, or use it as a context manager."""

    def __init__(self, path: Path, places: Mapping[str, Stored]) -> None:
        """`places` by role key; a tied head stored apart from the embedding is under "head.weight"."""
        self._path, self._places = path, places
        self._file = os.open(path, os.O_RDONLY)
        self._scratch = Scratch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def weights(self, key: str, a: int, b: int) -> Floats:
        place = _of(self._places, key)
        if not 0 <= a <= b <= place.rows:
            raise ValueError(f"{key}: rows [{a}, {b}) of {place.rows}")
        stored = self._scratch.take("stored", (b - a) * place.row_bytes, np.uint8)
        self._read(stored, place.offset + a * place.row_bytes)
        if not place.encoding.quantized:
            as_stored = stored.view(np.float16 if place.encoding.bits == 16 else np.float32)
            return as_stored.astype(np.float32, copy=False).reshape(b - a, place.columns)
        scales = self._scratch.take("scales", (b - a) * place.scale_row_bytes // 4, np.float32)
        self._read(scales.view(np.uint8), place.scale_offset + a * place.scale_row_bytes)
        values = self._scratch.take("values", (b - a) * place.columns, np.float32)
        codes = stored if place.encoding.bits == 8 else self._nibbles(stored)
        # Offset codes to two's complement: one pass over bytes instead of one over floats.
        np.subtract(codes, np.uint8(place.encoding.zero), out=codes)
        np.copyto(values, codes.view(np.int8))
        groups = values.reshape(scales.size, place.encoding.group)
        np.multiply(groups, scales[:, None], out=groups)
        return values.reshape(b - a, place.columns)

    def vector(self, key: str) -> Floats:
        place = self._places[key]
        out = np.empty(place.rows, np.float32)
        self._read(out.view(np.uint8), place.offset)
        return out

    def _nibbles(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Two codes of a byte as two bytes, low half first; in 16-bit lanes, so that no step scatters."""
        pairs, high = (
            self._scratch.take("pairs", packed.size, np.uint16),
            self._scratch.take("high", packed.size, np.uint16),
        )
        np.copyto(pairs, packed)
        np.left_shift(pairs, 4, out=high)
        np.bitwise_or(pairs, high, out=pairs)
        np.bitwise_and(pairs, np.uint16(0x0F0F), out=pairs)
        return pairs.view(np.uint8)

    def _read(self, into: NDArray[np.uint8], offset: int) -> None:
        view, done = into.data, 0
        while done < len(view):
            count = os.preadv(self._file, [view[done:]], offset + done)
            if count == 0:
                raise ArtifactError(
                    f"{self._path}: expected {len(view)} bytes at offset {offset}, the file ends after {done} of them.",
                    hint="export the artifact again",
                )
            done += count


def _of(tensors: Mapping[str, T], key: str) -> T:
    """The tensor of a key; a head that has none of its own is the embedding table."""
    return tensors[EMBED if key == HEAD and HEAD not in tensors else key]
