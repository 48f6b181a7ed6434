"""Where no board can be emulated the reason is said, with the line to run."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from device import kernel, rootfs


@pytest.fixture(autouse=True)
def pc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the tests."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


def test_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "takes root" in str(rootfs.missing())


def test_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "x86-64 Linux" in str(rootfs.missing())


def test_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(rootfs, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = str(rootfs.missing())
    assert "debootstrap" in found
    assert rootfs.APT_LINE in found


def test_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "MIRROR", "http://127.0.0.1:9/debian")
    assert "DEBIAN_MIRROR" in str(rootfs._unreachable())


def test_what_a_whole_machine_needs_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = str(kernel.missing())
    assert "qemu-system-aarch64" in found
    assert kernel.APT_LINE in found


def test_no_mirror_for_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if kernel.missing():
        pytest.skip(str(kernel.missing()))
    monkeypatch.setattr(kernel, "MIRROR", "http://127.0.0.1:9/debian")
    monkeypatch.setattr(kernel, "CACHE", tmp_path)
    with pytest.raises(rootfs.BoardError, match="apt-get"):
        kernel.boot_files(tmp_path, "/sbin/start", lambda _: None)
    assert list(tmp_path.iterdir()) == []
