"""How much memory this process used at most, and how a limit on it becomes workers and chunks."""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass

from edgeship.errors import PlanError
from edgeship.sizes import format_size

# Bytes that one element of a chunk costs while it is read, transposed, scaled and packed (measured: 21).
BYTES_PER_ELEMENT = 24
CHUNK_ELEMENTS = 1 << 20  # measured: half as many take locks (GIL, inode) twice as often, twice as many miss the cache
SMALLEST_CHUNK = 1 << 16
MOST_WORKERS = 16
LIGHT_WORKERS = 2  # a format; measured: rounding 1.5B to int4 takes one as long with four, for a quarter more CPU
# What the interpreter and the packages hold before the first tensor, and what sealing (tokenizer, golden pass) adds.
RESERVED = 330 << 20


def peak_rss() -> int:
    """The largest resident set of this process so far, in bytes."""
    try:
        with open("/proc/self/status") as status:
            # Unlike ru_maxrss, this does not inherit the parent's peak across fork and exec.
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@dataclass(frozen=True)
class Budget:
    """Threads that work at once, and elements in each one's chunk."""

    workers: int
    chunk: int


def divide(max_ram: int, widest_row: int, *, formats: int = 1, heavy: bool = False) -> Budget:
    """Workers and chunk size that keep the export under `max_ram` bytes; PlanError where nothing does.

    `widest_row` is the number of elements in the longest row of the checkpoint: no chunk is smaller than a row.
    Each of the `formats` packs, writes and hashes a file of its own.
    `heavy` work (ggml's searching quantizers) keeps every core busy; the rest waits for memory and disk instead.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    smallest = max(SMALLEST_CHUNK, widest_row)
    for workers in range(min(cores, MOST_WORKERS if heavy else LIGHT_WORKERS * formats), 0, -1):
        chunk = (max_ram - RESERVED) // (workers * BYTES_PER_ELEMENT)
        if chunk >= smallest:
            return Budget(workers, max(smallest, min(CHUNK_ELEMENTS, chunk)))
    needed = RESERVED + smallest * BYTES_PER_ELEMENT
    raise PlanError(
        f"--max-ram: expected at least {format_size(needed)}, found {format_size(max_ram)}. "
        f"One chunk of rows would not fit beside the interpreter and the tokenizer.",
        hint=f"pass --max-ram {format_size(needed)} or more",
    )
