"""The emulated boards are what they claim to be: architecture, Python, processor, instruction faults, no network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device import rootfs
from device.board import Board
from device.models import PI4

pytestmark = [pytest.mark.device, pytest.mark.timeout(3600)]  # the first board is built, under emulation

# One instruction and a return: what each needs, and the boards that have it.
INSTRUCTIONS = {
    "sdot v0.4s, v1.16b, v2.16b": (0x4E829420, ("pi5",)),
    "fadd v0.8h, v1.8h, v2.8h": (0x4E421420, ("pi5",)),
    "ldadd wzr, w1, [sp]": (0xB83F03E1, ("pi5",)),
    "smmla v0.4s, v1.16b, v2.16b": (0x4E82A420, ()),
    "mul v0.4s, v1.4s, v2.4s": (0x4EA29C20, ("pi4", "pi5")),
}
EXECUTE = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(({word}).to_bytes(4, "little") + (0xD65F03C0).to_bytes(4, "little"))
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""
SIGILL = 128 + signal.SIGILL


def said(board: Board, command: str) -> str:
    done = board.run(command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_is_a_pi(board: Board) -> None:
    assert said(board, "uname -m; id -un").split() == ["aarch64", "pi"]
    assert said(board, "python3 --version").startswith("Python 3.11.")
    assert said(board, "ldd --version | head -1").endswith("2.36")
    cpuinfo = said(board, "cat /proc/cpuinfo")
    assert f"CPU part\t: {board.model.part}" in cpuinfo
    assert f"Model\t\t: {board.model.title}" in cpuinfo
    assert "vendor_id" not in cpuinfo
    assert said(board, "echo $QEMU_CPU") == board.model.qemu_cpu


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_the_board_lacks_end_the_process(board: Board, name: str) -> None:
    word, boards = INSTRUCTIONS[name]
    done = board.run("python3 -; echo $?", input=EXECUTE.format(word=hex(word)).encode())
    assert int(done.stdout) == (0 if board.model.name in boards else SIGILL), done.stderr


def test_there_is_no_network(board: Board) -> None:
    assert said(board, "tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]
    assert said(board, "tail -n +2 /proc/net/route") == ""
    for python in ("python3 -I", "venv-of-tests/bin/python -I"):
        board.run("python3 -m venv --without-pip venv-of-tests")
        done = board.run(f"{python} -c 'import socket; socket.socket()'")
        assert "sockets are blocked" in done.stderr


def test_each_start_has_a_name_of_its_own(board: Board) -> None:
    started = [said(board, "cat /proc/sys/kernel/random/boot_id") for _ in range(2)]
    board.cut_power()
    assert started[0] == started[1] != said(board, "cat /proc/sys/kernel/random/boot_id")


def test_a_broken_connection_leaves_processes_running(board: Board) -> None:
    options = board.ssh_options()
    remote = "trap '' HUP PIPE; echo up; sleep 3; echo on > went-on"
    with subprocess.Popen(["ssh", *options, f"{board.user}@{board.host}", remote], stdout=-1) as session:
        assert session.stdout
        assert session.stdout.readline() == b"up\n"
        board.cut_connections()
        assert session.wait(timeout=10) == 255
    time.sleep(4)
    assert said(board, "cat went-on") == "on"


def test_a_small_disk_is_full_at_its_size(board: Board) -> None:
    with board.small_disk(1 << 20):
        done = board.run("head -c 2000000 /dev/zero > all")
        assert "No space left" in done.stderr
    assert board.run("ls all").returncode != 0


def test_nothing_but_its_key_opens_it(board: Board, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    options = [word.replace(str(board.key), str(other)) for word in board.ssh_options()]
    done = subprocess.run(
        ["ssh", *options, f"{board.user}@{board.host}", "true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_after_a_power_cut_files_are_there_and_processes_are_not(board: Board) -> None:
    said(board, "echo kept > kept")
    options = board.ssh_options()
    with subprocess.Popen(["ssh", *options, f"{board.user}@{board.host}", "echo up; sleep 600"], stdout=-1) as session:
        assert session.stdout
        assert session.stdout.readline() == b"up\n"
        board.cut_power()
        assert session.wait(timeout=30) == 255
    assert said(board, "cat kept") == "kept"
    assert "sleep 600" not in said(board, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")


def _left(pid: int) -> list[str]:
    """Processes, mounts and files of a board that process `pid` started."""
    mark = f"run-{pid}-"
    processes = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if mark.encode() in _bytes(path) or f"edgeship-{pid}-".encode() in _bytes(path)
    ]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if mark in line]
    look = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && ls /proc/sys/fs/binfmt_misc"
    listed = subprocess.run(["unshare", "--mount", "sh", "-c", look], capture_output=True, text=True, check=True)
    handlers = [name for name in listed.stdout.split() if name.startswith(f"edgeship-{pid}-")]
    return processes + mounts + handlers


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_leaves_nothing_running(board: Board, sent: signal.Signals) -> None:
    if board.model != PI4:
        pytest.skip("the same for every model")
    script = str(Path(__file__).with_name("board.py"))
    with subprocess.Popen([sys.executable, script, "pi4"], stdout=subprocess.PIPE, stderr=-3) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b"ssh ")
        assert _left(process.pid)
        os.kill(process.pid, sent)
        process.wait(timeout=30)
    end = time.monotonic() + 20
    while _left(process.pid) and time.monotonic() < end:
        time.sleep(0.2)
    assert _left(process.pid) == []
    folders = list(rootfs.CACHE.glob(f"run-{process.pid}-*"))
    assert bool(folders) == (sent == signal.SIGKILL)  # what a killed process leaves, the next board deletes
