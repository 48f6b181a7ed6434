"""What is read of a machine, from stand-ins for /proc and /sys."""

from __future__ import annotations

import os
import platform
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boards import (
    BOARDS,
    COOLER,
    FIRMWARE,
    LAPTOP,
    LAPTOP_NAME,
    ORANGE5,
    PI4,
    PI5,
    ZERO2,
    ZONE,
    arm_cpuinfo,
    meminfo,
    plant,
)
from edgeship_runtime import board
from edgeship_runtime.board import Cores, foreign, kernels, read_board

PI5_BUILD = frozenset(("NEON", "ARM_FMA", "FP16_VA", "DOTPROD", "LLAMAFILE", "OPENMP", "REPACK"))


@pytest.fixture(autouse=True)
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.delenv("ANDROID_ROOT", raising=False)


@pytest.mark.parametrize(
    ("name", "model", "cores", "isa"),
    [
        ("pi4", "Raspberry Pi 4 Model B Rev 1.5", [Cores("Cortex-A72", 4, 1800)], ()),
        ("pi5", "Raspberry Pi 5 Model B Rev 1.0", [Cores("Cortex-A76", 4, 2400)], ("dotprod", "fp16")),
        ("zero2", "Raspberry Pi Zero 2 W Rev 1.0", [Cores("Cortex-A53", 4, 1000)], ()),
        (
            "orange5",
            "Xunlong Orange Pi 5",
            [Cores("Cortex-A55", 4, 1800), Cores("Cortex-A76", 4, 2352)],
            ("dotprod", "fp16"),
        ),
        ("jetson", "NVIDIA Jetson Orin Nano Developer Kit", [Cores("Cortex-A78AE", 6, 1510)], ("dotprod", "fp16")),
        (
            "laptop",
            LAPTOP_NAME,
            [Cores(LAPTOP_NAME, 4, 4700)],
            ("avx2", "avx512", "vnni"),
        ),
    ],
)
def test_boards(tmp_path: Path, name: str, model: str, cores: list[Cores], isa: tuple[str, ...]) -> None:
    found = read_board(plant(tmp_path, BOARDS[name]), tmp_path)
    assert (found.model, list(found.cores), found.isa) == (model, cores, isa)
    assert found.disk_free_bytes is not None
    assert found.os == "linux"


def test_memory_clock_and_heat(tmp_path: Path) -> None:
    found = read_board(plant(tmp_path, ORANGE5))
    assert (found.ram_bytes, found.ram_free_bytes) == (16331000 * 1024, 15000000 * 1024)
    assert (found.swap_bytes, found.mhz, found.governor, found.temperature_c) == (0, 2352, "ondemand", 41.0)
    assert found.throttled == ()


def test_a_feature_counts_when_every_core_has_it(tmp_path: Path) -> None:
    mixed = (
        arm_cpuinfo(["0xd0b"], "asimd asimddp") + "\n" + arm_cpuinfo(["0xd0b"], "asimd").replace(": 0\n", ": 1\n", 1)
    )
    assert read_board(plant(tmp_path, {"proc/cpuinfo": mixed})).isa == ()


def test_parts_without_a_name(tmp_path: Path) -> None:
    plant(tmp_path, {"proc/cpuinfo": arm_cpuinfo(["0x800"], "asimd", implementer="0x51")})
    assert read_board(tmp_path).cores == (Cores("0x51 0x800", 1, None),)


@pytest.mark.parametrize(
    ("said", "throttled"),
    [
        ("0", ()),
        ("1", ("under-voltage now",)),
        ("50005", ("under-voltage now", "throttled now", "under-voltage since the start", "throttled since the start")),
        ("a0000", ("clock capped since the start", "too hot since the start")),
        ("throttled=0x8", ("too hot now",)),
        ("nonsense", None),
        ("f" * 9, None),
    ],
)
def test_the_firmware_says_what_throttles(tmp_path: Path, said: str, throttled: tuple[str, ...] | None) -> None:
    assert read_board(plant(tmp_path, PI4 | {FIRMWARE: f"{said}\n"})).throttled == throttled


