"""Archives of a folder that depend on nothing but its files: same names and bytes, same archive."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal

from edgeship.errors import DependencyError

Kind = Literal["gz", "zst"]
KINDS: tuple[Kind, ...] = ("gz", "zst")

TIME = 315532800  # 1980-01-01, the earliest time a zip file can hold: wheels and archives carry the same
LEVEL = {"gz": 6, "zst": 10}  # wheels and weights hardly shrink; higher levels cost minutes for nothing
_CHUNK = 1 << 20


def write_archive(
    folder: Path, path: Path, kind: Kind, advance: Callable[[int, str], None] = lambda size, name: None
) -> None:
    """Write all files of `folder` into the archive `path`, under the folder's own name.

    Names are sorted, times, owners and modes fixed (programs, that is `*.sh`, may be run). `advance` gets the bytes and
    name of each file. Raises OSError, and DependencyError where Python cannot write zstandard.
    """
    with (
        path.open("wb") as raw,
        _compressor(raw, kind) as packed,
        # GNU's format: names of any length and files over 8 GB, read by every tar that boards have.
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT, bufsize=_CHUNK) as archive,
    ):
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = file.relative_to(folder).as_posix()
            entry = tarfile.TarInfo(f"{folder.name}/{name}")
            entry.size = file.stat().st_size
            entry.mtime, entry.mode = TIME, 0o755 if file.suffix == ".sh" else 0o644
            with file.open("rb") as content:
                archive.addfile(entry, content)
            advance(entry.size, name)


@contextmanager
def _compressor(raw: IO[bytes], kind: Kind) -> Iterator[Any]:
    if kind == "gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=LEVEL[kind], mtime=0) as packed:
            yield packed
        return
    compressor = zstandard()
    with compressor(raw) as packed:
        yield packed


def zstandard() -> Callable[[IO[bytes]], Any]:
    """A function that opens a zstandard stream over a file: Python's own (3.14), else the package zstandard's.

    Raises DependencyError where there is neither.
    """
    for module, make in (("compression.zstd", _python_zstd), ("zstandard", _package_zstd)):
        try:
            found = import_module(module)
        except ImportError:
            continue
        return lambda raw, found=found, make=make: make(found, raw)  # type: ignore[misc]
    hint = "pip install zstandard, or use Python 3.14, or write a .tar.gz (--archive gz)"
    raise DependencyError("a .tar.zst needs a Python that can write zstandard; this one cannot.", hint=hint)


def _python_zstd(module: Any, raw: IO[bytes]) -> Any:
    return module.ZstdFile(raw, "wb", level=LEVEL["zst"])


def _package_zstd(module: Any, raw: IO[bytes]) -> Any:
    # One thread: with more the bytes depend on how many there are.
    return module.ZstdCompressor(level=LEVEL["zst"], threads=0).stream_writer(raw, closefd=False)
