"""safetensors files, opened lazily: the header is checked whole, the data is read in rows and never mapped.

Format (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian header size N, N bytes of a JSON
object that starts with `{` and may end in spaces, then the data. Each tensor has `dtype`, `shape` and `data_offsets`
`[begin, end)` into the data; together they cover it without hole or overlap. `__metadata__` maps text to text.
"""

from __future__ import annotations

import os
import stat
from copy import copy
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeship.checkpoint.strict_json import DAMAGED, parse_object, show, some
from edgeship.errors import CheckpointError
from edgeship.tensors import ITEM_BYTES, FloatDtype, LazyTensor, Raw

HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors library (MAX_HEADER_SIZE)
RANK_LIMIT = 32  # below numpy's 64; weights have two axes
DIM_LIMIT = 2**63 - 1  # keeps products of dimensions small numbers

STORAGE: dict[FloatDtype, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16: its bits
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}

REFUSED_HINTS = {
    "F8": "this is the FP8 variant of the model; export the BF16 one it was made from",
    "I": "integer tensors mean weights that are quantized already (GPTQ, AWQ, ...); export the original model",
    "U": "integer tensors mean weights that are quantized already (GPTQ, AWQ, ...); export the original model",
}


class _File:
    """An open file that is read at offsets; the descriptor closes with the last tensor that uses it."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
                raise CheckpointError(f"{path}: expected a file, found something else.", hint="give a checkpoint file")
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as e:
            raise CheckpointError(
                f"{path}: cannot be opened: {e.strerror}.", hint="check the path and its rights"
            ) from e
        self.size = os.fstat(self._fd).st_size

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; returns the bytes read, fewer only where the file ends."""
        done = 0
        while done < len(buffer):  # one call reads at most 2 GiB on Linux
            got = os.preadv(self._fd, [buffer[done:]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


class _Rows:
    """Reads rows of one tensor; positions are given with every read, so threads do not disturb each other."""

    def __init__(self, file: _File, name: str, dtype: FloatDtype, shape: tuple[int, ...], begin: int) -> None:
        self._file, self._name, self._dtype, self._begin = file, name, STORAGE[dtype], begin
        self._count = shape[0] if shape else 1
        self._row_shape = shape[1:]

    def elements(self) -> _Rows:
        """Reads the same values as rows of one each."""
        flat = copy(self)
        flat._count, flat._row_shape = self._count * prod(self._row_shape), ()
        return flat

    def __call__(self, a: int, b: int) -> Raw:
        if not 0 <= a <= b <= self._count:
            raise IndexError(f"rows [{a}, {b}) of {self._name!r}, which has {self._count}")
        out: Raw = np.empty((b - a, *self._row_shape), self._dtype)
        row_bytes = prod(self._row_shape) * self._dtype.itemsize
        try:
            got = self._file.read_into(out.reshape(-1).view(np.uint8).data, self._begin + a * row_bytes)
        except OSError as e:
            raise CheckpointError(
                f"{self._file.name}: tensor {show(self._name)}: reading rows {a} to {b} failed: {e.strerror}.",
                hint="check the disk, or copy the checkpoint to another one",
            ) from e
        if got != out.nbytes:
            raise CheckpointError(
                f"{self._file.name}: tensor {show(self._name)}: expected {out.nbytes} bytes for rows {a} to {b}, found "
                f"{got}: the file became shorter after it was opened.",
                hint="do not change the checkpoint while it is exported; restore the file and start again",
            )
        return out


def elements(tensor: LazyTensor) -> LazyTensor:
    """A tensor of `open_shard` as one long axis, so that parts of its rows can be read."""
    assert isinstance(tensor.raw, _Rows)
    return replace(tensor, shape=(prod(tensor.shape),), raw=tensor.raw.elements())


def open_shard(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, by name in the order of their data; reads the header only.

    Raises CheckpointError, naming file and tensor, at everything the format forbids and at a dtype that is not
    BF16, F16 or F32.
    """
    file = _File(path)
    entries, start = _read_entries(file)
    _refuse_dtypes(file, entries)
    out = {}
    for e in entries:
        dtype = cast(FloatDtype, e.dtype)
        out[e.name] = LazyTensor(
            e.name, e.shape, dtype, file.name, _Rows(file, e.name, dtype, e.shape, start + e.begin)
        )
    return out


def check_shard(path: Path) -> None:
    """Raise CheckpointError, naming file and tensor, at everything the format forbids; any dtype will do."""
    _read_entries(_File(path))


def _read_entries(file: _File) -> tuple[list[_Entry], int]:
    """The tensors of the header, and where the data starts."""
    header, start = _read_header(file)
    _check_metadata(file, header.pop("__metadata__", None))
    entries = [_Entry(file, name, value) for name, value in header.items()]
    _check_coverage(file, entries, file.size - start)
    return entries, start


class _Entry:
    """One tensor of the header, its form checked."""

    def __init__(self, file: _File, name: str, value: Any) -> None:
        self._file, self.name = file, name
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            found = f"the fields {sorted(value)}" if isinstance(value, dict) else type(value).__name__
            raise self.error(f"expected an object of dtype, shape and data_offsets, found {found[:200]}")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str):
            raise self.error(f"dtype: expected a name, found {_brief(dtype)}")
        if not isinstance(shape, list) or len(shape) > RANK_LIMIT or not all(_is_size(n) for n in shape):
            raise self.error(f"shape: expected a list of at most {RANK_LIMIT} sizes, found {_brief(shape)}")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
            raise self.error(f"data_offsets: expected two positions, found {_brief(offsets)}")
        self.dtype: str = dtype
        self.shape: tuple[int, ...] = tuple(shape)
        self.begin: int = offsets[0]
        self.end: int = offsets[1]

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self._file.name}: tensor {show(self.name)}: {text}.", hint=DAMAGED)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= DIM_LIMIT  # type(): a bool is an int to isinstance


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_brief(v) if not isinstance(v, list) else "[…]" for v in value[:8]) + "]"
    return repr(value)[:60] if not isinstance(value, int) or abs(value) <= DIM_LIMIT else "a number too large"


def _read_header(file: _File) -> tuple[dict[str, Any], int]:
    """The header's object, and where the data starts."""
    prefix = bytearray(8)
    if file.read_into(memoryview(prefix), 0) < 8:
        raise CheckpointError(
            f"{file.name}: expected a safetensors file, found {file.size} bytes: too short for a header.", hint=DAMAGED
        )
    size = int.from_bytes(prefix, "little")
    if size > HEADER_LIMIT:
        raise CheckpointError(
            f"{file.name}: the header claims {size} bytes, the limit is {HEADER_LIMIT}: no safetensors, or damaged.",
            hint="check that the file holds safetensors and not, for instance, a page or a Git LFS pointer",
        )
    if 8 + size > file.size:
        raise CheckpointError(
            f"{file.name}: the header claims {size} bytes, the file has {file.size} in all: it is cut short.",
            hint=DAMAGED,
        )
    blob = bytearray(size)
    if file.read_into(memoryview(blob), 8) < size:
        raise CheckpointError(f"{file.name}: the file became shorter while it was opened.", hint=DAMAGED)
    if blob[:1] != b"{":
        raise CheckpointError(
            f"{file.name}: the header does not start with '{{': not a safetensors file, or damaged.", hint=DAMAGED
        )
    return parse_object(bytes(blob), file.name, "the header"), 8 + size


def _check_metadata(file: _File, metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{file.name}: __metadata__: expected an object of text values.", hint=DAMAGED)


def _check_coverage(file: _File, entries: list[_Entry], data_bytes: int) -> None:
    """The tensors cover the data exactly, in whatever order; sorts `entries` by position."""
    entries.sort(key=lambda e: (e.begin, e.end))
    at, previous = 0, "the start of the data"
    for e in entries:
        if e.end < e.begin:
            raise e.error(f"data_offsets: the end {e.end} lies before the begin {e.begin}")
        if e.end > data_bytes:
            raise e.error(
                f"its data would end at byte {e.end}, the file holds {data_bytes} bytes of data: it is cut short"
            )
        expected = prod(e.shape) * ITEM_BYTES.get(cast(FloatDtype, e.dtype), 0)
        if e.dtype in ITEM_BYTES and expected != e.end - e.begin:
            raise e.error(
                f"shape {list(e.shape)} of {e.dtype} takes {expected} bytes, data_offsets give {e.end - e.begin}"
            )
        if e.begin < at:
            raise e.error(f"its data, from byte {e.begin}, overlaps that of {previous}, which ends at {at}")
        if e.begin > at:
            raise e.error(
                f"its data starts at byte {e.begin}, expected {at} (the end of {previous}): a hole in the file"
            )
        at, previous = e.end, f"tensor {show(e.name)}"
    if at != data_bytes:
        raise CheckpointError(
            f"{file.name}: {data_bytes - at} bytes follow the last tensor ({previous}) that belong to none.",
            hint=DAMAGED,
        )


def _refuse_dtypes(file: _File, entries: list[_Entry]) -> None:
    wrong = [e for e in entries if e.dtype not in ITEM_BYTES]
    if not wrong:
        return
    kind = wrong[0].dtype
    hint = next((text for start, text in REFUSED_HINTS.items() if kind.startswith(start)), "")
    raise CheckpointError(
        f"{file.name}: expected tensors of {', '.join(ITEM_BYTES)}, found {len(wrong)} of another type:\n"
        + some([f"{show(e.name)}: {show(e.dtype, 20)}" for e in wrong]),
        hint=hint or "export a checkpoint whose weights are stored as BF16, F16 or F32",
    )
