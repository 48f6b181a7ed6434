"""A text file as a string that is never in memory whole: it is read once, and then a piece at a time, at any place."""

from __future__ import annotations

import codecs
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from io import IncrementalNewlineDecoder
from pathlib import Path

BYTES = 1 << 18  # of the file in memory


class Pieces:
    """Characters of a UTF-8 file, a byte order mark left out and every line ending with a newline alone."""

    def __init__(self, file: Path) -> None:
        """Raises OSError, and UnicodeDecodeError whose `start` is a byte of the file."""
        self._file = file
        self._starts = array("I")  # characters in front of each piece
        self._states = list[tuple[bytes, int]]()  # the decoder's, in front of each piece
        self._held = -1, ""  # the piece that was read last, by its number
        self._length, decoder, last = 0, _decoder(), False
        with open(file, "rb") as opened:
            while not last:
                raw = opened.read(BYTES)
                last = len(raw) < BYTES
                self._starts.append(self._length)
                self._states.append(decoder.getstate())
                try:
                    self._length += len(decoder.decode(raw, last))
                except UnicodeDecodeError as error:
                    error.start += BYTES * (len(self._starts) - 1) - len(self._states[-1][0])
                    raise

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> str:
        a, b, _ = part.indices(self._length)
        index, out = bisect_right(self._starts, a) - 1, list[str]()
        while index < len(self._starts) and self._starts[index] < b:
            start = self._starts[index]
            out.append(self._piece(index)[max(0, a - start) : b - start])
            index += 1
        return "".join(out)

    def __iter__(self) -> Iterator[str]:
        """All of it, piece by piece."""
        return map(self._piece, range(len(self._starts)))

    def _piece(self, index: int) -> str:
        if self._held[0] != index:
            decoder = _decoder()
            decoder.setstate(self._states[index])
            with open(self._file, "rb") as opened:
                opened.seek(BYTES * index)
                raw = opened.read(BYTES)
            self._held = index, decoder.decode(raw, index == len(self._starts) - 1)
        return self._held[1]


def _decoder() -> IncrementalNewlineDecoder:
    return IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
