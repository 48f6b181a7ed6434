"""The files of an artifact directory: which names are safe, what each holds, and whether it still holds that."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.strict import show

MAX_FILES = 1024
MAX_NAME = 240
"""Characters in a name: artifacts are copied to FAT cards and Windows disks, whose paths end near 260."""

_CHUNK = 1 << 20
_LINK_HINT = (
    "copy the directory with its links resolved (cp -rL), or download it with --local-dir: hub caches hold links"
)
# Names that open a device on Windows whatever their extension; artifacts are copied there too.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; one call at a time, from several threads."""


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file: size in bytes and the sha256 of its bytes in lower-case hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class FileProblem:
    """One way in which a directory differs from its manifest."""

    name: str
    kind: Literal["missing", "size", "hash", "unnamed", "link", "unreadable"]
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


def name_problem(name: str) -> str:
    """Why `name` cannot name a file of an artifact on every system it may be copied to; empty when it can."""
    if not name or len(name) > MAX_NAME:
        return f"expected 1 to {MAX_NAME} characters"
    if "\\" in name or ":" in name:
        return "backslashes and colons mean a drive or a directory on some systems"
    if not name.isprintable() or any(letter in '<>"|?*' for letter in name):
        return "it holds characters that not every file system takes"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "expected a path inside the directory, without '..', '.', '//' or a leading '/'"
        if part[-1] in ". " or part[0] == " " or part.split(".")[0].casefold() in _DEVICES:
            return f"part {show(part)} means something else on Windows"
    return ""


def names_problem(names: Iterable[str]) -> str:
    """Why these names cannot lie in one directory together on every system; empty when they can."""
    seen: dict[str, str] = {}
    for name in names:
        problem = name_problem(name)
        if problem:
            return f"file name {show(name)}: {problem}"
        folded = _fold(name)
        if folded in seen:
            return f"file names {show(seen[folded])} and {show(name)} are one file where case does not count"
        seen[folded] = name
    for folded, name in seen.items():
        parts = folded.split("/")
        if any("/".join(parts[:i]) in seen for i in range(1, len(parts))):
            return f"file name {show(name)} uses another named file as a directory"
    return ""


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def resolve_inside(directory: Path, name: str) -> Path:
    """The path of `name` under `directory`; raises ArtifactError when it is unsafe or a link leads out of there."""
    problem = name_problem(name)
    if problem:
        raise ArtifactError(f"{directory}: file name {show(name)}: {problem}", hint="do not use this artifact")
    path = directory / name
    try:
        inside = path.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError):  # a loop of links
        inside = False
    if not inside:
        raise ArtifactError(f"{path}: a link leads out of the artifact directory; it is not followed", hint=_LINK_HINT)
    return path


def describe_file(path: Path, progress: Callable[[int], None] | None = None) -> FileEntry:
    """Size and sha256 of a file, read in chunks of 1 MiB; `progress` gets the bytes of each chunk. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
            if progress:
                progress(count)
    return FileEntry(size, digest.hexdigest())


def walk(directory: Path) -> Iterator[str]:
    """The '/'-separated names of everything in `directory` that is not a directory, sorted; links are not followed."""
    for root, folders, files in os.walk(directory, followlinks=False):
        folders.sort()
        linked = [name for name in folders if (Path(root) / name).is_symlink()]
        for name in sorted([*files, *linked]):
            yield (Path(root) / name).relative_to(directory).as_posix()


def collect_files(directory: Path, skip: Iterable[str] = (), threads: int = 4) -> dict[str, FileEntry]:
    """Describe every file under `directory` but `skip`, sorted by name: what a manifest says of it. Raises OSError."""
    names = sorted(set(walk(directory)) - set(skip))
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        return dict(zip(names, pool.map(lambda name: describe_file(directory / name), names), strict=True))


def compare_files(
    directory: Path, files: Mapping[str, FileEntry], *, unlisted: Iterable[str], progress: Progress | None, threads: int
) -> list[FileProblem]:
    """Every difference between `directory` and `files`, by name; `unlisted` names need no entry. Raises nothing.

    Sizes are compared before hashes, so a file cut short is found without reading it.
    """
    counter = _Counter(sum(entry.size for entry in files.values()), progress)
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        # Largest first: the last thread to finish is then not the one that began the weights last.
        order = sorted(files, key=lambda name: -files[name].size)
        found = list(pool.map(lambda name: _compare(directory, name, files[name], counter), order))
    known = {*files, *unlisted}
    problems = [problem for problem in found if problem]
    problems += [
        FileProblem(name, "unnamed", "the file is not named in the manifest")
        for name in walk(directory)
        if name not in known
    ]
    return sorted(problems, key=lambda problem: problem.name)


def _compare(directory: Path, name: str, entry: FileEntry, counter: _Counter) -> FileProblem | None:
    try:
        path = resolve_inside(directory, name)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return FileProblem(name, "unreadable", "expected a regular file, found something else")
        if status.st_size != entry.size:
            found = f"expected {entry.size} bytes, found {status.st_size}"
            return FileProblem(name, "size", f"{found}: the file was cut short or replaced")
        if describe_file(path, counter.add).sha256 != entry.sha256:
            return FileProblem(name, "hash", "the bytes are not those that were sealed (sha256 differs)")
    except ArtifactError as error:
        return FileProblem(name, "link", error.message)
    except FileNotFoundError:
        return FileProblem(name, "missing", "the file is named in the manifest and does not exist")
    except OSError as error:
        return FileProblem(name, "unreadable", f"cannot be read ({error.strerror or error})")
    return None


class _Counter:
    """Adds up bytes from several threads and reports the sum, one report at a time."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress, self._lock = 0, total, progress, threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress:
                self._progress(min(self._done, self._total), self._total)
