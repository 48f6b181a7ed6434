"""An arm64 Debian for emulated boards: made once with debootstrap, kept as a tarball.

Needs root, and on the mirror's side Debian's archive. What is missing is said by `missing`, with the line to run.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from device.chamber import INTERPRETER, NAMESPACES, launch

CACHE = Path(__file__).parents[2] / ".cache" / "boards"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "python3-pip", "openssh-server", "rsync", "libgomp1", "busybox-static")
APT_LINE = "apt-get install -y debootstrap qemu-user-static openssh-client debian-archive-keyring"

Say = Callable[[str], None]

# What the packages' own scripts would do, as far as it is needed here: run under emulation they take eight minutes.
# Each board gets keys of its own; a star is no password, and unlike an exclamation mark locks no key login.
_SETUP = """
cp /usr/share/base-passwd/passwd.master /etc/passwd
cp /usr/share/base-passwd/group.master /etc/group
pwconv
grpconv
useradd --system --no-create-home --home-dir /run/sshd --shell /usr/sbin/nologin sshd
useradd --create-home --shell /bin/bash pi
usermod --password '*' pi
mkdir -p /run/sshd
ln -sf mawk /usr/bin/awk
ldconfig
rm -rf /debootstrap /var/cache/apt/* /var/lib/apt/lists/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
"""


class BoardError(Exception):
    """An emulated board could not be made or started; the message ends with what its log says last."""


def tarball() -> Path:
    """Where the file system is kept: the name follows from what goes into it."""
    made_of = "\n".join([SUITE, *PACKAGES, _SETUP])
    return CACHE / f"{SUITE}-arm64-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.tar.gz"


def missing() -> str | None:
    """Why no board can be emulated here, and what to do; None when one can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"boards are emulated on x86-64 Linux, this is {platform.system()} {platform.machine()}"
    if os.geteuid() != 0:
        return "emulating a board takes root (mounts, namespaces): sudo make test-device"
    programs = ["unshare", "chroot", "tar", "ssh", "ssh-keygen", str(INTERPRETER)]
    programs += [] if tarball().exists() else ["debootstrap", "dpkg-deb"]
    absent = [name for name in programs if not shutil.which(name)]
    if absent:
        return f"{', '.join(absent)} not found: {APT_LINE}"
    if "binfmt_misc" not in Path("/proc/filesystems").read_text() and subprocess.call(
        ["modprobe", "-q", "binfmt_misc"]
    ):
        return "the kernel has no binfmt_misc: modprobe binfmt_misc"
    tried = subprocess.run(["unshare", *NAMESPACES, "--net", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"namespaces are not allowed here ({tried.stderr.strip()}): in a container, run it with --privileged"
    return None if tarball().exists() else _unreachable()


def _unreachable() -> str | None:
    release = f"{MIRROR}/dists/{SUITE}/main/binary-arm64/Release"
    try:
        with urllib.request.urlopen(release, timeout=20):
            return None
    except (OSError, ValueError) as error:
        why = error.reason if isinstance(error, urllib.error.URLError) else error
        return f"no Debian mirror: {release}: {why}; DEBIAN_MIRROR=http://... names another"


def extract(root: Path, say: Say) -> None:
    """Put a fresh file system into the new directory `root`, making the tarball first where there is none."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests in several processes make it once
        if not tarball().exists():
            _make(say)
    root.mkdir()
    subprocess.run(["tar", "-xpzf", str(tarball()), "-C", str(root)], check=True)


def _make(say: Say) -> None:
    started = time.monotonic()
    log_path = CACHE / "build.log"
    with TemporaryDirectory(prefix="build-", dir=CACHE) as folder, log_path.open("wb") as log:
        root, packed = Path(folder) / "root", Path(folder) / "packed.tar.gz"
        say(f"{SUITE} for arm64 from {MIRROR}: downloading (about a minute); {log_path} says more")
        arguments = ["--arch=arm64", "--foreign", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        # In namespaces, so that nothing of it goes on when it is interrupted.
        command = ["unshare", *NAMESPACES, "debootstrap", *arguments, SUITE, str(root), MIRROR]
        with _ended(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)) as process:
            _expect_success(process, log_path, "debootstrap")
        say("unpacking")
        _unpack(root)
        _inside(root, log, log_path, "/bin/sh", "-euc", _SETUP)
        say("packing")
        subprocess.run(["tar", "-czf", str(packed), "-C", str(root), "."], check=True)
        packed.rename(tarball())
    say(f"{tarball().name}: {tarball().stat().st_size / 1e6:.0f} MB after {time.monotonic() - started:.0f} s")


def _unpack(root: Path) -> None:
    """Unpack every package into `root`, where debootstrap has downloaded them and unpacked the first."""
    for place in (root / "proc", root / "sys", root / "dev"):
        if place.is_symlink():  # debootstrap's, where it is run in a container: they lead to this machine's
            place.unlink()
            place.mkdir()
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as reading:
            subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", str(root)], stdin=reading.stdout, check=True)
        if reading.returncode:
            raise BoardError(f"{package.name} cannot be unpacked")


def _inside(root: Path, log: IO[bytes], log_path: Path, *command: str) -> None:
    with _ended(launch(root, *command, output=log)) as process:
        _expect_success(process, log_path, command[0])


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process of `launch` and everything inside."""
    if process.stdin and not process.stdin.closed:
        process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()  # unshare takes its child along, and that one everything else
        process.wait()


def _expect_success(process: subprocess.Popen[bytes], log_path: Path, what: str) -> None:
    if process.wait():
        raise BoardError(f"{what} failed (exit code {process.returncode}):\n{last_lines(log_path)}")


def last_lines(log: Path, count: int = 20) -> str:
    """The end of a log, which may not exist."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-count:])
