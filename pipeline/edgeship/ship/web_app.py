"""The browser app: built from its sources by npm, once for each state of them, or given as a folder that was built.

Its layout: `index.html sw.js manifest.webmanifest icon.svg assets/*` are the app, `engines/` what computes, and
`engines.json licences.json audit.json` say what is in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

from edgeship.errors import ArtifactError, DependencyError, EdgeshipError, ResourceError, SourceError
from edgeship.progress import Progress
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.files import FileEntry, collect_files, name_problem
from edgeship_runtime.strict import Fields, read_json

NODE = (20, 19)
"""The oldest Node.js that the app's build tool runs on."""
APP = ("index.html", "sw.js", "manifest.webmanifest", "icon.svg")
LEFT_OUT = {"node_modules", "dist", "test", "README.md"}
"""What lies beside the sources and is no part of a build."""
SAYS = ("engines.json", "licences.json", "audit.json")

_PACKAGE = Path(__file__).parents[1]
_REPOSITORY = _PACKAGE.parents[1]

_MAX_JSON = 1 << 22
_BUILD_SECONDS = 900.0
_LAST_LINES = 15  # of a failed build's output


@dataclass(frozen=True)
class Licence:
    """One package whose code is shipped."""

    name: str
    version: str
    licence: str
    text: str


@dataclass(frozen=True)
class App:
    """A built app: its folder, files by name, engine files by format and variant as the app wants them listed."""

    path: Path
    files: Mapping[str, FileEntry]
    engines: Mapping[str, Mapping[str, Any]]
    licences: tuple[Licence, ...]
    audit: Mapping[str, Any]
    digest: str

    @property
    def own(self) -> list[str]:
        """The names of the app itself: neither engines nor what is said of it."""
        return [name for name in self.files if name in APP or name.startswith("assets/")]

    def engine_files(self, form: str) -> list[str]:
        """The names of the engine files for a format."""
        return [name for name in self.files if name.startswith(f"engines/{form}/")]


def find_app(given: Path | None, progress: Progress, cache: Path | None = None) -> App:
    """The app in the folder `given`, or the one built from its sources and kept in `cache`.

    Raises ArtifactError for a folder that is no built app, DependencyError without Node.js, SourceError where its
    packages cannot be had or the build fails.
    """
    return read_app(given if given is not None else _built(sources(), cache or cache_directory(), progress))


def cache_directory() -> Path:
    """Where built apps are kept: `.cache` of the repository, else edgeship's own folder in the user's cache."""
    if (_REPOSITORY / "runtime" / "web" / "package.json").is_file():
        return _REPOSITORY / ".cache" / "web"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeship" / "web"


def sources() -> Path:
    """The folder of the app's sources: of the repository, or inside an installed wheel. Raises DependencyError."""
    for path in (_REPOSITORY / "runtime" / "web", _PACKAGE / "_web"):
        if (path / "package-lock.json").is_file():
            return path
    hint = "make it in a clone of the repository, or pass --app with a folder that was built there"
    raise DependencyError("the sources of the browser app are not installed.", hint=hint)


# a folder that was built


def read_app(path: Path) -> App:
    """Read and check a built app; raises ArtifactError."""
    try:
        missing = [name for name in (*APP, *SAYS) if not (path / name).is_file()]
        if missing:
            raise ArtifactError(f"{path}: no built app: {missing[0]} is missing.", hint=_APP_HINT)
        files = collect_files(path)
        digest = hashlib.sha256("\n".join(f"{n} {e.sha256}" for n, e in sorted(files.items())).encode()).hexdigest()
        audit = read_json(path / "audit.json", _MAX_JSON)
        if not isinstance(audit, dict):
            raise ArtifactError(f"{path / 'audit.json'}: expected an object.", hint=_APP_HINT)
        return App(path, dict(sorted(files.items())), _engines(path, files), _licences(path), audit, digest)
    except EdgeshipRuntimeError as error:
        raise ArtifactError(error.message, hint=_APP_HINT) from None
    except OSError as error:
        text = f"{error.filename or path}: cannot be read: {error.strerror or error}."
        raise ArtifactError(text, hint=_APP_HINT) from None


_APP_HINT = "a built app is what `npm ci && npm run build` leaves in runtime/web/dist"


def _engines(path: Path, files: Mapping[str, FileEntry]) -> dict[str, dict[str, Any]]:
    where = path / "engines.json"
    top = Fields(read_json(where, _MAX_JSON), str(where), "", ("onnx", "gguf"))
    engines: dict[str, dict[str, Any]] = {}
    for form in ("onnx", "gguf"):
        variants = top.mapping(form, 16)
        inner = top.object(form, (), tuple(variants))
        engines[form] = {}
        for variant in variants:
            listed = [inner.inner(item, variant, ("url", "size", "sha256")) for item in inner.items(variant, 16)]
            engines[form][variant] = [_engine_file(item, form, files) for item in listed]
    return engines


