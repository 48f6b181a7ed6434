"""The wheels of a bundle: what each engine needs and no more, for the platform and Python versions of a device."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from edgeship import __version__
from edgeship.errors import ArtifactError, DependencyError, EdgeshipError, PlanError, ResourceError, SourceError
from edgeship.progress import Progress
from edgeship.ship.archive import TIME
from edgeship.ship.wheel_files import Wheel, read_wheel, write_wheel

PINS = {
    "flatbuffers": "25.12.19",
    "jinja2": "3.1.6",
    "markupsafe": "3.0.4",
    "numpy": "2.4.6",
    "onnxruntime": "1.31.1",
    "packaging": "26.3",
    "pip": "26.3",
    "protobuf": "7.36.2",
    "tokenizers": "0.23.3",
    "typing-extensions": "4.16.0",
}
"""The versions that bundles hold: those of constraints.txt, and the pip that installs them on the device."""

_COMMON = ("jinja2", "markupsafe", "numpy")
NEEDED = {
    "ort": (*_COMMON, "flatbuffers", "onnxruntime", "packaging", "protobuf", "tokenizers"),
    "llamacpp": (*_COMMON, "typing-extensions"),
}
"""Packages by engine beside the runtime's own wheel: what is imported there. Dependencies of tools that are not used on
a device (hub clients, disk caches) stay out."""

PURE = ("jinja2", "markupsafe", "typing-extensions")
"""Of those, what a phone's own Python lacks and can be given without compiled code."""

INSTALLER = "pip"
"""Runs from its wheel on the device, which may have none, and is not installed."""

RUNTIME = "edgeship-runtime"
LLAMA = "llama-cpp-python"
_REPOSITORY = Path(__file__).parents[3]
_SECONDS = 1800  # one download of at most some 50 MB


