"""Whole processes, measured from outside: wall and CPU seconds and peak memory as the operating system counts them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One finished process; `output` is what it printed on standard output."""

    wall: float
    cpu: float
    peak_mb: float
    output: str


class FailedCommandError(Exception):
    """A measured command ended with an error."""


def measure(command: Sequence[str]) -> Run:
    """Run a command to its end and measure it; raises FailedCommandError with the end of what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text = out.read().decode(errors="replace")
        if process.returncode:
            raise FailedCommandError(
                f"{' '.join(command)}\nexited with {process.returncode}:\n{err.read()[-2000:].decode(errors='replace')}"
            )
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, text)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def machine() -> str:
    """What the machine is and was doing, for the reader of the figures."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "?")
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()
    return f"{model}, {cores} cores, load {load[0]:.1f} (1 min) {load[1]:.1f} (5 min), Python {sys.version.split()[0]}"
