"""A phone as far as a shell sees it: Android's shell (mksh) and tools (toybox) in a root of their own, and no Python.

Programs for ARM run through qemu there, by a script in the place of the runner: the kernel is this machine's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

QEMU = shutil.which("qemu-aarch64-static")
SHELL, TOYBOX = shutil.which("mksh-static"), shutil.which("toybox")
TMP = "data/local/tmp"
CPUS = {"cortex-a72": "edgeship-runner", "cortex-a76": "edgeship-runner-dotprod"}
"""Processors that qemu knows, and the best of our builds for each."""


def need_qemu() -> str:
    """qemu's program; skips where it is missing."""
    if QEMU is None:
        pytest.skip("qemu-aarch64-static is not here (Debian: apt install qemu-user-static)")
    return QEMU


def enter(root: Path, **environment: str) -> list[str]:
    """The beginning of a command inside `root`, with /proc and nothing of our environment; needs user namespaces."""
    script = 'mount --rbind /proc "$0/proc" && exec chroot "$0" "$@"'
    outside = [shutil.which("env") or "env", "-i", f"PATH={os.environ['PATH']}:/usr/sbin:/sbin"]
    given = [f"{name}={value}" for name, value in environment.items()]
    return [*outside, *given, "unshare", "--map-root-user", "--mount", "sh", "-c", script, str(root)]


def need_namespaces(root: Path) -> None:
    """Skip where a root of its own cannot be had."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    asked = ["unshare", "--map-root-user", "--mount", "mount", "--rbind", "/proc", str(root / "proc")]
    if shutil.which("unshare") is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here: run it as root")


def make_phone(root: Path, cpu: str = "cortex-a76") -> list[str]:
    """A root with a shell and its tools; the command line of a shell in it, up to the command."""
    if SHELL is None or TOYBOX is None:
        pytest.skip("mksh or toybox is not here (Debian: apt install mksh toybox)")
    need_namespaces(root)
    tools = root / "system/bin"
    tools.mkdir(parents=True)
    (root / TMP).mkdir(parents=True)
    (root / "dev").mkdir()
    (root / "dev/null").touch()
    shutil.copy(SHELL, tools / "sh")
    _copy_program(TOYBOX, root)
    for name in subprocess.run([TOYBOX], capture_output=True, text=True, check=True).stdout.split():
        if name not in ("sh", "uname"):
            (tools / name).symlink_to("toybox")
    for name in ("tr", "cut"):  # Android's toybox has them, Debian's has not
        if not (tools / name).exists():
            _copy_program(str(shutil.which(name)), root)
    _write(tools / "uname", "case $1 in -m) echo aarch64 ;; -o) echo Android ;; *) echo Linux ;; esac\n")
    _write(tools / "getprop", '[ "$1" = ro.product.model ] && echo "Stand-in 9"\n')
    shutil.copy(need_qemu(), root / "qemu")
    inside = ["/system/bin/env", "-i", "PATH=/system/bin", "HOME=/", f"QEMU_CPU={cpu}"]
    return [*enter(root), *inside, "/system/bin/sh", "-c"]


def _write(path: Path, text: str) -> None:
    path.write_text(f"#!/system/bin/sh\n{text}")
    path.chmod(0o755)


def _copy_program(path: str, root: Path) -> None:
    shutil.copy(path, root / "system/bin")
    for library in re.findall(r"(/\S+)", subprocess.run(["ldd", path], capture_output=True, text=True).stdout):
        (root / library.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library.lstrip("/"))


def programs(folder: Path, built: dict[str, Path], cpu: str = "cortex-a76") -> dict[str, Path]:
    """The files of a runner whose main program is run by the qemu of such a root, as the build that fits `cpu`."""
    folder.mkdir()
    _write(folder / "edgeship-runner", f'exec /qemu -cpu {cpu} "$0.arm" "$@"\n')
    return {**built, "edgeship-runner": folder / "edgeship-runner", "edgeship-runner.arm": built[CPUS[cpu]]}
