"""What a bundle folder holds, as its `bundle.json` says and as this machine finds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgeship.errors import ArtifactError
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.files import FileEntry, describe_file, names_problem, resolve_inside
from edgeship_runtime.manifest import Manifest, read_manifest
from edgeship_runtime.strict import Fields, read_json

NAME = "bundle.json"
ARTIFACT = "artifact"
INSTALLER = "install.sh"

_MAX_BYTES = 1 << 22
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # names directories on the board
_MEMBERS = ("name", "digest", "engine", "device", "target", "needs_mb", "files")
_HINT = "make the bundle again: edgeship bundle ARTIFACT --device DEVICE"


@dataclass(frozen=True)
class Contents:
    """One bundle folder, every file checked against `bundle.json`."""

    path: Path
    name: str
    device: str
    engine: str
    digest: str
    """Names the version on the board: of everything that is installed."""
    artifact_digest: str
    """sha256 of the artifact's manifest."""
    system: str
    arch: str
    pythons: tuple[str, ...]
    needs_bytes: int
    """What an installation takes on the board's disk, beside the bundle."""
    files: Mapping[str, FileEntry]
    manifest: Manifest

    @property
    def digest12(self) -> str:
        return self.digest[:12]

    @property
    def wheel(self) -> str:
        """The file name of the runtime's own wheel."""
        return next(name for name in self.files if name.startswith("wheels/edgeship_runtime-"))


def is_bundle(path: Path) -> bool:
    """Whether `path` is a bundle folder, by its `bundle.json`."""
    return (path / NAME).is_file()


def read_contents(path: Path) -> Contents:
    """Read and check a bundle folder; raises ArtifactError."""
    try:
        return _read(path)
    except EdgeshipRuntimeError as error:
        raise ArtifactError(error.message, hint=_HINT) from None
    except OSError as error:
        raise ArtifactError(f"{error.filename}: cannot be read: {error.strerror}", hint=_HINT) from None


def _read(path: Path) -> Contents:
    top = Fields(read_json(path / NAME, _MAX_BYTES), str(path / NAME), "", _MEMBERS, open=True)
    listed = top.mapping("files", 2048)
    problem = names_problem([NAME, *listed])
    if problem:
        raise top.error("files", problem, _HINT)
    entries = {}
    for name in listed:
        entry = Fields(listed[name], str(path / NAME), f"files.{name}", ("size", "sha256"), open=True)
        entries[name] = FileEntry(entry.integer("size", 0, 1 << 50), entry.text("sha256", limit=64))
    found = _described(path, [*entries, NAME])
    for name, expected in entries.items():
        if found[name] != expected:
            said = f"expected {expected.size} bytes of sha256 {expected.sha256[:12]}…, found {found[name].size} bytes"
            raise top.error("files", f"{name} is not what the bundle was made with: {said}", _HINT)
    for needed in (INSTALLER, f"{ARTIFACT}/edgeship.json"):
        if needed not in entries:
            raise top.error("files", f"{needed} is missing, and a validation needs it", _HINT)
    if not any(name.startswith("wheels/edgeship_runtime-") for name in entries):
        raise top.error("files", "the runtime's wheel is missing, and a validation needs it", _HINT)
    name, digest = top.text("name", limit=100), top.text("digest", limit=64)
    if not re.fullmatch("[0-9a-f]{12,64}", digest):
        raise top.error("digest", "expected at least 12 hex digits", _HINT)
    if not _SAFE.fullmatch(name):
        raise top.error("name", "expected letters, digits, '.', '_' and '-': it names a directory on the board", _HINT)
    target = top.object("target", ("os", "arch", "python"), open=True)
    return Contents(
        path=path,
        name=name,
        device=top.text("device", limit=200),
        engine=top.text("engine", choices=("ort", "llamacpp")),
        digest=digest,
        artifact_digest=found[f"{ARTIFACT}/edgeship.json"].sha256,
        system=target.text("os", limit=40),
        arch=target.text("arch", limit=40),
        pythons=target.texts("python", limit=20),
        needs_bytes=top.integer("needs_mb", 0, 1 << 30) * 1_000_000,
        files=found,
        manifest=read_manifest(path / ARTIFACT),
    )


def _described(path: Path, names: list[str]) -> dict[str, FileEntry]:
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: describe_file(resolve_inside(path, name)), names), strict=True))
