"""The runner of GGUF artifacts for 64-bit ARM phones, built here: static programs that need no C library there.

Its source is in `native/`, llama.cpp's is that which llama-cpp-python vendors, and the compiler is zig's, from the
registry's package `ziglang`: it brings musl and libc++ for the target. ggml can load its CPU backends at run time only
from shared libraries, so there is a program for each set of instructions, and the plain one becomes the best that fits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from unicodedata import unidata_version

from filelock import FileLock

from edgeship import __version__
from edgeship.errors import DependencyError, ResourceError, SourceError
from edgeship.progress import Progress
from edgeship.ship.llamacpp_flags import COMMON
from edgeship.ship.llamacpp_wheel import (
    SDIST_SHA256,
    VERSION,
    build_error,
    cache_directory,
    fetch_source,
    run_ninja,
    run_tool,
    top_of,
)
from edgeship.ship.nfc_tables import nfc_tables

ARCH = "aarch64"
NAME = "edgeship-runner"
VARIANTS = {
    NAME: ("armv8.0", "generic"),
    f"{NAME}-dotprod": ("dotprod", "generic+v8_2a+dotprod+fullfp16"),
    f"{NAME}-i8mm": ("i8mm", "generic+v8_2a+dotprod+fullfp16+i8mm"),
}
"""By file name: what the program calls itself, and zig's name of the processors it needs."""
LICENSES = "LICENSES.txt"

ZIG = "0.17.1"
_ZIG_SHA256 = (
    "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",  # x86-64
    "b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e",  # aarch64
)
_TARGET = "aarch64-linux-musl"
_NATIVE = Path(__file__).parent / "native"
_TOOLS = {"cc": f"cc -target {_TARGET}", "c++": f"c++ -target {_TARGET}", "ar": "ar", "ranlib": "ranlib"}
_OPTIONS = {
    **COMMON,
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_LLAMAFILE": "OFF",
    "GGML_BUILD_COMMIT": "unknown",
    "GGML_BUILD_NUMBER": "0",
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_SYSTEM_PROCESSOR": ARCH,
}


@dataclass(frozen=True)
class Runner:
    """The built programs and the licences of what is in them; the seconds that took, 0 where they were there."""

    folder: Path
    seconds: float

    @property
    def files(self) -> dict[str, Path]:
        """By name: the programs, and LICENSES."""
        return {name: self.folder / name for name in (*VARIANTS, LICENSES)}


def find_runner(cache: Path | None = None) -> Runner | None:
    """The runner where it was built; None where it was not."""
    folder = _folder(cache or cache_directory())
    return Runner(folder, 0.0) if (folder / LICENSES).is_file() else None


def make_runner(*, cache: Path | None = None, jobs: int | None = None, progress: Progress) -> Runner:
    """Build the runner, or find it built: by source and flags, in `cache`.

    Raises DependencyError without CMake or Ninja, SourceError without the source or zig, ResourceError where the disk
    is full.
    """
    cache = cache or cache_directory()
    folder = _folder(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if found := find_runner(cache):
                return found
            began = time.monotonic()
            tools = {name: _program(name) for name in ("cmake", "ninja")}
            source = fetch_source(cache, progress)
            compilers = _compilers(_zig(cache, progress), folder)
            _build(tools, compilers, source, folder, jobs or os.cpu_count() or 1, progress)
            return Runner(folder, time.monotonic() - began)
    except OSError as error:
        hint = "a build needs about 1.2 GB, most of it zig; free some space and run it again"
        raise ResourceError(f"{folder}: cannot be written: {error.strerror or error}.", hint=hint) from error


def _folder(cache: Path) -> Path:
    """Named by all that decides what comes out."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(_NATIVE.iterdir()) if path.is_file()}
    key = json.dumps([VERSION, SDIST_SHA256, ZIG, VARIANTS, _OPTIONS, sources, unidata_version, __version__])
    return cache / f"runner-{ARCH}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise DependencyError(
            f"building the runner needs {name}, and this machine has none.",
            hint="on Debian and Ubuntu: sudo apt install cmake ninja-build",
        )
    return found


def _zig(cache: Path, progress: Progress) -> Path:
    """zig's compiler, fetched once by its hash."""
    folder = cache / f"zig-{ZIG}"
    program = folder / "ziglang/zig"
    if program.is_file():
        return program
    progress.start(0, f"zig {ZIG}, the compiler (101 MB)")
    part = cache / ".zig"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    wanted = part / "requirements.txt"
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in _ZIG_SHA256)
    wanted.write_text(f"ziglang=={ZIG} {hashes}\n", encoding="ascii")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    done = run_tool([*command, "--no-compile", "--target", str(part / "zig"), "--requirement", str(wanted)])
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "pip did not say why")
        hint = "check the network and pip's own settings; Linux on x86-64 and aarch64 can build it"
        raise SourceError(f"the registry did not give ziglang {ZIG}: {reason.strip()}", hint=hint)
    (part / "zig").rename(folder)
    shutil.rmtree(part)
    progress.finish()
    return program


