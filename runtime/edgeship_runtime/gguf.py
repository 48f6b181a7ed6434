"""The header of a GGUF file, read with distrust: checked whole before llama.cpp, which is C++, sees the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Limits are those of llama.cpp's own reader
(ggml/src/gguf.cpp) or tighter. Arrays are stepped over and read again when asked for: a vocabulary has a million
values that most readers never look at.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.strict import show

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Bytes to which tensors are aligned where `general.alignment` does not say."""

MAX_HEADER = 1 << 28
MAX_ITEMS = 1 << 16
"""Metadata entries, and tensors."""
MAX_ARRAY = 1 << 24
_MAX_KEY = 1 << 16
_MAX_TEXT = 1 << 24
_MAX_NAME = 63  # GGML_MAX_NAME less its final zero
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20
_MAX_BYTES = 1 << 50

# Metadata types by number: name and struct letter.
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    _BOOL: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}

# Tensor types by number (ggml.h): name, elements and bytes of a block. Missing numbers were withdrawn.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

# What llama.cpp multiplies with, or adds: other types end the process in the middle of a run.
_VECTOR = "F32"
_NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")

_HINT = "the file is damaged or was not made for llama.cpp: copy it again from where it came from"


@dataclass(frozen=True)
class Array:
    """An array of the metadata: type of its items, how many, and where its bytes lie in the file."""

    type: str
    count: int
    start: int
    size: int

    def __str__(self) -> str:
        return f"an array of {self.count} of type {self.type}"


Value = bool | int | float | str | Array


@dataclass(frozen=True)
class Tensor:
    """A tensor: dimensions with the innermost first, type, and its bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """How many weights it holds."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Header:
    """What a GGUF file says of itself; `data` is where tensors begin, `size` the file's bytes."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    data: int
    size: int

    def text(self, key: str) -> str:
        """A text, empty when there is none."""
        found = self.metadata.get(key)
        return found if isinstance(found, str) else ""

    def largest(self, key: str) -> int | None:
        """A whole number, or the largest of one per layer; None when there is none."""
        found = self.metadata.get(key)
        if isinstance(found, Array) and found.type not in ("string", "bool") and 0 < found.count <= MAX_ITEMS:
            found = max(self.numbers(found))
        return found if type(found) is int else None

    def numbers(self, array: Array) -> tuple[Any, ...]:
        """The items of an array of numbers or bools."""
        letter = next(letter for name, letter in _SCALARS.values() if name == array.type)
        return struct.unpack(f"<{array.count}{letter}", self._bytes(array))

    def strings(self, array: Array) -> list[bytes]:
        """The items of an array of strings, as they are: nothing says that they are UTF-8."""
        raw, at, found = self._bytes(array), 0, []
        for _ in range(array.count):
            start = at + 8
            at = start + _U64.unpack_from(raw, at)[0]
            found.append(raw[start:at])
        return found

    def _bytes(self, array: Array) -> bytes:
        with self.path.open("rb", buffering=0) as file:
            file.seek(array.start)
            raw = file.read(array.size)
        if len(raw) != array.size:
            raise ArtifactError(f"{self.path}: the file changed while it was read", hint=_HINT)
        return raw

    def error(self, problem: str, hint: str = _HINT) -> ArtifactError:
        """An error about this file."""
        return ArtifactError(f"{self.path}: {problem}", hint=hint)


def read_header(path: Path) -> Header:
    """Read and check a GGUF file's header, where its tensors lie included; the data itself is not looked at.

    Raises ArtifactError for anything that is not as the format says, without reading more than MAX_HEADER bytes.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactError(f"{path}: expected a GGUF file, found something else", hint=_HINT)
        return _read(str(path), status.st_size, status.st_mtime_ns, status.st_ino)
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file", hint="give a .gguf file or an artifact directory") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})", hint="check the path and its permissions") from None


@lru_cache(maxsize=2)  # loading looks twice: for the facts, and before the engine opens
def _read(path: str, size: int, *_: int) -> Header:
    # O_NONBLOCK: a FIFO put there meanwhile must not hang.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb", buffering=0) as file:
        return _Reader(file, size, Path(path)).header()


