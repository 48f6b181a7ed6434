"""This machine as a device profile: what the system says of it, and its memory bandwidth, measured briefly."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgeship.device import LOCAL, Budgets, Cores, Device
from edgeship.errors import DeviceError
from edgeship_runtime.board import ROOT, Board, read_board
from edgeship_runtime.cpu import load_average, usable_cores

BUFFER = 256 << 20  # bytes read in a pass, by all threads together: more than the caches of a small machine
PASSES = 3  # of each thread over its part, without waiting for the others
BURSTS, PAUSE_S = 8, 0.05
UNKNOWN_MHZ = 2500

ENGINES_REASON = {
    "slow": "the processor has no dotprod, so onnxruntime multiplies in float32, about ten times slower than with it",
    "arm": "both multiply int4 with dotprod; llama.cpp's KV cache takes half the memory of onnxruntime's",
    "x86": "equally fast in decoding, and onnxruntime has wheels; llama-cpp-python has to be built",
}


def detect(root: Path = ROOT) -> Device:
    """The profile of this machine; /proc and /sys are read below `root`. Takes less than a second.

    Raises DeviceError where the system does not say what a profile needs.
    """
    board = read_board(root)
    if board.ram_bytes is None or board.ram_free_bytes is None:
        raise DeviceError(
            f"this machine ({board.os}): expected to learn its memory from /proc/meminfo, found nothing.",
            hint="describe it in a file of your own (see `devices/`) and pass its path",
        )
    cores = _cores(board, root)
    arm = board.arch == "aarch64"
    isa = tuple(board.isa or ())
    kind = "x86" if not arm else "arm" if "dotprod" in isa else "slow"
    values: dict[str, Any] = {
        "name": LOCAL,
        "description": f"this machine: {board.model}{_busy(sum(c.count for c in cores))}"[:300],
        "os": board.os,
        "arch": board.arch,
        "libc": board.libc,
        "python": [".".join(board.python.split(".")[:2])],
        "cores": cores,
        "isa": isa,
        "page_size": board.page_size or 4096,
        "ram_mb": board.ram_bytes / 1e6,
        "os_mb": (board.ram_bytes - board.ram_free_bytes) / 1e6,
        "bandwidth_gbps": read_bandwidth(sum(c.count for c in cores), min(BUFFER, board.ram_free_bytes // 4)),
        "storage_mbps": 500,
        "engines": ["llamacpp", "ort"] if arm else ["ort", "llamacpp"],
        "engines_reason": ENGINES_REASON[kind],
        "encodings": ["int4", "Q4_K_M", "int8"],
        "wheel_tags": [],
        "budgets": Budgets(ram_share=0.85),
        "sources": SOURCES,
    }
    try:
        return Device.model_validate(values)
    except ValueError as e:
        raise DeviceError(
            f"this machine: found what no profile can hold: {' '.join(str(e).split())[:300]}.",
            hint="describe it in a file of your own (see `devices/`) and pass its path",
        ) from e


SOURCES = {
    "cores": f"the system; a clock that it does not say is taken as {UNKNOWN_MHZ} MHz",
    "isa": "the system",
    "page_size": "the system",
    "ram_mb": "the system",
    "os_mb": "what was in use when this was asked",
    "bandwidth_gbps": "measured just now, reading with all cores; other work on the machine lowers it",
    "storage_mbps": "estimate, a SATA drive; not measured",
    "budgets": "edgeship's choice",
}


def _cores(board: Board, root: Path) -> Sequence[Cores]:
    """The cores this process may use; kinds much slower than the fastest are marked as small ones."""
    left = usable_cores(root)
    fastest = max((c.mhz or 0 for c in board.cores), default=0)
    cores = []
    for c in sorted(board.cores, key=lambda c: -(c.mhz or 0)):
        count = min(c.count, left)
        left -= count
        if count:
            small = len(board.cores) > 1 and (c.mhz or fastest) < 0.85 * fastest
            clock = c.mhz or board.mhz or _cpuinfo_mhz(root) or UNKNOWN_MHZ
            cores.append(Cores(kind=c.kind[:60], count=count, mhz=min(max(clock, 100), 10_000), efficiency=small))
    return cores


def _busy(cores: int) -> str:
    """What follows from other work on the machine, where there is much."""
    load = load_average()
    return f"; busy (load {load:g}), while estimates are for an idle one" if load and load > cores / 2 else ""


def _cpuinfo_mhz(root: Path) -> int | None:
    """The clock as x86 systems write it; virtual machines have it here only."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[: 1 << 16]
    except OSError:
        return None
    found = re.search(r"^cpu MHz\s*: ([0-9]{3,5})\b", text, re.MULTILINE)
    return int(found[1]) if found else None


def read_bandwidth(threads: int, nbytes: int) -> float:
    """GB of 10^9 bytes per second that so many threads read together, the best of some bursts over `nbytes`.

    The bursts stand apart: what a virtual machine's neighbours leave it was seen to double and halve within a second.
    """
    each = max(1 << 16, nbytes // 4 // threads)
    parts = [np.ones(each, np.float32) for _ in range(threads)]

    def read(part: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        for _ in range(PASSES):
            np.dot(part, part)  # lets go of the interpreter's lock, and reads as fast as the core can

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(BURSTS):
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            list(pool.map(read, parts))
            best = max(best, 4 * each * threads * PASSES / (time.perf_counter() - started))
    return round(best / 1e9, 2)
