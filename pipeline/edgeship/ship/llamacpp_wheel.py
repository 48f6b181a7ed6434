"""llama-cpp-python's wheel for a device, built here: the registry has its source only.

CMake builds the vendored llama.cpp for the device's architecture, and the wheel is packed from the libraries and the
package's own Python files: no headers, tools, symbols or second copies. By default it holds ggml's CPU backend once per
set of instructions, and the runtime loads the one that fits the processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from edgeship.errors import DependencyError, EdgeshipError, PlanError, ResourceError, SourceError
from edgeship.progress import Progress
from edgeship.ship.archive import TIME
from edgeship.ship.llamacpp_flags import Build, build_for
from edgeship.ship.wheel_files import Wheel, read_wheel, write_wheel
from edgeship.ship.wheels import Target

VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_SDIST = f"llama_cpp_python-{VERSION}.tar.gz"
_REPOSITORY = Path(__file__).parents[3]
_NOTE_SECONDS = 10.0
_LAST_LINES = 15  # of a failed build's output
_GLIBC = re.compile(rb"(?<=\0)GLIBC_([0-9]+)\.([0-9]+)(?=\0)")
_LIBSTDCXX = re.compile(rb"(?<=\0)GLIBCXX_3\.4\.([0-9]+)(?=\0)")
_GCC_12_LIBSTDCXX, _ITS_GLIBC = 30, (2, 35)  # Ubuntu 22.04 is the oldest system with both


@dataclass(frozen=True)
class Built:
    """A wheel of llama.cpp, what it was built for, and the seconds that took; 0 where it was there already."""

    wheel: Wheel
    build: Build
    seconds: float


def cache_directory() -> Path:
    """Where built wheels are kept: `.cache` of the repository, else edgeship's own folder in the user's cache."""
    if (_REPOSITORY / "runtime" / "hatch_build.py").is_file():
        return _REPOSITORY / ".cache" / "llamacpp"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeship" / "llamacpp"


def find_wheel(target: Target, cache: Path | None = None) -> Path | None:
    """The built wheel for `target`: that of its own processor, else the one with all variants; None without any."""
    for cpu in ("device", "all"):
        found = _cached(_folder(build_for(target, cpu), cache or cache_directory()))
        if found is not None:
            return found
    return None


def make_wheel(
    target: Target, *, cpu: str, cache: Path | None = None, jobs: int | None = None, progress: Progress
) -> Built:
    """Build the wheel for `target`, or find it built: by source and flags, in `cache`.

    `cpu`: "all" for one wheel with every variant, "device" for the processor of `target` alone. Raises DependencyError
    without compiler or CMake, SourceError without the source, ResourceError where the disk is full.
    """
    if target.os != "linux":
        hint = "use the engine ort there, or put a wheel of llama-cpp-python into the folder of --wheels"
        raise PlanError(
            f"{target.name}: wheels of llama.cpp are built for Linux, and its system is {target.os}.", hint=hint
        )
    build = build_for(target, cpu)
    folder = _folder(build, cache or cache_directory())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            found, began = _cached(folder), time.monotonic()
            if found is not None:
                return Built(read_wheel(found), build, 0.0)
            tools = _tools(build)
            source = fetch_source(folder.parent, progress)
            made = _build(build, tools, source, folder, jobs or os.cpu_count() or 1, progress)
            return Built(read_wheel(made), build, time.monotonic() - began)
    except OSError as error:
        hint = "a build needs about 700 MB; free some space and run it again"
        raise ResourceError(f"{folder}: cannot be written: {error.strerror or error}.", hint=hint) from error


def _folder(build: Build, cache: Path) -> Path:
    """Named by all that decides what comes out."""
    key = json.dumps([VERSION, SDIST_SHA256, build.arch, build.cmake, build.dropped, _EDGESHIP_BUILD])
    return cache / f"{build.arch}-{build.cpu}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


_EDGESHIP_BUILD = 1  # raised when the steps below change what they make


def _cached(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.whl"))), None)


def _tools(build: Build) -> dict[str, str]:
    """The programs of a build by name; raises DependencyError for those missing, with Debian's packages."""
    names = {
        "cmake": "cmake",
        "ninja": "ninja",
        "cc": f"{build.arch}-linux-gnu-gcc",
        "c++": f"{build.arch}-linux-gnu-g++",
    }
    found = {use: shutil.which(name) for use, name in names.items()}
    missing = [names[use] for use, path in found.items() if path is None]
    if missing:
        packages = f"cmake ninja-build g++-{build.arch.replace('_', '-')}-linux-gnu"
        raise DependencyError(
            f"building llama.cpp for {build.arch} needs {', '.join(missing)}, and this machine has none.",
            hint=f"on Debian and Ubuntu: sudo apt install {packages}",
        )
    return {use: path for use, path in found.items() if path is not None}


