"""A whole emulated machine: a kernel with 16 KiB pages, 2 GB of memory, a disk, a clock of its own.

    python tests/device/machine.py     # starts one, prints the ssh command, ends with Ctrl-C

Real here, and not on the other boards: the page size, the limit of memory, the kernel, a reset, the clock.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from device import kernel, rootfs
from device.board import CAVEAT, HOST, Board, give_keys, keep, sweep, wait
from device.models import PI5, BoardModel
from device.rootfs import CACHE, Say, extract

MEMORY_MB = 2048
PAGE = 16384
_PROGRAM = "/sbin/start"
_DISK = "3G"
_START_SECONDS = 240.0

# Process 1: nobody else is there to set anything up.
_START = """#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=0620,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
busybox hostname raspberrypi
busybox ip link set lo up
busybox ip address add 10.0.2.15/24 dev eth0
busybox ip link set eth0 up
/usr/sbin/sshd -E /var/log/sshd.log
while :; do busybox sleep 3600; done
"""


def missing() -> str | None:
    """Why no whole machine can be emulated here, and what to do; None when one can."""
    return rootfs.missing() or kernel.missing()


@contextmanager
def booted(say: Say = lambda _: None, *, model: BoardModel = PI5, clock: datetime | None = None) -> Iterator[Board]:
    """A machine with the processor of `model`, started at the time `clock`, deleted afterwards; raises BoardError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    sweep()
    folder = Path(mkdtemp(prefix=f"run-{os.getpid()}-machine-", dir=CACHE))
    try:
        with socket.create_server((HOST, 0)) as free:
            port = int(free.getsockname()[1])
        disk, image, initrd = _files(folder, port, say)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                _command(model, disk, image, initrd, folder / "console", port, clock),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            board = Board(model, port, folder, process)
            wait(board, _START_SECONDS)
            say(f"a machine with {PAGE} byte pages and {MEMORY_MB} MB answers on {HOST}:{port} ({CAVEAT})")
            yield board
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path, port: int, say: Say) -> tuple[Path, Path, Path]:
    """The disk, the kernel and the initrd."""
    root = folder / "root"
    extract(root, say)
    give_keys(folder, port)
    start = root / _PROGRAM.lstrip("/")
    start.write_text(_START)
    start.chmod(0o755)
    image, initrd = kernel.boot_files(root / "bin/busybox", _PROGRAM, say)
    disk = folder / "disk"
    make = ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), _DISK]
    subprocess.run(make, check=True, capture_output=True)
    shutil.rmtree(root)
    return disk, image, initrd


def _command(
    model: BoardModel, disk: Path, image: Path, initrd: Path, console: Path, port: int, clock: datetime | None
) -> list[str]:
    # The network leads to the port that is handed in, and nowhere else.
    network = f"user,id=net,restrict=on,hostfwd=tcp:{HOST}:{port}-:22"
    return [
        "setpriv", "--pdeathsig", "KILL", "nice", "-n", "5",
        "qemu-system-aarch64", "-M", "virt", "-cpu", model.qemu_cpu, "-smp", "4", "-m", str(MEMORY_MB),
        "-kernel", str(image), "-initrd", str(initrd), "-append", "console=ttyAMA0 quiet panic=5",
        "-drive", f"file={disk},format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk",
        "-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=",
        "-rtc", f"base={clock:%Y-%m-%dT%H:%M:%S}" if clock else "base=utc",
        "-display", "none", "-serial", f"file:{console}", "-monitor", "stdio",
    ]  # fmt: skip


def main() -> int:
    """Run one machine until interrupted."""
    return keep(missing(), lambda say: booted(say=say))


if __name__ == "__main__":
    sys.exit(main())