class Target(Protocol):
    """What a bundle takes from a device profile (`edgeship.device.Device`)."""

    @property
    def name(self) -> str: ...
    @property
    def os(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def libc(self) -> str | None: ...
    @property
    def python(self) -> tuple[str, ...]: ...
    @property
    def engines(self) -> Sequence[str]: ...
    @property
    def isa(self) -> Sequence[str]: ...
    @property
    def wheel_tags(self) -> tuple[str, ...]: ...


def platform_tags(target: Target) -> tuple[str, ...]:
    """The profile's wheel tags; where it has none, as `local`, those that its glibc takes (PEP 600); empty without."""
    known = re.fullmatch(r"glibc 2\.([0-9]+)", target.libc or "")
    if target.wheel_tags or target.os != "linux" or not known:
        return target.wheel_tags
    # pip takes none of them to include another.
    tags = [f"manylinux_2_{minor}_{target.arch}" for minor in (28, 27, 17) if minor <= int(known[1])]
    return (*tags, f"manylinux2014_{target.arch}") if tags else ()


def collect(
    target: Target, engine: str, into: Path, *, keep: Path | None, llama: Path | None, progress: Progress
) -> None:
    """Put every wheel that `engine` needs on `target` into the folder `into`.

    `keep` is a folder of wheels that are used where they fit and joined by those that are fetched: a second bundle
    needs no network. `llama` is the wheel of llama.cpp. Raises PlanError where the registry has no such wheel,
    SourceError where it cannot be reached, ResourceError where the disk is full.
    """
    names = (*NEEDED[engine], INSTALLER)
    for python in target.python:
        progress.start(0, f"wheels for Python {python}")
        _download(target, python, names, into, keep)
        progress.finish()
    progress.start(0, "wheel of the runtime")
    _runtime(into, keep)
    progress.finish()
    if llama is not None:
        shutil.copyfile(llama, into / llama.name)


def collect_pure(target: Target, into: Path, *, keep: Path | None, progress: Progress) -> None:
    """Put the wheels without compiled code that the runtime needs into `into`: they work with any C library.

    numpy and engines are left to the device's own packages. Of markupsafe, which the registry has compiled only, the
    compiled part is left out: the package does without. Raises as `collect`.
    """
    progress.start(0, "wheels without compiled code")
    _download(target, target.python[0], (*PURE, INSTALLER), into, keep, tags=(f"manylinux2014_{target.arch}",))
    for wheel in read_wheels(into):
        if wheel.platform != "any":
            _without_compiled(wheel, into)
            wheel.path.unlink()
    progress.finish()
    progress.start(0, "wheel of the runtime")
    _runtime(into, keep)
    progress.finish()


def _without_compiled(wheel: Wheel, into: Path) -> None:
    tag = "py3-none-any"
    with zipfile.ZipFile(wheel.path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    kept = {n: data for n, data in files.items() if ".so" not in Path(n).suffixes and not n.endswith("/RECORD")}
    about = next(name for name in kept if name.endswith(".dist-info/WHEEL"))
    kept[about] = f"Wheel-Version: 1.0\nGenerator: edgeship\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    write_wheel(into / f"{wheel.path.name.split('-')[0]}-{wheel.version}-{tag}.whl", kept)


def _download(
    target: Target, python: str, names: Sequence[str], into: Path, keep: Path | None, tags: Sequence[str] = ()
) -> None:
    wanted = [f"{name}=={PINS[name]}" for name in names]
    tags = [part for tag in tags or platform_tags(target) for part in ("--platform", tag)]
    fixed = ["download", "--dest", str(into), "--only-binary=:all:", "--no-deps", "--implementation", "cp"]
    fixed += ["--python-version", python, *tags]
    kept = ["--find-links", str(keep)] if keep is not None else []
    if keep is not None and keep.is_dir() and _pip([*fixed, "--no-index", *kept, *wanted]).returncode == 0:
        return
    done = _pip([*fixed, *(kept if keep is not None and keep.is_dir() else []), *wanted])
    if done.returncode:
        raise _no_wheels(done.stderr, target, python)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for path in into.glob("*.whl"):
            if not (keep / path.name).exists():
                part = keep / f".{path.name}.part"
                shutil.copyfile(path, part)
                part.rename(keep / path.name)


def _no_wheels(said: str, target: Target, python: str) -> EdgeshipError:
    missing = re.search(r"No matching distribution found for (\S+)", said)
    # Without an answer from the registry pip finds no distribution either.
    unreachable = re.search(r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|NameResolution", said)
    if missing and not unreachable:
        return PlanError(
            f"{target.name}: the registry has no wheel of {missing[1]} for Python {python} on "
            f"{', '.join(platform_tags(target))}; nothing was made.",
            hint="change `python` or `wheel_tags` of the device, or put the wheel into a folder and pass --wheels",
        )
    if "No space left" in said:
        return ResourceError("the disk is full; nothing was made.", hint="free some space, or pass another --out")
    reason = next((line for line in reversed(said.splitlines()) if line.startswith("ERROR")), said.strip()[-300:])
    reason = "it cannot be reached" if unreachable else reason.removeprefix("ERROR: ")
    return SourceError(
        f"the registry did not give the wheels for {target.name}: {reason}; nothing was made.",
        hint="check the network and pip's own settings; --wheels DIR keeps wheels, so that a later bundle needs none",
    )


def _runtime(into: Path, keep: Path | None) -> None:
    """The runtime's wheel: built where its source is, else from `keep` or the registry at edgeship's own version."""
    source = _REPOSITORY / "runtime"
    if (source / "hatch_build.py").is_file():
        # Without isolation where the backend is here: nothing is fetched then.
        isolated = [] if find_spec("hatchling") is None else ["--no-build-isolation"]
        done = _pip(["wheel", "--no-deps", *isolated, "--wheel-dir", str(into), str(source)])
    else:
        kept = ["--find-links", str(keep)] if keep is not None and keep.is_dir() else []
        wanted = f"{RUNTIME}=={__version__}"
        done = _pip(["download", "--no-deps", "--only-binary=:all:", "--dest", str(into), *kept, wanted])
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip did not say why")
        hint = "pip install hatchling, or pass a folder with the runtime's wheel as --wheels"
        raise DependencyError(f"the runtime's wheel could not be had: {reason.strip()}", hint=hint)


def _pip(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    if find_spec("pip") is None:
        raise DependencyError("fetching wheels needs pip, which this Python lacks.", hint="python -m ensurepip")
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(TIME), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # Two asking for one lock; and pip's own progress is for terminals.
    command = [sys.executable, "-m", "pip", *arguments, "--progress-bar", "off", "--no-input"]
    with TemporaryDirectory() as scratch:  # what pip leaves when it is interrupted
        try:
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment | {"TMPDIR": scratch},
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            hint = "check the network, and run it again: what arrived is in pip's cache"
            raise SourceError(f"pip did not end within {_SECONDS} s; it was stopped.", hint=hint) from None


def read_wheels(folder: Path) -> list[Wheel]:
    """The wheels of a folder by name and file; raises ArtifactError for a file that is none."""
    return sorted((read_wheel(p) for p in folder.glob("*.whl")), key=lambda w: (w.name, w.path.name))


def requirements(wheels: Sequence[Wheel]) -> str:
    """The text of requirements.txt: a line per package, with the hash of its wheel for every Python version."""
    lines = []
    versions = {w.name: w.version for w in wheels if w.name != INSTALLER}
    for name, version in sorted(versions.items()):
        found = {w.version for w in wheels if w.name == name}
        if len(found) > 1:
            text = f"expected one version of {name}, found {' and '.join(sorted(found))}; nothing was made."
            raise ArtifactError(text, hint="remove one of them from the folder of --wheels")
        hashes = sorted(w.sha256 for w in wheels if w.name == name)
        lines.append(" ".join([f"{name}=={version}", *(f"--hash=sha256:{each}" for each in hashes)]))
    return "\n".join(lines) + "\n"


def glibc(wheels: Sequence[Wheel]) -> str:
    """The oldest glibc that all of the wheels run on, as `2.28`; empty where they name none."""
    found = [w.glibc for w in wheels if w.glibc is not None]
    return ".".join(map(str, max(found))) if found else ""


def installed_bytes(wheels: Sequence[Wheel]) -> int:
    """Bytes the packages take once installed: of a package with several wheels the largest, as one of them is used."""
    largest: dict[str, int] = {}
    for wheel in wheels:
        if wheel.name != INSTALLER:
            largest[wheel.name] = max(largest.get(wheel.name, 0), wheel.unpacked)
    return sum(largest.values())
