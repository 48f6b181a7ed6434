"""What this machine is and how it feels: processor, memory, heat. Standard library only."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeship_runtime.console import safe
from edgeship_runtime.cpu import cpu_name

ROOT = Path("/")
ISA = {
    "dotprod": "asimddp",
    "fp16": "asimdhp",
    "i8mm": "i8mm",
    "sve": "sve",
    "avx2": "avx2",
    "avx512": "avx512f",
    "vnni": "avx512_vnni avx_vnni",
}
"""Features that engines have kernels for: each with its names in /proc/cpuinfo, any of which will do."""
_APPLE = frozenset(("asimd", "asimdhp", "asimddp"))  # of every M processor; macOS has no /proc/cpuinfo to say so
# MIDR_EL1 part numbers of Arm Ltd., from Linux: arch/arm64/include/asm/cputype.h.
_ARM = "d03 A53 d04 A35 d05 A55 d07 A57 d08 A72 d09 A73 d0a A75 d0b A76 d0d A77 d41 A78 d42 A78AE d44 X1 d46 A510 "
_ARM += "d47 A710 d48 X2 d4d A715 d4e X3 d80 A520 d81 A720 d82 X4 d85 X925 d87 A725"
# Bits 0 to 3 of the firmware's answer say what is, bits 16 to 19 what was since the start.
_THROTTLED = ("under-voltage", "clock capped", "throttled", "too hot")
# What llama.cpp says it was compiled for, and what /proc/cpuinfo calls it.
_NEEDS = "SSE3 pni SSSE3 ssse3 AVX avx AVX2 avx2 F16C f16c FMA fma BMI2 bmi2 AVX_VNNI avx_vnni AVX512 avx512f "
_NEEDS += "AVX512_VBMI avx512vbmi AVX512_VNNI avx512_vnni AVX512_BF16 avx512_bf16 AMX_INT8 amx_int8 NEON asimd "
_NEEDS += "DOTPROD asimddp FP16_VA asimdhp MATMUL_INT8 i8mm SVE sve SME sme"
_BEST = ("AMX_INT8", "AVX512_VNNI", "AVX_VNNI", "AVX512", "AVX2", "AVX", "MATMUL_INT8", "DOTPROD", "NEON", "SSE3")
_CPU = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/"
_LIMIT = 1 << 20  # bytes of a file: more than any cpuinfo


def _pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


@dataclass(frozen=True)
class Cores:
    """Cores of one kind and their highest clock."""

    kind: str
    count: int
    mhz: int | None


@dataclass(frozen=True)
class Board:
    """A machine; sizes in bytes, None for what the system does not say."""

    model: str
    os: str
    arch: str
    bits: int
    libc: str | None
    python: str
    page_size: int | None
    cores: tuple[Cores, ...]
    isa: tuple[str, ...] | None
    ram_bytes: int | None
    ram_free_bytes: int | None
    swap_bytes: int | None
    swap_free_bytes: int | None
    disk_free_bytes: int | None
    governor: str | None
    mhz: int | None
    temperature_c: float | None
    throttled: tuple[str, ...] | None


def read_board(root: Path = ROOT, disk: Path = Path()) -> Board:
    """Look at this machine; /proc and /sys are read below `root`, free space is that of `disk`."""
    arch = platform.machine().lower()
    name = " ".join(safe(cpu_name(root)).split())[:100]
    found = flags(root)
    clock = [number for path in root.glob(_CPU + "scaling_cur_freq") if (number := _number(path))]
    heat = [_number(path) for path in root.glob("sys/class/thermal/thermal_zone*/temp")]
    governors = {_read(path)[:40] for path in root.glob(_CPU + "scaling_governor")}
    free = None
    with suppress(OSError):
        free = shutil.disk_usage(disk).free
    return Board(
        model=name,
        os=_system(),
        arch={"arm64": "aarch64", "amd64": "x86_64"}.get(arch, arch),
        bits=64 if sys.maxsize >> 32 else 32,
        libc=" ".join(platform.libc_ver()).strip() or None,
        python=platform.python_version(),
        page_size=os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None,
        cores=_cores(root) or (Cores(name, os.cpu_count() or 1, None),),
        isa=tuple(each for each in ISA if found & set(ISA[each].split())) if found else None,
        **_memory(root),
        disk_free_bytes=free,
        governor=", ".join(sorted(governors - {""})) or None,
        mhz=max(clock, default=0) // 1000 or None,
        temperature_c=max((each / 1000 for each in heat if each is not None and -40e3 < each < 150e3), default=None),
        throttled=_throttled(root, name),
    )


def flags(root: Path = ROOT) -> frozenset[str]:
    """The instructions that every core has, as /proc/cpuinfo calls them; empty where the system does not say."""
    each = [frozenset((core.get("Features") or core.get("flags", "")).split()) for core in _processors(root)]
    if not each and (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return _APPLE
    return frozenset.intersection(*each) if each else frozenset()


def kernels(engine: str, root: Path = ROOT) -> str:
    """The matrix kernels that an engine (by `Engine.name`) takes here for 4-bit weights, or "unknown".

    llama.cpp says what was compiled, and the variant that was loaded; onnxruntime chooses by the processor.
    """
    if engine.startswith("llama"):
        built = compiled()
        best = next((flag for flag in _BEST if flag in built), "unknown")
        name = "i8mm" if best == "MATMUL_INT8" else best.lower().replace("_", "-")
        variant = re.search(r"/libggml-cpu-([\w.]+)\.so", _read(root / "proc/self/maps"))
        return name + " KleidiAI" * ("KLEIDIAI" in built) + (f" (variant {variant[1]})" if variant else "")
    has = flags(root)
    if not (has and engine.startswith("onnxruntime")):
        return "unknown"
    if "asimddp" in has:  # MLAS takes KleidiAI's kernels for weights without zero points
        return ("i8mm" if "i8mm" in has else "dotprod") + " KleidiAI"
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= has:
        return "avx512-vnni" if "avx512_vnni" in has else "avx512"
    return ("avx-vnni" if "avx_vnni" in has else "avx2") if "avx2" in has else "fp32"


def compiled() -> frozenset[str]:
    """What llama.cpp's library (or the variant it loaded) was compiled for, in its own words; loads the library."""
    from edgeship_runtime.engines.llama_library import library

    return frozenset(re.findall(r"(\w+) = 1\b", library().llama_print_system_info().decode("utf-8", "replace")))


