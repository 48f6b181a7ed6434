"""Where checkpoints come from: a hub or a directory becomes a local directory and the revision it holds.

A host is a module with one function, `fetch(repo, revision, want, progress)`, listed in `HOSTS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgeship.checkpoint import huggingface, modelscope
from edgeship.checkpoint.transfer import Progress, Want, no_progress
from edgeship.errors import SourceError


class Source(Protocol):
    """What a recipe says about where its checkpoint lies (`recipe.Source`)."""

    @property
    def host(self) -> str: ...
    @property
    def repo(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def path(self) -> str | None: ...  # absolute or relative to the working directory; only with host "local"


class Host(Protocol):
    """A hub: gives a directory with the files wanted, and the commit that the revision stood for."""

    def __call__(self, repo: str, revision: str, want: Want, progress: Progress) -> tuple[Path, str]: ...


HOSTS: dict[str, Host] = {"huggingface": huggingface.fetch, "modelscope": modelscope.fetch}


def fetch(source: Source, want: Want = "all", *, progress: Progress | None = None) -> tuple[Path, str]:
    """The local directory that holds the source's checkpoint, and the revision it resolved to ("local" for a path).

    `want="config"` brings config.json only. `progress(file, bytes done, bytes in all)` is called while a file is
    downloaded. Raises SourceError when the host does not give the files, CheckpointError when what it has cannot be
    exported (pickles only, missing shards, ...; before any weight is downloaded), ResourceError when the disk is full.
    """
    if source.host == "local":
        return _local(source.path), "local"
    host = HOSTS.get(source.host)
    if host is None:
        raise SourceError(
            f"source.host: found {source.host!r}, known: {', '.join(HOSTS)}, local.", hint="name one of the known hosts"
        )
    return host(source.repo, source.revision, want, progress or no_progress)


def _local(path: str | None) -> Path:
    if path is None:
        raise SourceError("source.path: expected a directory, found none.", hint="a local source needs its path")
    directory = Path(path)
    try:
        found = "" if directory.is_dir() else "a file" if directory.exists() else "nothing of that name"
    except OSError as e:
        found = e.strerror or str(e)
    if found:
        raise SourceError(
            f"{path}: expected the directory of a checkpoint, found {found}.",
            hint="give the directory that holds config.json, tokenizer.json and the safetensors files",
        )
    return directory
