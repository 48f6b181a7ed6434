"""What a bundle folder holds, as its `bundle.json` says and as this machine finds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgeship.device import Device
from edgeship.errors import ArtifactError, UsageError
from edgeship_runtime.engines import FORMAT_OF
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.files import FileEntry, describe_file, names_problem, resolve_inside
from edgeship_runtime.manifest import MANIFEST_NAME, Manifest, check_files, locate, read_manifest
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


def read_plain(artifact: Path, device: Device, engine: str | None) -> Contents:
    """Read and check an artifact that needs no bundle, since `device` has a runtime: `files` are its own.

    `engine` None: the first of the device's that the artifact has a format for. Raises ArtifactError, UsageError.
    """
    order = [engine] if engine else [each for each in device.engines if each in FORMAT_OF]
    if not set(order) <= FORMAT_OF.keys():
        raise UsageError(
            f"there is no engine {order[0][:40]!r}; there are: {', '.join(FORMAT_OF)}", hint="--engine ort"
        )
    try:
        path = locate(artifact, tuple(FORMAT_OF[each] for each in order))
        manifest = read_manifest(path)
        problems = check_files(path, manifest) if manifest.sealed else [f"expected {MANIFEST_NAME}, found none"]
        runs = [each for each in order if FORMAT_OF[each] == manifest.format]
        if problems or not runs:
            said = (
                problems[0] if problems else f"of the format {manifest.format}, which {' and '.join(order)} cannot run"
            )
            raise ArtifactError(f"{path}: {said}", hint="make it again: edgeship export ... --force")
        own = describe_file(path / MANIFEST_NAME)
    except EdgeshipRuntimeError as error:
        raise ArtifactError(error.message, hint=error.hint) from None
    return Contents(
        path=path,
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", manifest.name).strip("-.")[:80] or "artifact",  # as a bundle is named
        device=device.name,
        engine=runs[0],
        digest=own.sha256,
        artifact_digest=own.sha256,
        system=device.os,
        arch=device.arch,
        pythons=(),
        needs_bytes=0,
        files={**manifest.files, MANIFEST_NAME: own},
        manifest=manifest,
    )


def _described(path: Path, names: list[str]) -> dict[str, FileEntry]:
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: describe_file(resolve_inside(path, name)), names), strict=True))
