"""What this machine has: cores a process may use, the processor's name, memory used. Standard library only."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Physical cores this process may run on: its affinity, hardware threads of a core counted once, cgroup quota.

    Where the system does not say (not Linux), the number of logical processors. At least 1.
    """
    logical = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(root, number) for number in logical}
    quota = _cgroup_quota(root)
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _siblings(root: Path, number: int) -> str:
    """A text equal for all hardware threads of one core."""
    topology = root / "sys/devices/system/cpu" / f"cpu{number}" / "topology"
    # The first name is of Linux 5.2, the second of older kernels, which Android devices still have.
    siblings = _read(topology / "core_cpus_list") or _read(topology / "thread_siblings_list")
    return siblings or f"cpu{number}"


def _cgroup_quota(root: Path) -> float | None:
    """Processors' worth of time the cgroup (version 2 or 1) and its parents allow; None without a limit."""
    quotas = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = top / path.lstrip("/")
        # In a container the path may be the host's and not exist: then the root of the mount is our group.
        for place in {group, *group.parents, top}:
            if place == top or top in place.parents:
                quotas.append(_quota_at(place))
    found = [quota for quota in quotas if quota is not None]
    return min(found) if found else None


def _quota_at(place: Path) -> float | None:
    words = (_read(place / "cpu.max") or "").split()
    if len(words) != 2:
        words = [_read(place / "cpu.cfs_quota_us") or "", _read(place / "cpu.cfs_period_us") or ""]
    if not (words[0].isdigit() and words[1].isdigit()) or int(words[1]) == 0:  # "max" and -1 are no limit
        return None
    return int(words[0]) / int(words[1])


def cpu_name(root: Path = _ROOT) -> str:
    """The processor or board as the system calls it, for reports."""
    # The first is a link to the second, where /proc is the board's own.
    board = _read(root / "proc/device-tree/model") or _read(root / "sys/firmware/devicetree/base/model")
    if board:
        return board.rstrip("\0")
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def load_average() -> float | None:
    """Processes that wanted to run during the last minute; None where the system does not say (Windows)."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def peak_rss_mb(root: Path = _ROOT) -> float | None:
    """Largest resident memory of this process so far, in MB of 10^6 bytes; None where the system does not say."""
    for line in (_read(root / "proc/self/status") or "").splitlines():
        if line.startswith("VmHWM:"):  # ru_maxrss would start at the peak of the process that forked us
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def return_free_memory() -> None:
    """Give memory that was freed back to the system: glibc keeps tens of MB of a tokenizer's parsing. Else nothing."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):  # no glibc; on Windows CDLL(None) is a TypeError
        ctypes.CDLL(None).malloc_trim(0)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
