"""A device on the adb server of this machine: Android with Termux or without, and Linux boards that run adbd.

What goes over the socket is described in adb's SERVICES.TXT, and the packets of `shell,v2` in its shell_protocol.h.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from edgeship.errors import HostError, UsageError
from edgeship.ship.transports import CutError, OnLine, Source
from edgeship.ship.transports.command import CommandTransport, brief, last_line
from edgeship_runtime.console import safe

PORT = 5037
CONNECT_TIMEOUT = 10.0  # seconds: the server is on this machine
_START_TIMEOUT = 30.0
_MOST_WORDS = 1 << 14  # bytes of an answer of the server
_MOST_PACKET = 1 << 20
_CHUNK = 1 << 15
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_AGAIN = "run the same command again: what is done is kept"
_TERMUX = "/data/data/com.termux/files"
_TMP = "/data/local/tmp"  # where adb's own user may write and run things on every Android

# Where a native program runs: where adb may write and run things, on Linux boards the user's home.
_NATIVE_PLACE = f"""
if [ -w {_TMP} ]; then echo tmp
elif [ -n "$HOME" ] && [ "$HOME" != / ] && [ -w "$HOME" ]; then echo home
fi
"""
# Where commands run: the user's home where there is one, in Termux where it lets adb in, else where adb may write.
_PLACE = f"""
if [ -n "$HOME" ] && [ "$HOME" != / ] && [ -w "$HOME" ]; then echo home
elif run-as com.termux true 2>/dev/null; then echo termux
elif [ -w {_TMP} ]; then echo tmp
fi
"""
_PREPARED: Mapping[str, str] = {
    "home": "cd; ",
    "termux": f"export HOME={_TERMUX}/home PREFIX={_TERMUX}/usr PATH={_TERMUX}/usr/bin TMPDIR={_TERMUX}/usr/tmp; cd; ",
    "tmp": f"export HOME={_TMP} TMPDIR={_TMP}; cd; ",
}


class AdbTransport(CommandTransport):
    """One device; `serial` None: the only one there is. `server` is the address of the adb server.

    `native`: for programs that need no Python, and so not Termux.
    """

    def __init__(self, text: str, serial: str | None, server: tuple[str, int], *, native: bool = False) -> None:
        super().__init__(text)
        self._serial, self._server = serial, server
        self._script = _NATIVE_PLACE if native else _PLACE
        self._links: set[_Link] = set()
        self._kind = ""

    def close(self) -> None:
        """End what still runs; nothing can be run afterwards."""
        self._closed = True
        for link in tuple(self._links):
            link.close()

    def _run(
        self, argv: Sequence[str], timeout: float, on_line: OnLine | None, source: Source | None, keep: int
    ) -> tuple[bytes, bytes, int]:
        self._kind = self._kind or self._find_place()
        line = f"{_PREPARED[self._kind]}exec {shlex.join(argv)}"
        if self._kind == "termux":
            line = f"exec run-as com.termux {_TERMUX}/usr/bin/sh -c {shlex.quote(line)}"
        return self._shell(line, brief(argv), timeout, on_line, source, keep)

    def _find_place(self) -> str:
        out, err, _ = self._shell(self._script, "the first command", CONNECT_TIMEOUT * 3, None, None, _MOST_WORDS)
        kind = out.decode("utf-8", "replace").strip()
        if kind not in _PREPARED:
            hint = f"{_TMP} on an Android device is writable for adb; on a board give adbd's user a home directory"
            said = last_line(err.decode("utf-8", "replace"))
            raise HostError(f"{self.host}: adb's user can write nowhere ({said})", hint=hint)
        return kind

    def _shell(
        self, line: str, shown: str, timeout: float, on_line: OnLine | None, source: Source | None, keep: int
    ) -> tuple[bytes, bytes, int]:
        if self._closed:
            raise HostError(f"the connection to {self.host} was closed", hint="run the same command again")
        link = self._connect()
        self._links.add(link)
        try:
            link.ask("host:transport-any" if self._serial is None else f"host:transport:{self._serial}")
            link.ask(f"shell,v2,raw:{line}")
            return _Session(link, on_line, source, keep).wait(timeout, shown)
        except OSError as error:
            raise CutError(f"the connection broke ({error.strerror or error})", hint=_AGAIN) from None
        finally:
            self._links.discard(link)
            link.close()

    def _connect(self) -> _Link:
        try:
            return _Link(self._server, self.host)
        except ConnectionRefusedError:
            self._start_server()
        try:
            return _Link(self._server, self.host)
        except OSError as error:
            at = f"{self._server[0]}:{self._server[1]}"
            hint = "start it with: adb start-server"
            raise HostError(f"the adb server at {at} does not answer: {error.strerror}", hint=hint) from None

    def _start_server(self) -> None:
        program = shutil.which("adb")
        if program is None:
            hint = "install Android's platform tools (Debian: apt install adb), then: adb start-server"
            raise HostError("no adb server runs here, and adb is not on PATH", hint=hint)
        with suppress(OSError, subprocess.SubprocessError):  # the next try to connect says what is wrong
            command = [program, "-L", f"tcp:{self._server[0]}:{self._server[1]}", "start-server"]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_START_TIMEOUT, check=False)


class _Link:
    """A connection to the server: requests with a length before them, and OKAY or FAIL as the answer."""

    def __init__(self, server: tuple[str, int], host: str) -> None:
        self.socket = socket.create_connection(server, CONNECT_TIMEOUT)
        self._host = host

    def ask(self, request: str) -> None:
        """Send a request; raises HostError or CutError where the answer is no OKAY."""
        raw = request.encode()
        if len(raw) > 0xFFFF:
            raise HostError(f"a command of {len(raw)} bytes is too long for adb", hint="use shorter paths")
        self.socket.sendall(b"%04x" % len(raw) + raw)
        status = self.exactly(4)
        if status == b"OKAY":
            return
        if status != b"FAIL":
            raise HostError(
                f"what answers as adb server says {safe(status.decode('ascii', 'replace'))!r}",
                hint="see which program listens there (ADB_SERVER_SOCKET, ANDROID_ADB_SERVER_PORT)",
            )
        size = self.exactly(4)
        length = int(size, 16) if re.fullmatch(rb"[0-9a-fA-F]{4}", size) else 0
        raise refusal(self._host, self.exactly(min(length, _MOST_WORDS)).decode("utf-8", "replace"))

    def exactly(self, size: int) -> bytes:
        """So many bytes; raises CutError where the connection ends before."""
        raw = bytearray()
        while len(raw) < size:
            part = self.socket.recv(min(size - len(raw), 1 << 16))
            if not part:
                raise CutError("the connection to the device ended", hint=_AGAIN)
            raw += part
        return bytes(raw)

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class _Session:
    """A command on the device: packets of a kind, a length and bytes, both ways."""

    def __init__(self, link: _Link, on_line: OnLine | None, source: Source | None, keep: int) -> None:
        self._link, self._on_line, self._keep = link, on_line, keep
        self._kept = {_STDOUT: bytearray(), _STDERR: bytearray()}
        self._open_lines = {_STDOUT: b"", _STDERR: b""}
        self._fault: Exception | None = None
        self._code: int | None = None
        self._moved = time.monotonic()
        self._has_source = source is not None
        self._done = threading.Event()
        link.socket.settimeout(None)
        threading.Thread(target=self._read, daemon=True).start()
        self._feeder = threading.Thread(target=self._feed, args=(source,), daemon=True)
        self._feeder.start()

    def wait(self, timeout: float, shown: str) -> tuple[bytes, bytes, int]:
        """Both streams and the exit code; raises HostError for a timeout, in seconds, and CutError."""
        while not self._done.wait(0.1):
            if time.monotonic() - self._moved > timeout:
                hint = "see what the board is busy with, then run the same command again: what is done is kept"
                if self._has_source:
                    raise CutError(f"no byte went out for {timeout:g} s", hint=hint)
                raise HostError(f"`{shown}` did not end within {timeout:g} s", hint=hint)
        self._link.close()  # ends a feeder whose bytes nobody reads
        self._feeder.join(5)
        if self._fault:
            raise self._fault
        if self._code is None:
            raise CutError("the connection to the device ended", hint=_AGAIN)
        return bytes(self._kept[_STDOUT]), bytes(self._kept[_STDERR]), self._code

    def _read(self) -> None:
        try:
            while self._code is None:
                kind, size = struct.unpack("<BI", self._link.exactly(5))
                if size > _MOST_PACKET:
                    break
                raw = self._link.exactly(size)
                if kind in self._kept:
                    self._keep_part(kind, raw)
                elif kind == _EXIT and raw:
                    self._code = raw[0]
        except (OSError, CutError):
            pass  # without an exit code the connection was cut
        except Exception as error:
            self._fault = error
        finally:
            for kind in self._open_lines:
                self._tell(self._open_lines[kind])
            self._done.set()

    def _keep_part(self, kind: int, raw: bytes) -> None:
        kept = self._kept[kind]
        kept += raw[: max(0, self._keep - len(kept))]
        *lines, rest = (self._open_lines[kind] + raw).split(b"\n")
        self._open_lines[kind] = rest[-_CHUNK:]
        for line in lines:
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        if self._on_line and line:
            self._on_line(safe(line[:4096].decode("utf-8", "replace").rstrip("\r")))

    def _feed(self, source: Source | None) -> None:
        link = self._link.socket
        try:
            if source:
                with source.path.open("rb") as file:
                    file.seek(source.offset)
                    while chunk := file.read(_CHUNK):
                        link.sendall(struct.pack("<BI", _STDIN, len(chunk)) + chunk)
                        self._moved = time.monotonic()
                        if source.progress:
                            source.progress(len(chunk))
            link.sendall(struct.pack("<BI", _CLOSE_STDIN, 0))
        except ConnectionError:
            pass  # the exit code, or that there is none, says why the other end went away
        except OSError as error:
            if error.filename:  # of the file, not of the socket
                self._fault = error
                self._link.close()
        except Exception as error:
            self._fault = error
            self._link.close()


def refusal(host: str, said: str) -> HostError:
    """The error for what the server said in place of OKAY."""
    shown = last_line(said.partition("\n")[0])
    if "unauthorized" in said or "permissions" in said:
        hint = "unlock the device and allow this computer to debug it, then see: adb devices"
        return HostError(f"{host} does not let us in: {shown}", hint=hint)
    if "more than one" in said:
        return HostError(f"{host}: {shown}", hint="name one of them: --host adb:SERIAL; see: adb devices")
    if "shell" in said or "closed" in said or "unknown" in said:
        hint = "the device's adbd has to speak shell_v2 (Android 7 or newer)"
        return CutError(f"{host} refused the command: {shown}", hint=hint)
    return CutError(
        f"{host} cannot be reached: {shown}", hint="connect it with debugging allowed, then see: adb devices"
    )


def parse_host(text: str, environment: Mapping[str, str] = os.environ, *, native: bool = False) -> AdbTransport:
    """The transport for `adb` (the only device there is) or `adb:SERIAL`; raises UsageError.

    The server is the one adb itself would use: ADB_SERVER_SOCKET or ANDROID_ADB_SERVER_PORT, else port 5037 here.
    """
    serial = text.partition(":")[2] or None
    if text.endswith(":") or (serial and not _SERIAL.fullmatch(serial)):
        hint = "`adb devices` lists them; for instance --host adb:R58M123ABC or --host adb:192.168.1.5:5555"
        raise UsageError(f"--host: expected adb or adb:SERIAL, found {safe(text[:80])!r}", hint=hint)
    return AdbTransport(text, serial, _server(environment), native=native)


def _server(environment: Mapping[str, str]) -> tuple[str, int]:
    given = environment.get("ADB_SERVER_SOCKET") or f"tcp:{environment.get('ANDROID_ADB_SERVER_PORT') or PORT}"
    match = re.fullmatch(r"tcp:(?:\[?([\w.:-]+?)\]?:)?(\d{1,5})", given, re.ASCII)
    if match is None or not 0 < int(match[2]) < 65536:
        hint = "for instance ADB_SERVER_SOCKET=tcp:127.0.0.1:5037, or leave it unset"
        raise UsageError(f"expected the adb server at tcp:HOST:PORT, found {safe(given[:80])!r}", hint=hint)
    return match[1] or "127.0.0.1", int(match[2])
