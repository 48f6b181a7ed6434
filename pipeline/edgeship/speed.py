"""How fast an artifact should run on a device: bands of tokens per second, from bandwidth, cores and instructions.

A token of an answer reads every matrix once, so decoding takes the longer of reading them and multiplying by them; a
prompt's tokens share the reading, so prefill is multiplying alone. Every band is wide enough to hold what was
measured; with each figure stands where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgeship.device import Device, EngineName
from edgeship.plan import Plan, PlannedTensor
from edgeship.recipe import Format

ENGINE_OF: dict[Format, EngineName] = {"onnx": "ort", "gguf": "llamacpp"}

CACHED_TOKENS = 512
"""Tokens in the KV cache that the estimates assume, as `edgeship-runtime bench` measures with."""

BANDWIDTH_REACHED = (0.4, 1.2)
"""Share of a device's reading bandwidth that decoding reaches: 0.5 in onnxruntime with two threads of an EPYC, 0.63 on
a Raspberry Pi 4 (TinyLlama Q8_0 at 3 tokens/s, justine.lol/matmul, against STREAM), 0.9 and more on a Pi 5; 1.1 on four
threads of a virtual EPYC, whose bandwidth changes under the measurement."""

MACS_PER_CYCLE: dict[EngineName, dict[str, tuple[float, float]]] = {
    "llamacpp": {
        "vnni": (6.0, 36.0),
        "avx512": (5.0, 20.0),
        "avx2": (5.0, 14.0),
        "i8mm": (8.0, 30.0),
        "dotprod": (3.5, 9.0),
        "none": (0.5, 1.8),
    },
    "ort": {
        "vnni": (6.0, 36.0),
        "avx512": (5.0, 20.0),
        "avx2": (4.0, 13.0),
        "i8mm": (6.0, 26.0),
        "dotprod": (3.5, 9.0),
        "none": (0.3, 0.8),
    },
}
"""Multiply-adds that one core does per cycle in the int4 kernels of each engine, by its best instructions.

Measured on AVX2 (Qwen2.5-1.5B: llama.cpp 11, onnxruntime 7 to 12) and with AVX512-VNNI (onnxruntime 24 on two quiet
cores); llama.cpp with dotprod and without from TinyLlama on Raspberry Pi 5 and 4 (45 and 10 tokens/s of prompt, Q8_0,
justine.lol/matmul); onnxruntime without dotprod a tenth of with it, as measured in emulation; i8mm is an estimate, two
to three times dotprod."""

REPACKABLE = {"int4-32", "int4-64", "int4-128", "q4_k", "iq4_nl"}
"""Encodings with a kernel for several rows at once; others are multiplied row by row."""

OTHER_KERNELS = (0.3, 1.0)
"""What other quantized encodings reach of that: onnxruntime's 8-bit 13 to 23 GFLOP/s beside 33."""

FLOAT_KERNELS = (0.1, 0.5)
"""What floats reach of it; an estimate."""

LAYER_OVERHEAD_S = (8e-6, 120e-6)
TOKEN_OVERHEAD_S = (100e-6, 600e-6)
"""Seconds beside the matrices at 3 GHz, per layer (norms, waking threads) and per token (sampling, Python)."""


@dataclass(frozen=True)
class Band:
    """A range in which a figure is expected."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Their geometric mean."""
        return float((self.low * self.high) ** 0.5)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_json(self) -> list[float]:
        """Low and high, to three digits."""
        return [float(f"{self.low:.3g}"), float(f"{self.high:.3g}")]


@dataclass(frozen=True)
class Speed:
    """What to expect of an artifact on a device; tokens per second, and seconds."""

    prefill: Band
    decode: Band
    load: Band
    bytes_per_token: int
    kernels: str  # of the tiers in MACS_PER_CYCLE


def tier(device: Device) -> str:
    """The best instructions for int4 that a device has, a key of MACS_PER_CYCLE's tables."""
    order = ("vnni", "avx512", "avx2") if device.arch == "x86_64" else ("i8mm", "dotprod")
    return next((isa for isa in order if isa in device.isa), "none")


def speed(plan: Plan, form: Format, device: Device) -> Speed:
    """Expected speed of a plan's artifact in a format, `CACHED_TOKENS` into a conversation."""
    kernels = tier(device)
    per_cycle = MACS_PER_CYCLE[ENGINE_OF[form]][kernels]
    cycles = sum(c.count * c.mhz * 1e6 for c in device.working_cores)
    clock = max(c.mhz for c in device.working_cores) / 3000
    layers = plan.decoder.layers
    read = bytes_per_token(plan, form)
    seconds: dict[str, list[float]] = {"prefill": [], "decode": []}
    for end in (0, 1):  # the slow end of every figure, then the fast one
        rate = cycles * per_cycle[end]
        overhead = (TOKEN_OVERHEAD_S[1 - end] + layers * LAYER_OVERHEAD_S[1 - end]) / clock
        body = sum(t.weights / _relative(t, end) for t in _matrices(plan))
        head = plan.head.weights / _relative(plan.head, end)
        attention = layers * plan.decoder.heads * plan.decoder.head_dim * CACHED_TOKENS / FLOAT_KERNELS[end]
        reading = read / (device.bandwidth_gbps * 1e9 * BANDWIDTH_REACHED[end])
        seconds["decode"].append(max(reading, (body + head + attention) / rate) + overhead)
        seconds["prefill"].append((body + attention) / rate + overhead / CACHED_TOKENS)
    return Speed(
        prefill=Band(*(1 / s for s in seconds["prefill"])),
        decode=Band(*(1 / s for s in seconds["decode"])),
        load=_load(plan, form, device, clock),
        bytes_per_token=read,
        kernels=kernels,
    )


def bytes_per_token(plan: Plan, form: Format) -> int:
    """Bytes that one token of an answer reads: every matrix as the engine holds it, and the KV cache so far."""
    memory = plan.footprints[form].memory
    # The sum is the same wherever llama.cpp copies or maps; what onnxruntime keeps mapped beside
    # its copies (scales, rotary tables) is not read again.
    matrices = memory.repacked if form == "onnx" else memory.repacked + memory.weights
    return matrices + memory.kv_per_token * CACHED_TOKENS


START_S = (0.15, 1.5)
"""Seconds for Python, engine and tokenizer at 3 GHz, with their files in the cache and without; an estimate."""
COPY_BPS = (0.3e9, 3e9)
"""Bytes per second that an engine rearranges into its own copy, at 3 GHz."""


def _load(plan: Plan, form: Format, device: Device, clock: float) -> Band:
    made = plan.footprints[form]
    reading = made.size_bytes / (device.storage_mbps * 1e6)
    return Band(
        max(reading, made.memory.repacked / (COPY_BPS[1] * clock)) + START_S[0] / clock,
        reading + made.memory.repacked / (COPY_BPS[0] * clock) + START_S[1] / clock,
    )


def _matrices(plan: Plan) -> Iterator[PlannedTensor]:
    return (t for t in plan.tensors if t.role.part == "body")


def _relative(tensor: PlannedTensor, end: int) -> float:
    if tensor.encoding.name in REPACKABLE:
        return 1.0
    return (OTHER_KERNELS if tensor.encoding.quantized else FLOAT_KERNELS)[end]
