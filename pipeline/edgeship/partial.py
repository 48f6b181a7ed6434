"""An export in progress: a hidden directory, a journal of finished tensors, and one rename at the end.

Beside the final directory `onnx/` lie, while an export runs or after it was cut short:
`.onnx.partial/`, the files so far; `.onnx.journal`, a line per tensor whose bytes are on the disk, also the lock
that keeps a second export out; where another exporter works, `.onnx.scratch/`, what it needs meanwhile; and for a
moment `.onnx.old/`, the artifact that `--force` replaces.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from edgeship.errors import (
    ArtifactError,
    CheckpointError,
    EdgeshipError,
    FidelityError,
    PlanError,
    RecipeError,
    ResourceError,
)


class PartialExport:
    """The directory one format is written into until it is whole. Use as a context manager: it holds the lock."""

    def __init__(self, final: Path, digest: str, *, force: bool = False, resumable: bool = True) -> None:
        """`digest` names the work (plan and checkpoint): a journal of other work is not resumed.

        What is not `resumable` is gone when it is cut short.
        """
        self.final, self.digest, self.force, self.resumable = final, digest, force, resumable
        self.directory = final.with_name(f".{final.name}.partial")
        self._journal_path = final.with_name(f".{final.name}.journal")
        self._old = final.with_name(f".{final.name}.old")
        self._scratch = final.with_name(f".{final.name}.scratch").absolute()
        self._journal: IO[bytes] | None = None
        self._made: list[Path] = []  # directories above the artifact's, the lowest first
        self.finished: set[str] = set()
        self.found = ""  # what an earlier run left: "", "resumed" or "discarded"

    def __enter__(self) -> PartialExport:
        self._made = missing(self.final.parent)
        self.final.parent.mkdir(parents=True, exist_ok=True)
        self._journal = open(self._journal_path, "a+b")
        try:
            self._lock()
            self._recover()
            self._refuse_existing()
            self._resume()
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        assert self._journal is not None
        at_fault = isinstance(error, EdgeshipError) and not isinstance(error, ResourceError)
        if at_fault or (error is not None and not self.resumable):
            self._discard()  # there is nothing to resume
        self._journal.close()

    def _discard(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self._journal_path.unlink(missing_ok=True)
        with suppress(OSError):  # other formats, or the artifact that --force was to replace, may lie here
            for path in self._made or [self.final.parent]:
                path.rmdir()

    def _lock(self) -> None:
        assert self._journal is not None
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtifactError(
                f"{self.final}: another export is writing this artifact right now.",
                hint="wait for it to end, or pass another --out",
            ) from None

    def _recover(self) -> None:
        """A `--force` run that was killed between its two renames left the old artifact aside: put it back.

        What a killed run needed meanwhile is gone.
        """
        shutil.rmtree(self._scratch, ignore_errors=True)
        if self._old.exists() and not self.final.exists():
            self._old.rename(self.final)
        elif self._old.exists():
            shutil.rmtree(self._old)

    def _refuse_existing(self) -> None:
        if self.final.exists() and not self.force:
            raise ArtifactError(
                f"{self.final} exists already; nothing was written.",
                hint="pass --force (make: FORCE=1) to replace it, or another --out",
            )

    def _resume(self) -> None:
        lines = self._read_journal()
        if self.directory.exists() and lines and lines[0] == {"digest": self.digest}:
            self.finished = {key for line in lines[1:] for key in line.get("finished", ())}
            self.found = "resumed"
            return
        if self.directory.exists():
            shutil.rmtree(self.directory)
            self.found = "discarded"
        assert self._journal is not None
        self._journal.truncate(0)
        self.directory.mkdir()
        self._append({"digest": self.digest})

    def _read_journal(self) -> list[dict[str, Any]]:
        assert self._journal is not None
        self._journal.seek(0)
        lines: list[dict[str, Any]] = []
        for raw in self._journal.read().splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                break  # a line cut short by a crash: what it said is done again
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def _append(self, line: dict[str, object]) -> None:
        assert self._journal is not None
        self._journal.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def record(self, keys: Iterable[str]) -> None:
        """Note tensors whose bytes are synced to the disk."""
        keys = list(keys)
        self.finished.update(keys)
        if keys:
            self._append({"finished": keys})

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for what does not go into the artifact, as an absolute path; gone at the end."""
        self._scratch.mkdir()
        try:
            yield self._scratch
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def publish(self) -> None:
        """Make the directory the artifact: sync everything in it, then rename it into place."""
        for path in sorted(self.directory.rglob("*"), reverse=True):
            sync(path)
        sync(self.directory)
        if self.final.exists():
            self.final.rename(self._old)
        self.directory.rename(self.final)
        sync(self.final.parent)
        if self._old.exists():
            shutil.rmtree(self._old)
        self._journal_path.unlink(missing_ok=True)


@contextmanager
def kept_for_another_run(directory: Path) -> Iterator[Path]:
    """Where an export keeps what it found out: gone when it ends or its input is at fault, there if it is cut short.

    What an earlier run left stays where the mistake has nothing to do with it, and so does what another export uses at
    the same time. Empty directories that were made for it are gone in any case.
    """
    made = missing(directory)
    directory.mkdir(parents=True, exist_ok=True)
    before = set(directory.iterdir())
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems know no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield directory
    except (RecipeError, PlanError, CheckpointError, FidelityError) as refusal:
        spared = set[Path]() if isinstance(refusal, FidelityError) else before
        with suppress(OSError):  # others hold it too
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in set(directory.iterdir()) - spared:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            directory.rmdir()
        raise
    else:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(descriptor)
        for path in made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


def missing(directory: Path) -> list[Path]:
    """The directory and those above it, as far as they are not there yet."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def sync(path: Path) -> None:
    """fsync a file or directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
