"""Stand-ins for adb: a server that knows one device, and a device that a real adb server connects to.

Both follow adb's own description (SERVICES.TXT, protocol.txt, shell_protocol.h); refusals are the words of adb 1.0.41.
Commands run here, in a home directory of their own.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from edgeship.ship.transports.adb import AdbTransport, parse_host

SERIAL = "R58M123ABC"
SHELL = ("sh", "-c")
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Shell:
    """One `shell,v2,raw:` command; `send` is given whole packets, the bytes of the other side go to `feed`."""

    def __init__(
        self, command: str, environment: dict[str, str], send: Callable[[bytes], None], shell: Sequence[str] = SHELL
    ) -> None:
        self._send, self._rest = send, b""
        self._process = subprocess.Popen(
            [*shell, command],
            cwd="/",
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        streams = ((STDOUT, self._process.stdout), (STDERR, self._process.stderr))
        readers = [threading.Thread(target=self._copy, args=each, daemon=True) for each in streams]
        for each in readers:
            each.start()
        for each in readers:
            each.join()
        code = self._process.wait()
        self._packet(EXIT, bytes([code if code >= 0 else 128 - code]))

    def _copy(self, kind: int, stream) -> None:  # type: ignore[no-untyped-def]
        while part := stream.read1(4000):
            self._packet(kind, part)

    def _packet(self, kind: int, raw: bytes) -> None:
        with self._lock, suppress(OSError):
            self._send(struct.pack("<BI", kind, len(raw)) + raw)

    def feed(self, raw: bytes) -> None:
        """Bytes from the other side, cut anywhere."""
        self._rest += raw
        while len(self._rest) >= 5:
            kind, size = struct.unpack("<BI", self._rest[:5])
            if len(self._rest) < 5 + size:
                return
            data, self._rest = self._rest[5 : 5 + size], self._rest[5 + size :]
            assert self._process.stdin
            with suppress(OSError, ValueError):
                if kind == STDIN:
                    self._process.stdin.write(data)
                    self._process.stdin.flush()
                elif kind == CLOSE_STDIN:
                    self._process.stdin.close()

    def end(self) -> None:
        """The other side is gone."""
        with suppress(OSError, ValueError):
            if self._process.stdin:
                self._process.stdin.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)


class Server:
    """An adb server; `state` other than `device` is what it refuses with, `shell` runs the device's commands."""

    def __init__(self, home: Path, shell: Sequence[str] = SHELL, **environment: str) -> None:
        self._shell = shell
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), **environment}
        self.state = "device"
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                self._open.add(link)
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def cut(self) -> None:
        """The cable is pulled: every session ends."""
        for link in tuple(self._open):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _serve(self, link: socket.socket) -> None:
        shell: Shell | None = None
        try:
            with link:
                while shell is None:
                    request = exactly(link, int(exactly(link, 4), 16)).decode()
                    self.requests.append(request)
                    refused = self._refusal(request)
                    if refused:
                        link.sendall(b"FAIL%04x" % len(refused) + refused.encode())
                        return
                    link.sendall(b"OKAY")
                    if request.startswith("shell,v2,raw:"):
                        shell = Shell(request.partition(":")[2], self.environment, link.sendall, self._shell)
                while raw := link.recv(1 << 16):
                    shell.feed(raw)
        except OSError:
            pass
        finally:
            self._open.discard(link)
            if shell:
                shell.end()

    def _refusal(self, request: str) -> str:
        if not request.startswith("host:"):
            return "" if request.startswith("shell,v2,raw:") else "closed"
        serial = request.removeprefix("host:transport:")
        if request != "host:transport-any" and serial != SERIAL:
            return f"device '{serial}' not found"
        return {
            "device": "",
            "offline": "device offline",
            "none": "no devices/emulators found",
            "two": "more than one device/emulator" if request == "host:transport-any" else "",
            "unauthorized": "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n"
            "Try 'adb kill-server' if that seems wrong.\n"
            "Otherwise check for a confirmation dialog on your device.",
        }[self.state]


@contextmanager
def server(home: Path, shell: Sequence[str] = SHELL, **environment: str) -> Iterator[Server]:
    """A running server whose device has `home` as HOME."""
    running = Server(home, shell, **environment)
    try:
        yield running
    finally:
        running.close()


class Device:
    """What adbd says on its own socket, without authentication; one server at a time."""

    def __init__(self, home: Path, shell: Sequence[str] = SHELL) -> None:
        self._shell = shell
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._shells: dict[int, tuple[Shell, threading.Event]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._link, _ = self._listener.accept()
                with suppress(OSError):
                    self._serve()

    def _say(self, command: bytes, first: int, second: int, raw: bytes = b"") -> None:
        word = int.from_bytes(command, "little")
        header = struct.pack("<6I", word, first, second, len(raw), sum(raw) & 0xFFFFFFFF, word ^ 0xFFFFFFFF)
        with self._lock:
            self._link.sendall(header + raw)

    def _serve(self) -> None:
        while True:
            command, theirs, mine, size, _, _ = struct.unpack("<4s5I", exactly(self._link, 24))
            raw = exactly(self._link, size)
            if command == b"CNXN":
                self._say(b"CNXN", 0x01000001, 1 << 18, b"device::ro.product.name=standin;features=shell_v2\0")
            elif command == b"OPEN":
                self._open(theirs, raw.rstrip(b"\0").decode())
            elif mine in self._shells:
                shell, ready = self._shells[mine]
                if command == b"WRTE":
                    shell.feed(raw)
                    self._say(b"OKAY", mine, theirs)
                elif command == b"OKAY":
                    ready.set()
                elif command == b"CLSE":
                    shell.end()
                    del self._shells[mine]

    def _open(self, theirs: int, service: str) -> None:
        if not service.startswith("shell,v2,raw:"):
            self._say(b"CLSE", 0, theirs)
            return
        mine, ready = theirs, threading.Event()  # numbers of both sides need not differ

        def send(packet: bytes) -> None:
            ready.wait(30)
            ready.clear()
            self._say(b"WRTE", mine, theirs, packet)
            if packet[0] == EXIT:
                ready.wait(30)
                self._say(b"CLSE", mine, theirs)

        self._say(b"OKAY", mine, theirs)
        ready.set()
        self._shells[mine] = (Shell(service.partition(":")[2], self._environment, send, self._shell), ready)


def exactly(link: socket.socket, size: int) -> bytes:
    """So many bytes; raises OSError at the end of the connection."""
    raw = b""
    while len(raw) < size:
        part = link.recv(size - len(raw))
        if not part:
            raise OSError("ended")
        raw += part
    return raw


@contextmanager
def own_server(home: Path, folder: Path) -> Iterator[AdbTransport]:
    """adb's own server, on a port of its own, with a device that is a stand-in; skips the test where adb is not."""
    program = shutil.which("adb")
    if program is None:
        pytest.skip("adb is not here (Debian: apt install adb)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"HOME": str(folder), "ANDROID_ADB_SERVER_PORT": str(port), "ADB_MDNS": "0"}
    device = Device(home)

    def ask(*words: str) -> str:
        done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr

    try:
        ask("start-server")
        assert "connected to" in ask("connect", device.serial)
        ask("-s", device.serial, "wait-for-device")
        yield parse_host(f"adb:{device.serial}", environment)
    finally:
        ask("kill-server")
        device.close()
