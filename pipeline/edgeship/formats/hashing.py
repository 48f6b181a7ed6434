"""sha256 of a file while it is written, so that its bytes are not waited for a second time."""

from __future__ import annotations

import hashlib
import threading

from edgeship.formats.base import DataFile

BLOCK = 1 << 20


class TrailingHash:
    """sha256 of a growing file, computed in a thread that follows the bytes known to be final."""

    def __init__(self, data: DataFile) -> None:
        self._data, self._final, self._stop = data, 0, False
        self._hash = hashlib.sha256()
        self._changed = threading.Condition()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._follow, name="hash", daemon=True)
        self._thread.start()

    def advance(self, final: int) -> None:
        """All bytes before `final` will not change any more."""
        with self._changed:
            self._final = max(self._final, final)
            self._changed.notify()

    def finish(self) -> str:
        """The digest of the whole file, once everything is final."""
        self.advance(self._data.size)
        self._thread.join()
        if self._error:
            raise self._error
        return self._hash.hexdigest()

    def abandon(self) -> None:
        """Stop following; harmless after `finish`."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        self._thread.join()

    def _wait_past(self, at: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._stop or self._final > at)
            return self._final

    def _follow(self) -> None:
        at, size = 0, self._data.size
        try:
            while at < size and not self._stop:
                final = self._wait_past(at)
                while at < final and not self._stop:
                    block = self._data.read(at, min(BLOCK, final - at))
                    if not block:
                        raise OSError(f"the file ends at byte {at}, expected {size}: something else changed it")
                    self._hash.update(block)
                    at += len(block)
        except OSError as error:
            self._error = error