_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class _Reader:
    """Reads a header from front to back; whatever is wrong is an ArtifactError that says where."""

    def __init__(self, file: Any, size: int, path: Path) -> None:
        self._file = file
        self._size = size
        self._path = path
        self._data = bytearray()  # the file's first bytes, as far as they were needed
        self._at = 0

    def error(self, problem: str, hint: str = _HINT) -> ArtifactError:
        return ArtifactError(f"{self._path}: {problem}", hint=hint)

    def header(self) -> Header:
        version = self._version()
        tensor_count = self._count("tensors", MAX_ITEMS)
        metadata: dict[str, Value] = {}
        for place in range(self._count("metadata entries", MAX_ITEMS)):
            key = self._text(f"the name of metadata entry {place}", _MAX_KEY)
            if not key or not key.isprintable():
                raise self.error(f"metadata entry {place}: expected a printable name, found {show(key)}")
            if key in metadata:
                raise self.error(f"metadata entry {show(key)} is there twice")
            metadata[key] = self._value(key, self._number(_U32, f"the type of {show(key)}"))
        alignment = self._alignment(metadata)
        tensors = [self._tensor(place) for place in range(tensor_count)]
        data = -(-self._at // alignment) * alignment
        self._check_places(tensors, alignment, data)
        return Header(self._path, version, metadata, {each.name: each for each in tensors}, data, self._size)

    def _version(self) -> int:
        start = self._need(min(4, self._size), "its first bytes")
        found = bytes(self._data[start : self._at])
        if found != MAGIC:
            raise self.error(
                f"not a GGUF file: expected it to begin with {show(MAGIC.decode())}, "
                f"found {show(found.decode('latin-1'))}",
                "give a .gguf file; for a checkpoint (safetensors) run `edgeship export` first",
            )
        version = self._number(_U32, "its version")
        if version not in VERSIONS:
            other = not version & 0xFFFF
            hint = "it was written for a big-endian machine" if other else "convert the model again with a current tool"
            known = " and ".join(map(str, VERSIONS))
            raise self.error(f"GGUF version {version:#x}; versions {known} of little-endian machines can be read", hint)
        return version

    def _count(self, what: str, limit: int) -> int:
        count = self._number(_U64, f"the number of {what}")
        if count > limit:
            raise self.error(f"expected at most {limit} {what}, found {count}")
        return count

    def _alignment(self, metadata: Mapping[str, Value]) -> int:
        found = metadata.get("general.alignment", ALIGNMENT)
        if type(found) is not int or not 8 <= found <= _MAX_ALIGNMENT or found & (found - 1):
            raise self.error(f"general.alignment: expected a power of two from 8, found {show(str(found))}")
        return found

    def _value(self, key: str, kind: int) -> Value:
        if kind == _STRING:
            return self._text(show(key), _MAX_TEXT)
        if kind in _SCALARS:
            _, letter = _SCALARS[kind]
            size = struct.calcsize(f"<{letter}")
            start = self._need(size, show(key))
            if kind == _BOOL and self._data[start] > 1:
                raise self.error(f"{show(key)}: expected 0 or 1 for a bool, found {self._data[start]}")
            value: Value = struct.unpack_from(f"<{letter}", self._data, start)[0]
            return value
        if kind != _ARRAY:
            raise self.error(f"{show(key)}: there is no metadata type {kind}")
        return self._array(key)

    def _array(self, key: str) -> Array:
        kind = self._number(_U32, show(key))
        count = self._number(_U64, show(key))
        if kind != _STRING and kind not in _SCALARS:
            what = "an array of arrays" if kind == _ARRAY else f"an array of type {kind}"
            raise self.error(f"{show(key)}: {what}, which llama.cpp does not read")
        if count > MAX_ARRAY:
            raise self.error(f"{show(key)}: expected at most {MAX_ARRAY} items, found {count}")
        start = self._at
        if kind == _STRING:
            self._skip_strings(count, show(key))
            return Array("string", count, start, self._at - start)
        name, letter = _SCALARS[kind]
        self._need(count * struct.calcsize(f"<{letter}"), show(key))
        return Array(name, count, start, self._at - start)

    def _skip_strings(self, count: int, what: str) -> None:
        """Step from length to length; a loop of its own because a vocabulary takes 300,000 steps."""
        unpack, done = _U64.unpack_from, 0
        while done < count:
            at, data = self._at, self._data
            with suppress(struct.error, OverflowError):  # where the bytes at hand end
                while done < count:
                    at += 8 + unpack(data, at)[0]
                    done += 1
            self._at = at
            self._need(0 if done == count else 8, what)
            self._at = at

    def _tensor(self, place: int) -> Tensor:
        name = self._text(f"the name of tensor {place}", _MAX_NAME)
        if not name or not name.isprintable():
            raise self.error(f"tensor {place}: expected a printable name, found {show(name)}")
        what = f"tensor {show(name)}"
        dims = self._number(_U32, what)
        if not 1 <= dims <= _MAX_DIMS:
            raise self.error(f"{what}: expected 1 to {_MAX_DIMS} dimensions, found {dims}")
        shape = tuple(self._number(_U64, what) for _ in range(dims))
        kind = self._number(_U32, what)
        offset = self._number(_U64, what)
        if kind not in TYPES:
            hint = "a newer edgeship-runtime and llama-cpp-python may know it; older types were withdrawn"
            raise self.error(f"{what}: there is no tensor type {kind}", hint)
        type_name, block, block_size = TYPES[kind]
        if 0 in shape or prod(shape) > _MAX_BYTES:
            raise self.error(f"{what}: {' x '.join(map(str, shape))} is not a size it can have")
        vector = prod(shape) == max(shape)
        if type_name in _NO_WEIGHTS or (vector and type_name != _VECTOR):
            expected = _VECTOR if vector else "a type of weights"
            raise self.error(f"{what}: {type_name} is not a type it can have, expected {expected}")
        if shape[0] % block:
            raise self.error(f"{what}: rows of {shape[0]} do not divide into blocks of {block}, which {type_name} has")
        return Tensor(name, shape, type_name, offset, prod(shape) // block * block_size)

    def _check_places(self, tensors: list[Tensor], alignment: int, data: int) -> None:
        """llama.cpp takes tensors in the order of their data only, without gaps but for alignment."""
        expected, seen = 0, set()
        for tensor in tensors:
            what = f"tensor {show(tensor.name)}"
            if tensor.name in seen:
                raise self.error(f"{what} is there twice")
            seen.add(tensor.name)
            if tensor.offset % alignment:
                raise self.error(f"{what}: offset {tensor.offset} is not a multiple of the alignment, {alignment}")
            if tensor.offset != expected:
                how = "overlaps the tensor before it" if tensor.offset < expected else "leaves a gap before it"
                raise self.error(f"{what} {how}: its offset is {tensor.offset}, expected {expected}")
            end = data + tensor.offset + tensor.size
            if end > self._size:
                found = f"{what} ends at byte {end} and the file has {self._size}: it was cut short"
                raise self.error(found, "copy or download the file again")
            expected += -(-tensor.size // alignment) * alignment

    def _number(self, form: struct.Struct, what: str) -> int:
        start = self._need(form.size, what)
        number: int = form.unpack_from(self._data, start)[0]
        return number

    def _text(self, what: str, limit: int) -> str:
        length = self._number(_U64, what)
        if length > limit:
            raise self.error(f"{what}: expected at most {limit} bytes of text, found {length}")
        start = self._need(length, what)
        try:
            return bytes(self._data[start : self._at]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what}: not UTF-8 text (byte {error.start})") from None

    def _need(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they begin; they are in `_data` then."""
        start, end = self._at, self._at + count
        if end > len(self._data):
            if end > self._size:
                raise self.error(f"it ends inside {what}: it was cut short, or says too much", _HINT)
            if end > MAX_HEADER:
                raise self.error(f"the header is larger than {MAX_HEADER >> 20} MB, which no model needs ({what})")
            while len(self._data) < end:
                more = self._file.read(max(end, 2 * len(self._data), 1 << 20) - len(self._data))
                if not more:
                    raise self.error(f"it ends inside {what}: it was cut short")
                self._data += more
        self._at = end
        return start
