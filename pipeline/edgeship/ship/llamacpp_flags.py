"""What llama.cpp is built with: for every processor of an architecture in one wheel, or for one device's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeship.errors import UsageError
from edgeship.ship.wheels import Target

CPUS = ("all", "device")

COMMON = {
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "OFF",
    # ggml's own threads then: a board without a network cannot get libgomp1.
    "GGML_OPENMP": "OFF",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_NUMBER": "0",
    "LLAMA_BUILD_COMMIT": "unknown",
}
_ALL = {"GGML_BACKEND_DL": "ON", "GGML_CPU_ALL_VARIANTS": "ON"}
_TOO_NEW = {"aarch64": ("armv9.2_1", "armv9.2_2"), "x86_64": ()}
"""Variants that GCC 12, Debian 12's, cannot make: SME, which none of the boards has."""

_X86 = {
    "avx2": ("GGML_SSE42", "GGML_AVX", "GGML_AVX2", "GGML_BMI2", "GGML_FMA", "GGML_F16C"),
    "avx512": ("GGML_AVX512",),
}


@dataclass(frozen=True)
class Build:
    """One way to build: the architecture, "all" or the instruction sets in it, CMake's options, variants left out."""

    arch: str
    cpu: str
    options: Mapping[str, str]
    dropped: tuple[str, ...]

    @property
    def cmake(self) -> list[str]:
        """The options in a fixed order."""
        return [f"{name}={value}" for name, value in sorted(self.options.items())]


def build_for(target: Target, cpu: str) -> Build:
    """How to build for `target`; `cpu` is "all" or "device". Raises UsageError for another."""
    if cpu not in CPUS:
        raise UsageError(f"--cpu: expected {' or '.join(CPUS)}, found {cpu[:40]!r}.", hint="all fits every device")
    if cpu == "all":
        return Build(target.arch, "all", COMMON | _ALL, _TOO_NEW[target.arch])
    isa = set(target.isa)
    name, options = _arm(isa) if target.arch == "aarch64" else _x86(isa)
    return Build(target.arch, name, COMMON | options, ())


def _arm(isa: set[str]) -> tuple[str, dict[str, str]]:
    features = [name for name in ("dotprod", "fp16", "sve", "i8mm") if name in isa]
    name = "+".join(["armv8.2-a", *features]) if features else "armv8-a"
    return name, {"GGML_CPU_ARM_ARCH": name}


def _x86(isa: set[str]) -> tuple[str, dict[str, str]]:
    on = [flag for name, flags in _X86.items() if name in isa for flag in flags]
    if "vnni" in isa:
        on.append("GGML_AVX512_VNNI" if "avx512" in isa else "GGML_AVX_VNNI")
    known = {flag for flags in _X86.values() for flag in flags}
    options = {flag: "ON" if flag in on else "OFF" for flag in sorted(known | set(on))}
    return "+".join(["x86-64", *sorted(isa & {"avx2", "avx512", "vnni"})]), options
