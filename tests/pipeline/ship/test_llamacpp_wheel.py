"""The wheel of llama.cpp: flags by device, what goes into it, the cache, and what is said where a tool is missing."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from edgeship import catalog
from edgeship.errors import DependencyError, PlanError, ResourceError, SourceError, UsageError
from edgeship.progress import Silent
from edgeship.ship import llamacpp_wheel
from edgeship.ship.llamacpp_flags import build_for
from edgeship.ship.llamacpp_wheel import VERSION, find_wheel, make_wheel
from edgeship.ship.wheel_files import read_wheel
from small_disks import full

PI4, PI5 = catalog.find_device("raspberry-pi-4-8gb"), catalog.find_device("raspberry-pi-5-8gb")
LIMIT = 6_000_000  # bytes

_CMAKE = """#!/bin/sh
for last; do case $last in -DCMAKE_SYSTEM_PROCESSOR=*) echo "$last" > "$NOTES/cmake";; esac; done
echo "$@" >> "$NOTES/cmake"
"""
_NINJA = """#!/bin/sh
[ -f "$NOTES/fails" ] && { echo "[1/2] cc"; echo "ggml.c:1: error: no such thing"; exit 1; }
mkdir -p "$2/bin"
printf 'ELF\\0GLIBC_2.17\\0GLIBC_2.34\\0GLIBCXX_3.4.29\\0' > "$2/bin/libllama.so"
printf x > "$2/bin/libggml-cpu-armv8.0_1.so"
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that note what they are asked, and a source distribution of three files, in a cache of its own."""
    (tmp_path / "bin").mkdir()
    for name, text in {
        "cmake": _CMAKE,
        "ninja": _NINJA,
        "aarch64-linux-gnu-gcc": "",
        "aarch64-linux-gnu-g++": "",
    }.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("NOTES", str(tmp_path))
    cache = tmp_path / "cache"
    cache.mkdir()
    variants = "".join(
        f"            ggml_add_cpu_backend_variant({n} X)\n" for n in ("armv8.0_1", "armv9.2_1", "armv9.2_2")
    )
    sdist = cache / f"llama_cpp_python-{VERSION}.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name, text in {
            "PKG-INFO": f"Metadata-Version: 2.2\nName: llama_cpp_python\nVersion: {VERSION}\n",
            "LICENSE.md": "MIT",
            "llama_cpp/__init__.py": "",
            "llama_cpp/lib/libold.so": "no",
            "vendor/llama.cpp/LICENSE": "MIT",
            "vendor/llama.cpp/ggml/src/CMakeLists.txt": variants,
        }.items():
            entry = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    monkeypatch.setattr(llamacpp_wheel, "SDIST_SHA256", sha256(sdist.read_bytes()).hexdigest())
    return cache


def make(cache: Path, cpu: str = "all") -> llamacpp_wheel.Built:
    return make_wheel(PI4, cpu=cpu, cache=cache, jobs=1, progress=Silent())


@pytest.mark.parametrize(
    ("device", "cpu"),
    [
        ("raspberry-pi-zero-2-w", "armv8-a"),
        ("raspberry-pi-4-8gb", "armv8-a"),
        ("raspberry-pi-5-8gb", "armv8.2-a+dotprod+fp16"),
        ("laptop-avx2", "x86-64+avx2"),
    ],
)
def test_flags_by_device(device: str, cpu: str) -> None:
    build = build_for(catalog.find_device(device), "device")
    assert build.cpu == cpu
    assert "GGML_NATIVE=OFF" in build.cmake
    assert not any("ALL_VARIANTS" in flag for flag in build.cmake)
    if build.arch == "aarch64":
        assert f"GGML_CPU_ARM_ARCH={cpu}" in build.cmake
    else:
        assert {"GGML_AVX2=ON", "GGML_AVX512=OFF"} < set(build.cmake)


def test_all_variants_are_one_build_per_architecture() -> None:
    assert build_for(PI4, "all") == build_for(PI5, "all")
    assert {"GGML_BACKEND_DL=ON", "GGML_CPU_ALL_VARIANTS=ON"} < set(build_for(PI4, "all").cmake)
    with pytest.raises(UsageError, match="expected all or device, found 'pi'"):
        build_for(PI4, "pi")


def test_what_goes_into_it(tools: Path) -> None:
    built = make(tools)
    with zipfile.ZipFile(built.wheel.path) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
    assert names == ["llama_cpp/__init__.py", "llama_cpp/lib/libggml-cpu-armv8.0_1.so", "llama_cpp/lib/libllama.so"]
    assert built.wheel.platform == "manylinux_2_34_aarch64"
    assert built.wheel.glibc == (2, 34)
    asked = (tools.parent / "cmake").read_text()
    assert "-DCMAKE_SYSTEM_PROCESSOR=aarch64" in asked
    assert "-DGGML_OPENMP=OFF" in asked


def test_it_is_built_once(tools: Path) -> None:
    assert find_wheel(PI4, tools) is None
    first = make(tools)
    assert first.seconds > 0
    (tools.parent / "bin/ninja").unlink()  # not needed any more
    again = make(tools)
    assert (again.seconds, again.wheel) == (0, first.wheel)
    assert find_wheel(PI5, tools) == first.wheel.path
    assert [p.name for p in first.wheel.path.parent.iterdir() if not p.name.startswith(".")] == [first.wheel.path.name]


def test_a_device_s_own_wheel_is_preferred(tools: Path) -> None:
    make(tools)
    own = make(tools, "device").wheel.path
    assert find_wheel(PI4, tools) == own
    assert find_wheel(PI5, tools) != own


def test_variants_that_compilers_lack_are_dropped(tools: Path) -> None:
    (tools.parent / "fails").touch()
    with pytest.raises(DependencyError, match=r"compiling llama\.cpp failed:\nggml\.c:1: error: no such thing"):
        make(tools)
    (lists,) = tools.rglob("CMakeLists.txt")  # what is there already stays for the next run
    assert re.findall(r"variant\((\S+)", lists.read_text()) == ["armv8.0_1"]
    (tools.parent / "fails").unlink()
    assert make(tools).wheel.size > 0


def test_missing_tools_are_named(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tools.parent / "bin/aarch64-linux-gnu-g++").unlink()
    monkeypatch.setenv("PATH", f"{tools.parent}/bin")
    with pytest.raises(DependencyError, match=r"needs aarch64-linux-gnu-g\+\+") as caught:
        make(tools)
    assert "sudo apt install cmake ninja-build g++-aarch64-linux-gnu" in caught.value.hint


def test_nothing_on_the_path(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DependencyError, match=r"needs cmake, ninja, aarch64-linux-gnu-gcc, aarch64-linux-gnu-g\+\+"):
        make(tools)


def test_an_altered_source(tools: Path) -> None:
    with (tools / f"llama_cpp_python-{VERSION}.tar.gz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(SourceError, match="expected content with sha256"):
        make(tools)


def test_a_source_that_cannot_be_had(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tools / f"llama_cpp_python-{VERSION}.tar.gz").unlink()

    def fails(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")

    monkeypatch.setattr(llamacpp_wheel, "run_tool", fails)
    with pytest.raises(SourceError, match="did not give llama-cpp-python's source: ERROR: no network"):
        make(tools)


def test_a_full_disk(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp_wheel, "write_wheel", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        make(tools)
    assert find_wheel(PI4, tools) is None


def test_other_systems(tmp_path: Path) -> None:
    device = catalog.find_device("apple-m2")
    with pytest.raises(PlanError, match="built for Linux, and its system is macos"):
        make_wheel(device, cpu="all", cache=tmp_path, progress=Silent())


def test_the_wheel_that_was_built_here() -> None:
    found = find_wheel(PI4)
    if found is None:
        pytest.skip("no wheel of llama.cpp for aarch64 was built here: make wheel-llamacpp DEVICE=raspberry-pi-4-8gb")
    wheel = read_wheel(found)
    assert wheel.size < LIMIT
    with zipfile.ZipFile(found) as archive:
        libraries = [n for n in archive.namelist() if n.endswith(".so")]
        assert {"llama_cpp/lib/libllama.so", "llama_cpp/lib/libggml-base.so"} < set(libraries)
        for name in libraries:
            head = archive.read(name)[:20]
            assert head[:4] == b"\x7fELF"
            assert head[18:20] == b"\xb7\0"  # EM_AARCH64
