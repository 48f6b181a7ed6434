"""A bundle for a browser as `edgeship serve-web` reads it: the files it may serve, and what results are judged by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from edgeship.device import Device
from edgeship.errors import ArtifactError
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.files import FileEntry, names_problem, resolve_inside
from edgeship_runtime.manifest import MANIFEST_NAME, Manifest, parse_manifest
from edgeship_runtime.strict import Fields, read_bytes, read_json, show

NAME = "bundle.json"
SITE = "site.json"
KIND = "site"

_MAX_BYTES = 1 << 22
_HINT = "make the bundle again: edgeship bundle ARTIFACT --device phone-web"
_MEMBERS = ("schema", "kind", "name", "device", "engine", "digest", "artifact", "files")


@dataclass(frozen=True)
class Site:
    """A bundle folder; `files` are all that may be served.

    `artifact_digest` is the sha256 of the artifact's manifest, `site_digest` that of artifact and engine in site.json.
    """

    path: Path
    device: Device
    engine: Literal["ort", "llamacpp"]
    digest: str
    artifact: str
    artifact_digest: str
    site_digest: str
    files: Mapping[str, FileEntry]
    manifest: Manifest


def read_site(path: Path) -> Site:
    """Read a bundle folder; its files have to be there with their sizes. Raises ArtifactError."""
    try:
        return _read(path)
    except EdgeshipRuntimeError as error:
        raise ArtifactError(error.message, hint=_HINT) from None
    except OSError as error:
        text = f"{error.filename or path}: cannot be read: {error.strerror or error}."
        raise ArtifactError(text, hint=_HINT) from None


def _read(path: Path) -> Site:
    where = path / NAME
    value = read_json(where, _MAX_BYTES)
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind != KIND:
        raise ArtifactError(f"{where}: expected a bundle for a browser, found another (kind {show(kind)}).", hint=_HINT)
    top = Fields(value, str(where), "", _MEMBERS, open=True)
    artifact = top.object("artifact", ("name", "format", "digest"), open=True)
    try:
        device = Device.model_validate_json(json.dumps(value["device"]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{where}: device: {place}: {first['msg']}.", hint=_HINT) from None
    files = _files(path, top)
    digest = artifact.text("digest", limit=64)
    return Site(
        path=path,
        device=device,
        engine="llamacpp" if top.text("engine", choices=("ort", "llamacpp")) == "llamacpp" else "ort",
        digest=top.text("digest", limit=64),
        artifact=artifact.text("name"),
        artifact_digest=digest,
        site_digest=_site_digest(path, files),
        files=files,
        manifest=_manifest(path, files, digest),
    )


def _files(path: Path, top: Fields) -> dict[str, FileEntry]:
    listed = top.mapping("files", 4096)
    problem = names_problem([NAME, *listed])
    if problem:
        raise top.error("files", problem, _HINT)
    inner = top.object("files", (), tuple(listed))
    files = {}
    for name in listed:
        entry = inner.object(name, ("size", "sha256"))
        files[name] = FileEntry(entry.integer("size", 0, 1 << 50), entry.text("sha256", limit=64))
        file = resolve_inside(path, name)
        found = file.stat().st_size if file.is_file() else None
        if found != files[name].size:
            text = "it is missing" if found is None else f"expected {files[name].size} bytes, found {found}"
            raise ArtifactError(f"{file}: {text}.", hint=_HINT)
    return files


def _site_digest(path: Path, files: Mapping[str, FileEntry]) -> str:
    where = path / SITE
    if SITE not in files:
        raise ArtifactError(f"{path}: expected {SITE}, found none.", hint=_HINT)
    return Fields(read_json(where, _MAX_BYTES), str(where), "", ("digest",), open=True).text("digest", limit=64)


def _manifest(path: Path, files: Mapping[str, FileEntry], digest: str) -> Manifest:
    plain = f"model/{MANIFEST_NAME}"
    name = plain if plain in files else f"{plain}.000"  # of a bundle whose parts are files
    if name not in files or files[name].sha256 != digest:
        raise ArtifactError(
            f"{path}: expected the artifact's manifest in {name}, found none of that digest.", hint=_HINT
        )
    return parse_manifest(read_bytes(path / name, _MAX_BYTES), str(path / name))