def _engine_file(item: Fields, form: str, files: Mapping[str, FileEntry]) -> dict[str, Any]:
    url, size, digest = item.text("url"), item.integer("size", 0, 1 << 40), item.text("sha256", limit=64)
    if name_problem(url) or not url.startswith(f"engines/{form}/") or files.get(url) != FileEntry(size, digest):
        raise item.error("url", f"expected a file of engines/{form}/ with that size and sha256", _APP_HINT)
    return {"url": url, "size": size, "sha256": digest}


def _licences(path: Path) -> tuple[Licence, ...]:
    where = path / "licences.json"
    value = read_json(where, _MAX_JSON)
    if not isinstance(value, list) or not value or len(value) > 1000:
        raise ArtifactError(f"{where}: expected a list of the packages that are shipped.", hint=_APP_HINT)
    members = ("name", "version", "licence", "text")
    found = [Fields(item, str(where), f"[{i}]", members) for i, item in enumerate(value)]
    return tuple(
        Licence(f.text("name"), f.text("version"), f.text("licence"), f.prose("text", limit=1 << 20)) for f in found
    )


def audit_summary(audit: Mapping[str, Any]) -> str:
    """What `npm audit` said at the build, in a line; "not run" where it could not ask."""
    metadata = audit.get("metadata")
    counts = metadata.get("vulnerabilities") if isinstance(metadata, dict) else None
    if not isinstance(counts, dict):
        return "not run: the registry's audit could not be asked when the app was built"
    found = [f"{n} {level}" for level, n in counts.items() if level != "total" and isinstance(n, int) and n]
    return ", ".join(found) if found else "no known vulnerability"


# built from its sources


def _built(source: Path, cache: Path, progress: Progress) -> Path:
    """The folder that npm made of the sources; made once for each state of them."""
    kept = cache / _digest(source)[:12]
    if (kept / "engines.json").is_file():
        return kept
    npm = _npm()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):
            if (kept / "engines.json").is_file():
                return kept
            for left in cache.glob("build-*"):
                shutil.rmtree(left, ignore_errors=True)
            with TemporaryDirectory(dir=cache, prefix="build-") as scratch:
                folder = Path(scratch) / "web"
                _copy(source, folder)
                _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder, "fetching packages", progress)
                _run([npm, "run", "build"], folder, "building the app", progress)
                read_app(folder / "dist")
                shutil.rmtree(kept, ignore_errors=True)
                (folder / "dist").rename(kept)
    except OSError as error:
        hint = "a build needs about 500 MB; free some space and run it again"
        raise ResourceError(f"{cache}: cannot be written: {error.strerror or error}.", hint=hint) from error
    return kept


def _digest(source: Path) -> str:
    names = sorted(_source_files(source))
    parts = [f"{p.relative_to(source).as_posix()} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in names]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _source_files(source: Path) -> Iterator[Path]:
    for path in sorted(source.iterdir()):
        if path.name in LEFT_OUT or path.name.startswith("."):
            continue
        yield from (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _copy(source: Path, to: Path) -> None:
    for path in _source_files(source):
        there = to / path.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)


def _npm() -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    wanted = ".".join(map(str, NODE))
    hint = f"install Node.js {wanted} or newer (nodejs.org), or pass --app with a folder that was built elsewhere"
    if node is None or npm is None:
        raise DependencyError(
            f"the browser app is built with npm; there is no {'npm' if node else 'node'} here.", hint=hint
        )
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    found = re.match(r"v(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < NODE:
        text = (
            f"the browser app is built with Node.js {wanted} or newer; {node} is {said.strip()[:40] or 'not usable'}."
        )
        raise DependencyError(text, hint=hint)
    return npm


def _run(command: Sequence[str], folder: Path, what: str, progress: Progress) -> None:
    progress.start(0, f"{what} ({' '.join([Path(command[0]).name, *command[1:3]])})")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _failed(f"{what} took more than {_BUILD_SECONDS:.0f} s") from None
    finally:
        progress.finish()
    if done.returncode:
        lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
        raise _failed("\n  ".join([f"{what} failed:", *lines[-_LAST_LINES:]]))


def _failed(text: str) -> EdgeshipError:
    hint = "npm needs its registry once (npm ping); or pass --app with a folder that was built elsewhere"
    return SourceError(text, hint=hint)
