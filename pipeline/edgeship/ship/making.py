"""What making any bundle begins and ends with: the artifact checked, one maker at a time, all or nothing published."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edgeship.errors import ArtifactError, ResourceError, UsageError
from edgeship.progress import Progress
from edgeship.ship import archive
from edgeship_runtime.engines import FORMAT_OF
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.manifest import FORMATS, MANIFEST_NAME, FileEntry, Manifest, check_files, locate, read_manifest

ENGINES = tuple(FORMAT_OF)


@dataclass(frozen=True)
class Source:
    """The artifact a bundle is made from."""

    directory: Path
    manifest: Manifest


@dataclass(frozen=True)
class Bundle:
    """A bundle that was made: its folder, its archive (None where not asked for), its files, and bytes by part."""

    path: Path
    archive: Path | None
    name: str
    device: str
    engine: str
    digest: str
    files: Mapping[str, FileEntry]
    sizes: Mapping[str, int]
    audit: str = ""
    """What npm says of the packages in a site; empty for bundles without any."""

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """What `bundle --json` prints."""
        values = {
            "bundle": str(self.path),
            "archive": str(self.archive) if self.archive else None,
            "archive_bytes": self.archive.stat().st_size if self.archive else None,
            "name": self.name,
            "device": self.device,
            "engine": self.engine,
            "digest": self.digest,
            "size_bytes": self.size,
            "sizes": dict(self.sizes),
        }
        return values | ({"audit": self.audit} if self.audit else {})


def check_engine(engine: str | None) -> None:
    """Raise UsageError for the name of no engine."""
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"there is no engine {engine[:40]!r}; there are: {', '.join(ENGINES)}.", hint="--engine ort")


def read_source(artifact: Path, engines: Sequence[str], device: str, progress: Progress) -> tuple[Source, str]:
    """The artifact, checked byte by byte, and the first of `engines` that runs it; raises ArtifactError, UsageError."""
    try:
        directory = locate(artifact, tuple(FORMAT_OF[e] for e in engines))
        manifest = read_manifest(directory)
        if not manifest.sealed:
            hint = "`edgeship export` makes artifacts that can be verified on the device"
            raise ArtifactError(f"{directory}: expected {MANIFEST_NAME}, found none; nothing was made.", hint=hint)
        runs = [e for e in engines if FORMAT_OF[e] == manifest.format]
        if not runs:
            raise UsageError(
                f"{directory}: an artifact of the format {manifest.format}, which {' and '.join(engines)} "
                f"{'does' if len(engines) == 1 else 'do'} not run on {device}; nothing was made.",
                hint=f"the formats of an artifact lie beside each other: {', '.join(FORMATS)}",
            )
        progress.start(0, f"checking {directory}")
        problems = check_files(directory, manifest)
        progress.finish()
    except EdgeshipRuntimeError as error:
        raise ArtifactError(error.message, hint=error.hint) from error
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        hint = "make it again: edgeship export ... --force"
        raise ArtifactError(f"{directory}: not intact: {problems[0]}{more}; nothing was made.", hint=hint)
    return Source(directory, manifest), runs[0]


def safe_name(name: str) -> str:
    """The artifact's name as one that every shell and file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "artifact"


def pack(folder: Path, kind: archive.Kind | None, progress: Progress) -> Path | None:
    """The folder as an archive beside it; None where none is asked for."""
    if kind is None:
        return None
    path = folder.with_name(f"{folder.name}.tar.{kind}")
    progress.start(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()), path.name)
    archive.write_archive(folder, path, kind, progress.advance)
    progress.finish()
    return path


def publish(folder: Path, packed: Path | None, out: Path) -> tuple[Path, Path | None]:
    """Move folder and archive from the scratch folder into `out`, in the place of older ones; raises ArtifactError."""
    final, old = out / folder.name, folder.with_name("old")
    if final.is_symlink() or (final.exists() and not (final / "bundle.json").is_file()):
        hint = "move it away, or pass another --out"
        raise ArtifactError(f"{final}: exists and is no bundle; nothing was made.", hint=hint)
    if final.exists():
        final.rename(old)
    folder.rename(final)
    for kind in archive.KINDS:  # one of an older bundle would not be of this folder
        (out / f"{final.name}.tar.{kind}").unlink(missing_ok=True)
    return final, packed.rename(out / packed.name) if packed else None


@contextmanager
def alone(out: Path, title: str) -> Iterator[None]:
    """Hold the lock of one bundle, and remove what a command that was killed has left of it."""
    path = out / f".{title}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ArtifactError(f"{out}: another command is making {title} right now.", hint="wait for it to end") from None
    try:
        for left in out.glob(f".{title}.*"):
            if left.is_dir():
                shutil.rmtree(left)
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def reported(out: Path) -> Iterator[None]:
    """Turn errors of the file system into ResourceError and ArtifactError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"{out}: the disk is full; nothing was made."
            raise ResourceError(text, hint="free some space, or pass another --out") from error
        text = f"{error.filename or out}: {error.strerror or error}; nothing was made."
        raise ArtifactError(text, hint="check the path, or pass another --out") from error