def test_vcgencmd_is_asked_where_the_kernel_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = (
        plant(tmp_path, {"bin/vcgencmd": '#!/bin/sh\n[ "$*" = get_throttled ] && echo throttled=0x4\n'})
        / "bin/vcgencmd"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    without = {name: text for name, text in PI4.items() if name != FIRMWARE}
    assert read_board(plant(tmp_path / "pi", without)).throttled == ("throttled now",)
    assert read_board(plant(tmp_path / "other", {"proc/cpuinfo": PI4["proc/cpuinfo"]})).throttled is None
    tool.write_text("#!/bin/sh\necho VCHI initialization failed\nexit 255\n")
    assert read_board(tmp_path / "pi").throttled is None


def test_a_cooler_that_works_is_throttling(tmp_path: Path) -> None:
    assert read_board(plant(tmp_path, LAPTOP)).throttled == ("throttled now",)
    plant(tmp_path, {f"{COOLER}/type": "pwm-fan\n"})  # a fan slows nothing down
    assert read_board(tmp_path).throttled is None


def test_a_container_has_the_memory_of_its_group(tmp_path: Path) -> None:
    plant(tmp_path, {"proc/meminfo": meminfo(8000000, 6000000), "sys/fs/cgroup/memory.max": "1000000000\n"})
    found = read_board(tmp_path)
    assert (found.ram_bytes, found.ram_free_bytes) == (10**9, 10**9)
    plant(tmp_path, {"sys/fs/cgroup/memory.max": "max\n"})
    assert read_board(tmp_path).ram_free_bytes == 6000000 * 1024


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    found = read_board(tmp_path, tmp_path / "nowhere")
    assert found.isa is None
    assert found.cores[0].count >= 1
    nothing = (found.ram_bytes, found.swap_bytes, found.mhz, found.governor, found.temperature_c, found.throttled)
    assert {*nothing, found.disk_free_bytes} == {None}


def test_macos_and_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    found = read_board(tmp_path)
    assert (found.os, found.arch, found.isa) == ("macos", "aarch64", ("dotprod", "fp16"))
    assert found.ram_bytes
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.delattr(os, "sysconf")
    found = read_board(tmp_path)
    assert (found.os, found.arch, found.isa, found.page_size, found.ram_bytes) == (
        "windows",
        "x86_64",
        None,
        None,
        None,
    )


HOSTILE = "\x1b[2J\x9b31m\u202eevil\x07"


def test_control_characters_are_escaped_and_texts_are_cut(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/model": HOSTILE + "x" * 5000,
        "proc/cpuinfo": f"processor : 0\nmodel name : {HOSTILE}\nflags : avx2 {HOSTILE}\n\nprocessor : ../../../etc\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": HOSTILE,
        ZONE: "9" * 5000,
    }
    found = read_board(plant(tmp_path, files))
    texts = [found.model, found.governor or "", *(each.kind for each in found.cores)]
    assert all("evil" in text and text.isprintable() and len(text) <= 100 for text in texts)
    assert found.temperature_c is None
    assert [each.count for each in found.cores] == [1]


FILES = ["proc/cpuinfo", "proc/meminfo", "proc/device-tree/model", "sys/fs/cgroup/memory.max", ZONE, FIRMWARE]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(st.sampled_from(FILES), st.binary(max_size=200)),
    st.sampled_from(sorted(BOARDS)),
    st.integers(0, 400),
)
def test_any_bytes_are_read(tmp_path: Path, files: dict[str, bytes], name: str, cut: int) -> None:
    plant(tmp_path, {path: text[:cut] for path, text in BOARDS[name].items()})
    for path, content in files.items():
        plant(tmp_path, {path: ""}).joinpath(path).write_bytes(content)
    found = read_board(tmp_path)
    assert all(text.isprintable() for text in (found.model, found.governor or "", *(each.kind for each in found.cores)))
    assert kernels("onnxruntime 1.31.1", tmp_path).isprintable()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (PI4, "fp32"),
        (ZERO2, "fp32"),
        (PI5, "dotprod KleidiAI"),
        ({"proc/cpuinfo": arm_cpuinfo(["0xd4d"], "asimd asimddp i8mm")}, "i8mm KleidiAI"),
        (LAPTOP, "avx512-vnni"),
        ({"proc/cpuinfo": "processor : 0\nflags : avx2 fma avx_vnni\n"}, "avx-vnni"),
        ({"proc/cpuinfo": "processor : 0\nflags : avx2 fma\n"}, "avx2"),
        ({"proc/cpuinfo": "processor : 0\nflags : avx512f avx512bw avx512dq avx512vl\n"}, "avx512"),
        ({"proc/cpuinfo": "processor : 0\nflags : sse4_2\n"}, "fp32"),
        ({}, "unknown"),
    ],
)
def test_kernels_of_onnxruntime(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    assert kernels("onnxruntime 1.31.1", plant(tmp_path, files)) == expected
    assert kernels("another 1.0", tmp_path) == "unknown"


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (PI5_BUILD, "dotprod"),
        ({"NEON"}, "neon"),
        ({"NEON", "DOTPROD", "MATMUL_INT8", "SVE", "KLEIDIAI"}, "i8mm KleidiAI"),
        ({"SSE3", "AVX", "AVX2", "FMA"}, "avx2"),
        ({"AVX2", "AVX512", "AVX512_VNNI"}, "avx512-vnni"),
        (set(), "unknown"),
    ],
)
def test_kernels_of_llamacpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: set[str], expected: str) -> None:
    monkeypatch.setattr(board, "compiled", lambda: frozenset(built))
    assert kernels("llama-cpp-python 0.3.36", tmp_path) == expected
    line = "7f12-7f34 r-xp 00000000 08:01 42  /venv/llama_cpp/lib/libggml-cpu-armv8.2_1.so\n"
    plant(tmp_path, {"proc/self/maps": line})
    assert kernels("llama-cpp-python 0.3.36", tmp_path) == f"{expected} (variant armv8.2_1)"


def test_instructions_that_a_processor_lacks(tmp_path: Path) -> None:
    assert foreign(PI5_BUILD, plant(tmp_path / "pi4", PI4)) == ["DOTPROD", "FP16_VA"]
    assert foreign(PI5_BUILD, plant(tmp_path / "pi5", PI5)) == []
    native = frozenset(("SSE3", "SSSE3", "AVX2", "F16C", "AVX512", "AVX512_VBMI", "AVX512_BF16"))
    assert foreign(native, plant(tmp_path / "laptop", LAPTOP)) == ["AVX512_BF16"]
    assert foreign(PI5_BUILD, tmp_path / "unknown") == []
