"""Cores, names and memory, read from a stand-in for /sys and /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeship_runtime import cpu


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def topology(pairs: list[str], name: str = "core_cpus_list") -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{n}/topology/{name}": f"{text}\n" for n, text in enumerate(pairs)}


@pytest.fixture(autouse=True)
def eight_logical(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


SMT = topology(["0,4", "1,5", "2,6", "3,7"] * 2)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        (SMT, 4),
        (topology(["0,4", "1,5", "2,6", "3,7"] * 2, "thread_siblings_list"), 4),
        (topology([str(n) for n in range(8)]), 8),
        (SMT | {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, 4),
        (SMT | {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        (SMT | {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        (SMT | {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "800000 100000"}, 4),
        (SMT | {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2),
        (SMT | {"proc/self/cgroup": "0::/host/only", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
        (
            SMT
            | {
                "proc/self/cgroup": "3:cpu,cpuacct:/box\n0::/",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        (SMT | {"proc/self/cgroup": "nonsense", "sys/fs/cgroup/cpu.max": "1 0"}, 4),
    ],
)
def test_usable_cores(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert cpu.usable_cores(system(tmp_path, files)) == cores


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = system(tmp_path, SMT)
    for allowed, cores in (({0, 4}, 1), ({0, 1}, 2), ({5}, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: allowed)
        assert cpu.usable_cores(root) == cores
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.usable_cores(tmp_path / "nowhere") == 1


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC\n"}, "AMD EPYC"),
        (
            {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0", "proc/cpuinfo": ""},
            "Raspberry Pi 5 Model B Rev 1.0",
        ),
        ({"sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B\0"}, "Raspberry Pi 4 Model B"),
        ({"proc/cpuinfo": "Hardware\t: Qualcomm SM8550\n"}, "Qualcomm SM8550"),
    ],
)
def test_cpu_name(tmp_path: Path, files: dict[str, str], name: str) -> None:
    assert cpu.cpu_name(system(tmp_path, files)) == name


def test_a_system_that_says_nothing_still_has_a_name(tmp_path: Path) -> None:
    assert cpu.cpu_name(tmp_path)


def test_peak_memory(tmp_path: Path) -> None:
    assert cpu.peak_rss_mb(system(tmp_path, {"proc/self/status": "Name: x\nVmHWM:\t  2000 kB\n"})) == 2.0
    elsewhere = cpu.peak_rss_mb(tmp_path / "nowhere")
    assert elsewhere is None or elsewhere > 1
