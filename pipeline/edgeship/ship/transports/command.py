"""What transports share that reach a board by starting a command here: streams, limits, timeouts, files by `cat`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgeship.errors import EdgeshipError, HostError, ResourceError
from edgeship.ship.transports import CutError, OnLine, Result, Source
from edgeship_runtime.console import safe

MAX_OUTPUT = 1 << 20  # bytes kept of each stream; a board that prints for ever must not fill this machine's memory
SEND_TIMEOUT = 60.0  # seconds without a byte going out
FILE_TIMEOUT = 120.0  # seconds for a small file to come back

_LINE = 4096
_CHUNK = 1 << 18
_PUT = 'LC_ALL=C; export LC_ALL; mkdir -p -- "$(dirname -- "$1")" && cat > "$1.part" && mv -f -- "$1.part" "$1"'
_GET = 'head -c "$2" < "$1"'


class CommandTransport:
    """A transport whose `_command` says how a remote command line is started from here."""

    pretends = False

    def __init__(self, host: str) -> None:
        self._host = host
        self._live: set[_Running] = set()
        self._closed = False

    @property
    def host(self) -> str:
        return self._host

    def _command(self, argv: Sequence[str]) -> tuple[list[str], Path | None, Mapping[str, str] | None]:
        """Argv, working directory and environment of the local process."""
        raise NotImplementedError

    def _failure(self, result: Result) -> HostError | None:
        """The error of the way itself, None where the remote command just ended."""
        return None

    def close(self) -> None:
        """End what still runs; nothing can be run afterwards."""
        self._closed = True
        for running in tuple(self._live):
            running.stop()

    def run(
        self, argv: Sequence[str], *, timeout: float, on_line: OnLine | None = None, source: Source | None = None
    ) -> Result:
        """Run a command on the board."""
        stdout, stderr, code = self._run(argv, timeout, on_line, source, MAX_OUTPUT)
        return Result(code, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))

    def put(self, local: Path, remote: str) -> None:
        """Write a file there, under a temporary name until it is whole."""
        done = self.run(["sh", "-c", _PUT, "sh", remote], timeout=SEND_TIMEOUT, source=Source(local))
        if done.code:
            raise write_error(remote, done)

    def get(self, remote: str, limit: int) -> bytes:
        """The bytes of a file of at most `limit` bytes."""
        argv = ["sh", "-c", _GET, "sh", remote, str(limit + 1)]
        raw, told, code = self._run(argv, FILE_TIMEOUT, None, None, limit + 1)
        if code:
            said = last_line(told.decode("utf-8", "replace"))
            raise HostError(f"{remote} cannot be read there: {said}", hint="run the same command again")
        if len(raw) > limit:
            raise HostError(f"{remote} is larger than {limit} bytes; it is not read", hint="no edgeship file there is")
        return raw

    def _run(
        self, argv: Sequence[str], timeout: float, on_line: OnLine | None, source: Source | None, keep: int
    ) -> tuple[bytes, bytes, int]:
        if self._closed:
            raise HostError(f"the connection to {self.host} was closed", hint="run the same command again")
        command, cwd, env = self._command(argv)
        running = _Running(command, cwd, env, on_line, source, keep)
        self._live.add(running)
        try:
            code = running.wait(timeout)
        except TimeoutError:
            hint = "see what the board is busy with, then run the same command again: what is done is kept"
            if source:
                raise CutError(f"no byte went out for {timeout:g} s", hint=hint) from None
            raise HostError(f"`{brief(argv)}` did not end within {timeout:g} s", hint=hint) from None
        finally:
            self._live.discard(running)
            running.stop()
        out, err = bytes(running.kept[0]), bytes(running.kept[1])
        failure = self._failure(Result(code, "", err.decode("utf-8", "replace"))) if code else None
        if failure:
            raise failure
        return out, err, code


class _Running:
    """A child process with both streams read as they come, and a file fed to it."""

    def __init__(
        self,
        command: list[str],
        cwd: Path | None,
        env: Mapping[str, str] | None,
        on_line: OnLine | None,
        source: Source | None,
        keep: int,
    ) -> None:
        self.kept = (bytearray(), bytearray())
        self._keep, self._on_line, self._lock = keep, on_line, threading.Lock()
        self._moved = time.monotonic()
        self._fault: Exception | None = None
        try:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE if source else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            hint = f"install {command[0]}, or put it on PATH"
            raise HostError(f"{command[0]} cannot be started: {error.strerror}", hint=hint) from None
        streams = (self._process.stdout, self._process.stderr)
        jobs = [(self._read, (stream, kept)) for stream, kept in zip(streams, self.kept, strict=True)]
        self._readers = [threading.Thread(target=job, args=given, daemon=True) for job, given in jobs]
        self._feeder = threading.Thread(target=self._feed, args=(source,), daemon=True) if source else None
        for thread in (*self._readers, *((self._feeder,) if self._feeder else ())):
            thread.start()

    def wait(self, timeout: float) -> int:
        """The exit code; raises TimeoutError, and what reading the source raised."""
        self._moved = time.monotonic()
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(0.1)
                break
            if time.monotonic() - self._moved > timeout:
                raise TimeoutError
        for thread in self._readers:
            thread.join(5)  # a grandchild may hold the pipe open for longer; what it says is not waited for
        if self._fault:
            raise self._fault
        return code

    def stop(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._feeder:
            self._feeder.join(5)

    def _read(self, stream: IO[bytes] | None, kept: bytearray) -> None:
        assert stream is not None
        with stream:
            while line := stream.readline(_LINE):
                kept += line[: max(0, self._keep - len(kept))]
                if self._on_line:
                    with self._lock:
                        self._on_line(safe(line.decode("utf-8", "replace").rstrip("\r\n")))

    def _feed(self, source: Source) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            with source.path.open("rb") as file:
                file.seek(source.offset)
                while chunk := file.read(_CHUNK):
                    pipe.write(chunk)
                    pipe.flush()
                    self._moved = time.monotonic()
                    if source.progress:
                        source.progress(len(chunk))
        except (BrokenPipeError, ConnectionError):
            pass  # the exit code says why the other end went away
        except Exception as error:
            self._fault = error
        finally:
            with suppress(OSError):
                pipe.close()


def write_error(remote: str, done: Result) -> EdgeshipError:
    """The error for a file that could not be written on the board."""
    said = last_line(done.stderr)
    if "No space left" in done.stderr or "quota exceeded" in done.stderr.lower():
        return ResourceError(
            f"{remote}: the board's disk is full ({said})", hint="free some space there, or use --prune"
        )
    hint = "check the directory and its permissions on the board"
    return HostError(f"{remote} cannot be written there: {said}", hint=hint)


def last_line(text: str) -> str:
    """The last line that says something, safe for a terminal and cut to 300 characters."""
    lines = [line for each in text.splitlines() if (line := " ".join(each.split()))]
    return safe(lines[-1][:300]) if lines else "no message"


def brief(argv: Sequence[str]) -> str:
    """A command as one line of at most 100 characters."""
    text = " ".join(" ".join(argv).split())
    return safe(text if len(text) <= 100 else f"{text[:99]}…")