def _compilers(zig: Path, folder: Path) -> dict[str, Path]:
    """Programs under the names that CMake expects, each one call of zig."""
    (folder / "tools").mkdir(exist_ok=True)
    made = {}
    for name, words in _TOOLS.items():
        made[name] = folder / "tools" / name
        own_cache = f"ZIG_GLOBAL_CACHE_DIR='{zig.parents[1]}/cache'; export ZIG_GLOBAL_CACHE_DIR"
        made[name].write_text(f"#!/bin/sh\n{own_cache}\nexec '{zig}' {words} \"$@\"\n", encoding="utf-8")
        made[name].chmod(0o755)
    return made


def _build(
    tools: dict[str, str], compilers: dict[str, Path], sdist: Path, folder: Path, jobs: int, progress: Progress
) -> None:
    # Source and objects stay after an interrupt: the next run goes on with them.
    source, objects = folder / "source", folder / "objects"
    if not (folder / ".unpacked").exists():
        progress.note(f"unpacking {sdist.name}")
        shutil.rmtree(source, ignore_errors=True)
        with tarfile.open(sdist) as archive:
            archive.extractall(source, filter="data")
        (folder / ".unpacked").touch()
    llama = top_of(source) / "vendor/llama.cpp"
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables/nfc_tables.h").write_text(nfc_tables(), encoding="ascii")
    progress.start(0, "the runner for phones: some ten CPU minutes, once")
    for name, (variant, cpu) in VARIANTS.items():  # one after the other in one place: only ggml's kernels differ
        _configure(tools, compilers, llama, folder, variant, cpu)
        run_ninja([tools["ninja"], "-C", str(objects), f"-j{jobs}", NAME], progress)
        shutil.copy(objects / NAME, folder / name)
    part = folder / ".licenses"
    part.write_text(_licenses(llama), encoding="utf-8")
    part.rename(folder / LICENSES)  # last: it says that all are there
    progress.finish()
    for left in ("source", "objects", "tools", "tables"):
        shutil.rmtree(folder / left)
    (folder / ".unpacked").unlink()


def _configure(
    tools: dict[str, str], compilers: dict[str, Path], llama: Path, folder: Path, variant: str, cpu: str
) -> None:
    # Paths of this machine stay out.
    plain = " ".join(f"-ffile-prefix-map={path}=." for path in (llama, folder / "objects", _NATIVE))
    options = {
        **_OPTIONS,
        "CMAKE_MAKE_PROGRAM": tools["ninja"],
        "CMAKE_C_COMPILER": compilers["cc"],
        "CMAKE_CXX_COMPILER": compilers["c++"],
        "CMAKE_AR": compilers["ar"],
        "CMAKE_RANLIB": compilers["ranlib"],
        "CMAKE_C_FLAGS": plain,
        "CMAKE_CXX_FLAGS": plain,
        "LLAMA_SOURCE": llama,
        "LLAMA_VERSION": VERSION,
        "RUNNER_VERSION": __version__,
        "TABLES": folder / "tables",
        "VARIANT": variant,
        "KERNELS_CPU": cpu,
    }
    if ccache := shutil.which("ccache"):
        # The folder's name changes with our own source, and llama.cpp's objects are the same in the next one.
        launcher = f"env;CCACHE_BASEDIR={folder};CCACHE_NOHASHDIR=1;CCACHE_COMPILERCHECK=content;{ccache}"
        options |= {"CMAKE_C_COMPILER_LAUNCHER": launcher, "CMAKE_CXX_COMPILER_LAUNCHER": launcher}
    given = [f"-D{name}={value}" for name, value in options.items()]
    done = run_tool([tools["cmake"], "-G", "Ninja", "-S", str(_NATIVE), "-B", str(folder / "objects"), *given])
    if done.returncode:
        raise build_error("configuring the runner", done.stdout + done.stderr)


def _licenses(llama: Path) -> str:
    """What is in the programs and on which terms, for whoever passes them on."""
    texts = {
        "llama.cpp and ggml (MIT)": (llama / "LICENSE").read_text(encoding="utf-8"),
        "nlohmann/json (MIT)": (llama / "licenses/LICENSE-jsonhpp").read_text(encoding="utf-8"),
        "sha256 (public domain)": (llama / "vendor/hash/sha256/LICENSE").read_text(encoding="utf-8"),
        f"musl, libc++ and compiler-rt, as zig {ZIG} brings them": _SYSTEM,
        "edgeship's own source (Apache-2.0)": "https://www.apache.org/licenses/LICENSE-2.0\n",
    }
    return "\n\n".join(f"== {name}\n\n{text.strip()}\n" for name, text in texts.items())


_SYSTEM = """musl: MIT, Copyright 2005-2020 Rich Felker, et al. https://git.musl-libc.org/cgit/musl/tree/COPYRIGHT
libc++, libc++abi, libunwind: Apache-2.0 with LLVM exceptions. https://llvm.org/LICENSE.txt
compiler-rt of zig: MIT, Copyright Zig contributors. https://ziglang.org
"""
