"""Process 1 of an emulated board: it makes the mounts, then serves SSH or runs one command inside the file system.

It lives in namespaces of its own (`launch`): when it ends, the kernel ends every process in there and drops the mounts.
It ends when its standard input closes, so also when whoever started it is killed. Lines on standard input are faults:
`power SECONDS` (every process dies, the files stay, nobody answers for so long), `cut` (connections break, processes
go on) and `disk BYTES` (the home directory is an empty disk of that size; 0 gives the old one back).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

INTERPRETER = Path("/usr/bin/qemu-aarch64-static")
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_MAGIC = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00"
_MASK = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_CORES = 4  # of a Pi; emulated processes see the host's
_HOME = "home/pi"
NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc")


def launch(
    root: Path,
    *command: str,
    cpuinfo: Path | None = None,
    qemu_cpu: str | None = None,
    listener: socket.socket | None = None,
    output: IO[bytes],
) -> subprocess.Popen[bytes]:
    """Run `command` inside `root`, or serve SSH on `listener`; closing the process's stdin ends it and all it started.

    There is no network inside: connections come through `listener`, which belongs to the outside.
    """
    arguments = ["--name", f"edgeship-{os.getpid()}-{root.parent.name}"]
    arguments += ["--cpuinfo", str(cpuinfo)] if cpuinfo else []
    arguments += ["--listener", str(listener.fileno())] if listener else []
    inside = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        ["unshare", *NAMESPACES, "--net", sys.executable, "-I", __file__, *arguments, "--", str(root), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=inside | ({"QEMU_CPU": qemu_cpu} if qemu_cpu else {}),
        pass_fds=[listener.fileno()] if listener else [],
        start_new_session=True,  # an interrupt from the terminal is for the tests, which then end this in order
    )


def main() -> int:
    """Prepare the board and do what the command line says until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--cpuinfo", type=Path)
    parser.add_argument("--listener", type=int)
    parser.add_argument("command", nargs="*")
    args = parser.parse_args()
    socket.sethostname("raspberrypi")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    _mount_all(args.root, args.cpuinfo)
    with _emulation(args.name):
        if args.listener is None:
            return _run(["chroot", str(args.root), *args.command])
        with socket.socket(fileno=args.listener) as listener:
            _Server(args.root, listener).serve()
    return 0


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _mount_all(root: Path, cpuinfo: Path | None) -> None:
    _mount("-t", "proc", "proc", root / "proc")
    if cpuinfo:  # onnxruntime reads it, and the host's makes it crash
        _mount("--bind", cpuinfo, root / "proc/cpuinfo")
    _new_boot(root)
    _mount(
        "--bind", _boot_id(root), root / "proc/sys/kernel/random/boot_id"
    )  # a board starts oftener than this machine
    dev = root / "dev"
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", dev)
    for name in _DEVICES:
        (dev / name).touch()
        _mount("--bind", Path("/dev") / name, dev / name)
    for link, target in (("fd", "/proc/self/fd"), ("ptmx", "pts/ptmx")):
        (dev / link).symlink_to(target)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (dev / name).symlink_to(f"/proc/self/fd/{number}")
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620", "devpts", dev / "pts")
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", dev / "shm")


def _boot_id(root: Path) -> Path:
    return root.with_name("boot_id")


def _new_boot(root: Path) -> None:
    _boot_id(root).write_text(f"{uuid.uuid4()}\n")


@contextmanager
def _emulation(name: str) -> Iterator[None]:
    """Let the kernel start arm64 programs through qemu; the entry is taken back at the end."""
    if not (_BINFMT / "register").exists():
        _mount("-t", "binfmt_misc", "binfmt_misc", _BINFMT)
    magic, mask = ("".join(f"\\x{byte:02x}" for byte in raw) for raw in (_MAGIC, _MASK))
    # F: the kernel keeps the interpreter open, so it is found inside the board. P: programs see the name they were
    # started under, as on a board.
    (_BINFMT / "register").write_text(f":{name}:M::{magic}:{mask}:{INTERPRETER}:PF")
    try:
        yield
    finally:
        with suppress(OSError):
            (_BINFMT / name).write_text("-1")


def _run(command: Sequence[str]) -> int:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as child:
        while child.poll() is None:
            if select.select([0], [], [], 0.2)[0] and not os.read(0, 64):
                child.kill()
        return child.returncode if child.returncode >= 0 else 128 - child.returncode


class _Server:
    """Answers connections with a sshd each, and does what standard input says."""

    def __init__(self, root: Path, listener: socket.socket) -> None:
        self._root, self._listener = root, listener
        self._sshd = ["chroot", str(root), "/usr/sbin/sshd", "-i", "-E", "/var/log/sshd.log"]
        self._sessions: dict[int, socket.socket] = {}
        self._off_until = 0.0

    def serve(self) -> None:
        """Go on until standard input closes."""
        self._listener.setblocking(False)
        while True:
            ready = select.select([0, self._listener.fileno()], [], [], 0.2)[0]
            if 0 in ready:
                told = os.read(0, 4096)
                if not told:
                    return
                for fault in told.decode().splitlines():
                    self._inflict(*fault.split())
            if self._listener.fileno() in ready:
                self._accept()
            with suppress(ChildProcessError):  # orphans come to process 1
                while pid := os.waitpid(-1, os.WNOHANG)[0]:
                    if pid in self._sessions:
                        self._sessions.pop(pid).close()

    def _inflict(self, fault: str, amount: str = "0") -> None:
        if fault == "power":
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            self._off_until = time.monotonic() + float(amount)
            _new_boot(self._root)
        elif fault == "cut":
            for session in self._sessions.values():
                with suppress(OSError):
                    session.shutdown(socket.SHUT_RDWR)
        elif fault == "disk" and amount == "0":
            subprocess.run(["umount", "--lazy", str(self._root / _HOME)], check=True)
        elif fault == "disk":
            home = self._root / _HOME
            owner = home.stat()
            options = f"size={amount},uid={owner.st_uid},gid={owner.st_gid},mode=755"
            _mount("-t", "tmpfs", "-o", options, "tmpfs", home)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone before it was answered
            return
        if time.monotonic() < self._off_until:
            connection.close()
            return
        end = connection.fileno()
        child = subprocess.Popen(self._sshd, stdin=end, stdout=end, stderr=subprocess.DEVNULL)
        self._sessions[child.pid] = connection  # open until its sshd ends: whoever holds it can break it


if __name__ == "__main__":
    sys.exit(main())