def foreign(built: frozenset[str], root: Path = ROOT) -> list[str]:
    """Instructions a build uses and this processor lacks: the first of them ends the process with SIGILL."""
    has = flags(root)
    return sorted(flag for flag, name in _pairs(_NEEDS).items() if has and flag in built and name not in has)


def _system() -> str:
    if hasattr(sys, "getandroidapilevel") or "ANDROID_ROOT" in os.environ:
        return "android"
    return {"Darwin": "macos"}.get(platform.system(), platform.system().lower())


def _processors(root: Path) -> Iterator[dict[str, str]]:
    for block in _read(root / "proc/cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        core = {key.strip(): value.strip() for key, _, value in pairs}
        if re.fullmatch("[0-9]{1,5}", core.get("processor", "")):
            yield core


def _cores(root: Path) -> tuple[Cores, ...]:
    kinds: Counter[tuple[str, int | None]] = Counter()
    seen = set()
    for core in _processors(root):
        place = root / "sys/devices/system/cpu" / f"cpu{core['processor']}"
        threads = _read(place / "topology/core_cpus_list") or _read(place / "topology/thread_siblings_list")
        if threads and threads in seen:
            continue
        seen.add(threads)
        part = core.get("CPU part", "")
        arm = core.get("CPU implementer") == "0x41" and _pairs(_ARM).get(part[2:])
        kind = f"Cortex-{arm}" if arm else core.get("model name") or f"{core.get('CPU implementer')} {part}"
        kinds[kind[:100], (_number(place / "cpufreq/cpuinfo_max_freq") or 0) // 1000 or None] += 1
    return tuple(Cores(kind, count, mhz) for (kind, mhz), count in kinds.items())


def _memory(root: Path) -> dict[str, int | None]:
    said = dict(re.findall(r"^(\w+):\s*([0-9]{1,15}) kB", _read(root / "proc/meminfo"), re.MULTILINE))
    names = {"ram": "MemTotal", "ram_free": "MemAvailable", "swap": "SwapTotal", "swap_free": "SwapFree"}
    found = {f"{key}_bytes": int(said[name]) * 1024 if name in said else None for key, name in names.items()}
    if not said and platform.system() == "Darwin":
        found["ram_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number(root / "sys/fs/cgroup/memory.max")  # a container's, whose /proc/meminfo is the host's
    for key in ("ram_bytes", "ram_free_bytes"):
        found[key] = min(found[key] or limit, limit) if limit is not None else found[key]
    return found


def _throttled(root: Path, name: str) -> tuple[str, ...] | None:
    """What holds the clock back, or did: from a Raspberry Pi's firmware, elsewhere what cools by slowing down."""
    said = next(map(_read, root.glob("sys/devices/platform/soc*/*firmware/get_throttled")), "")
    tool = shutil.which("vcgencmd") if "Raspberry" in name and not said else None
    if tool:
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run([tool, "get_throttled"], capture_output=True, timeout=5).stdout.decode(
                "ascii", "replace"
            )
    if bits := re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-f]{1,8})", said.strip()):
        both = ((0, "now"), (16, "since the start"))
        return tuple(
            f"{what} {when}"
            for first, when in both
            for place, what in enumerate(_THROTTLED)
            if int(bits[1], 16) >> first + place & 1
        )
    coolers = [path for path in root.glob("sys/class/thermal/cooling_device*") if _slows(path)]
    slow = any(_number(path / "cur_state") for path in coolers)
    return (("throttled now",) if slow else ()) if coolers else None


def _slows(path: Path) -> bool:
    return re.match("thermal-cpufreq|cpufreq|Processor", _read(path / "type")) is not None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return safe(file.read(_LIMIT).decode("utf-8", "replace").strip("\0 \n"))
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if re.fullmatch("-?[0-9]{1,18}", text) else None
