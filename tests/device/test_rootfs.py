"""Where no board can be emulated the reason is said, with the line to run."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from device import rootfs


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
