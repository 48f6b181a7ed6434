"""Files that are kept for another run: there under their name when they are whole, and absent where damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, in a directory that is made; it takes the name `path` when the block ends without an error.

    Its bytes are on the disk by then, whatever becomes of the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.half")
    try:
        with open(half, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def keep_json(path: Path, value: Any) -> None:
    """Write a JSON value for `read_json`."""
    with written_whole(path) as file:
        file.write(json.dumps(value).encode())


def read_json(path: Path) -> Any:
    """The JSON value in a file; None where there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