def fetch_source(cache: Path, progress: Progress) -> Path:
    """The source distribution, fetched once and checked against its hash."""
    path = cache / _SDIST
    if not path.is_file():
        progress.start(0, f"source of llama-cpp-python {VERSION} (77 MB)")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--progress-bar", "off"]
        part = cache / ".sdist"
        shutil.rmtree(part, ignore_errors=True)
        done = run_tool([*command, "--dest", str(part), f"llama-cpp-python=={VERSION}"])
        if done.returncode or not (part / _SDIST).is_file():
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip did not say why")
            hint = f"check the network and pip's own settings, or put {_SDIST} into {cache}"
            raise SourceError(f"the registry did not give llama-cpp-python's source: {reason.strip()}", hint=hint)
        (part / _SDIST).rename(path)
        shutil.rmtree(part)
        progress.finish()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SDIST_SHA256:
        text = f"{path}: expected content with sha256 {SDIST_SHA256}, found {found}; nothing was built."
        raise SourceError(text, hint="remove the file and run it again; a mirror on the way may alter files")
    return path


def _build(build: Build, tools: dict[str, str], sdist: Path, folder: Path, jobs: int, progress: Progress) -> Path:
    # Source and objects stay after an interrupt: the next run goes on with them.
    source, objects = folder / "source", folder / "objects"
    if not (folder / ".unpacked").exists():
        progress.note(f"unpacking {sdist.name}")
        shutil.rmtree(source, ignore_errors=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(source, filter="data")
        _drop_variants(build, top_of(source))
        (folder / ".unpacked").touch()
    top = top_of(source)
    progress.start(0, f"llama.cpp for {build.arch}, {build.cpu}: some ten CPU minutes, once")
    _configure(build, tools, top, objects)
    run_ninja([tools["ninja"], "-C", str(objects), f"-j{jobs}", "llama"], progress)
    made = _pack(build, top, objects, folder)
    progress.finish()
    for left in (source, objects):
        shutil.rmtree(left)
    (folder / ".unpacked").unlink()
    return made


def top_of(source: Path) -> Path:
    """The folder that the source distribution unpacks to."""
    return source / f"llama_cpp_python-{VERSION}"


def _drop_variants(build: Build, top: Path) -> None:
    """Take variants out of ggml's list that common compilers cannot make; it has no option for that."""
    path = top / "vendor/llama.cpp/ggml/src/CMakeLists.txt"
    text = path.read_text(encoding="utf-8")
    for name in build.dropped:
        text = re.sub(rf"^\s*ggml_add_cpu_backend_variant\({re.escape(name)}\b.*\)$", "", text, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


def _configure(build: Build, tools: dict[str, str], top: Path, objects: Path) -> None:
    plain = f"-ffile-prefix-map={top}=. -ffile-prefix-map={objects}=objects"  # paths of this machine stay out
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": build.arch,
        "CMAKE_MAKE_PROGRAM": tools["ninja"],
        "CMAKE_C_COMPILER": tools["cc"],
        "CMAKE_CXX_COMPILER": tools["c++"],
        "CMAKE_C_FLAGS": plain,
        "CMAKE_CXX_FLAGS": plain,
        "CMAKE_SHARED_LINKER_FLAGS": "-s -Wl,--build-id=none",
        "CMAKE_MODULE_LINKER_FLAGS": "-s -Wl,--build-id=none",
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",
        # libggml.so and not libggml.so.0.9: a wheel holds no links, and each library would be in it three times.
        "CMAKE_PLATFORM_NO_VERSIONED_SONAME": "ON",
        **build.options,
    }
    ccache = shutil.which("ccache")
    if ccache:
        options |= {"CMAKE_C_COMPILER_LAUNCHER": ccache, "CMAKE_CXX_COMPILER_LAUNCHER": ccache}
    given = [f"-D{name}={value}" for name, value in options.items()]
    done = run_tool([tools["cmake"], "-G", "Ninja", "-S", str(top / "vendor/llama.cpp"), "-B", str(objects), *given])
    if done.returncode:
        raise build_error("configuring llama.cpp", done.stdout + done.stderr)


def run_ninja(command: Sequence[str], progress: Progress) -> None:
    """Run a build and note its steps; raises DependencyError with what the compiler said, ResourceError."""
    said: list[str] = []
    noted = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=_environment()
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = [*said[-200:], line]
                step = re.match(r"\[([0-9]+)/([0-9]+)\]", line)
                if step and time.monotonic() - noted >= _NOTE_SECONDS:
                    noted = time.monotonic()
                    progress.note(f"llama.cpp: step {step[1]} of {step[2]}")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise build_error("compiling llama.cpp", "".join(said))


def build_error(what: str, said: str) -> EdgeshipError:
    """The error for a step of a build, with the lines of its output that say why."""
    lines = [line for line in said.splitlines() if line.strip()]
    at = next((i for i, line in enumerate(lines) if re.search(r"error|FAILED", line, re.IGNORECASE)), -_LAST_LINES)
    shown = "\n".join(lines[at:][:_LAST_LINES])
    if "No space left" in said:
        return ResourceError(
            f"{what}: the disk is full.", hint="free about 700 MB and run it again: it goes on from there"
        )
    return DependencyError(f"{what} failed:\n{shown}", hint="GCC 12 and CMake 3.25 are known to work")


def _pack(build: Build, top: Path, objects: Path, folder: Path) -> Path:
    files: dict[str, bytes] = {}
    for path in sorted((top / "llama_cpp").rglob("*")):
        if path.is_file() and path.suffix in (".py", ".typed"):
            files[path.relative_to(top).as_posix()] = path.read_bytes()
    libraries = {path.name: path.read_bytes() for path in (objects / "bin").glob("lib*.so")}
    files |= {f"llama_cpp/lib/{name}": data for name, data in libraries.items()}
    major, minor = _oldest_glibc(list(libraries.values()))
    tag = f"py3-none-manylinux_{major}_{minor}_{build.arch}"
    info = f"llama_cpp_python-{VERSION}.dist-info"
    files[f"{info}/METADATA"] = (top / "PKG-INFO").read_bytes()
    files[f"{info}/licenses/LICENSE.md"] = (top / "LICENSE.md").read_bytes()
    files[f"{info}/licenses/LICENSE.llama.cpp"] = (top / "vendor/llama.cpp/LICENSE").read_bytes()
    generator = f"Wheel-Version: 1.0\nGenerator: edgeship\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files[f"{info}/WHEEL"] = generator.encode()
    path = folder / f"llama_cpp_python-{VERSION}-{tag}.whl"
    part = path.with_suffix(".part")
    write_wheel(part, files)
    part.rename(path)
    return path


def _oldest_glibc(libraries: Sequence[bytes]) -> tuple[int, int]:
    """The oldest glibc the libraries run on, by the versions of the symbols they import (PEP 600's tag)."""
    versions = [tuple(map(int, found)) for data in libraries for found in _GLIBC.findall(data)]
    major, minor = max(versions, default=(2, 17))
    newest = max((int(n) for data in libraries for n in _LIBSTDCXX.findall(data)), default=0)
    return max((major, minor), _ITS_GLIBC) if newest >= _GCC_12_LIBSTDCXX else (major, minor)


def run_tool(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool of a build to its end, without what in our environment would change the build."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", env=_environment(), check=False)


def _environment() -> dict[str, str]:
    """Ours, without what would change the build."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_ARGS")}
    with suppress(KeyError):
        del kept["CMAKE_TOOLCHAIN_FILE"]
    return kept | {"SOURCE_DATE_EPOCH": str(TIME)}
