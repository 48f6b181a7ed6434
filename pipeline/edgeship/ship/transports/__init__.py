"""Ways to a board, a module each: run a command there, put a file, get one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgeship.errors import HostError, UsageError
from edgeship_runtime.console import safe

OnLine = Callable[[str], None]
"""Called with each line the board prints, control characters escaped; from threads of the transport."""


class CutError(HostError):
    """The connection broke, or nothing came for too long: the same step may work when tried again."""


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and the first megabyte of each stream."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Source:
    """A local file for a command's standard input, from byte `offset`; `progress` is told the bytes that went out."""

    path: Path
    offset: int = 0
    progress: Callable[[int], None] | None = None


class Transport(Protocol):
    """One board. Remote paths are relative to the home directory there. Every method raises HostError (CutError)."""

    @property
    def host(self) -> str:
        """What the user calls the board."""

    @property
    def pretends(self) -> bool:
        """True where nothing is really done: answers are empty and mean nothing."""

    def run(
        self, argv: Sequence[str], *, timeout: float, on_line: OnLine | None = None, source: Source | None = None
    ) -> Result:
        """Run a command; `timeout` in seconds, with a source: without a byte going out."""

    def put(self, local: Path, remote: str) -> None:
        """Write a file there, under a temporary name until it is whole."""

    def get(self, remote: str, limit: int) -> bytes:
        """The bytes of a file of at most `limit` bytes."""

    def close(self) -> None:
        """End the connection; harmless when there is none."""


@dataclass(frozen=True)
class Target:
    """Where a board is: `user` and `port` None where OpenSSH's configuration says them."""

    text: str
    host: str
    user: str | None = None
    port: int | None = None


_TARGET = re.compile(
    r"(?:ssh://)?(?:(?P<user>[\w.+-]+)@)?"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\](?::(?P<v6port>\d+))?"
    r"|(?P<name>[\w.-]+)(?::(?P<port>\d+))?"
    r"|(?P<bare>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?))/?",
    re.ASCII,
)


def parse_target(text: str) -> Target:
    """Read `host`, `user@host:port`, `[IPv6]:port`, a bare IPv6 address or `ssh://...`; raises UsageError."""
    match = _TARGET.fullmatch(text)
    host = match and (match["v6"] or match["name"] or match["bare"])
    # A leading dash would be an option of ssh, whatever the rest says.
    if not match or not host or host.startswith("-") or (match["user"] or "").startswith("-"):
        hint = "for instance --host pi@10.0.0.7, --host pi@[fe80::1%eth0]:2222 or --host local"
        raise UsageError(f"--host: expected [USER@]HOST[:PORT], found {safe(text[:80])!r}", hint=hint)
    port = int(match["v6port"] or match["port"] or 0)
    if port > 65535:
        raise UsageError(f"--host: port {port} is above 65535", hint="check the number after the last colon")
    return Target(text, host, match["user"], port or None)


def _local(text: str, options: Sequence[str], native: bool) -> Transport:
    from edgeship.ship.transports.local import LocalTransport

    return LocalTransport(Path.home())


def _ssh(text: str, options: Sequence[str], native: bool) -> Transport:
    from edgeship.ship.transports.ssh import SshTransport

    return SshTransport(parse_target(text), options)


def _adb(text: str, options: Sequence[str], native: bool) -> Transport:
    from edgeship.ship.transports.adb import parse_host

    return parse_host(text, native=native)


TRANSPORTS: dict[str, Callable[[str, Sequence[str], bool], Transport]] = {"local": _local, "ssh": _ssh, "adb": _adb}


def way_of(host: str) -> str:
    """The key in TRANSPORTS of what `--host` says: `local` is this machine, `adb` and `adb:SERIAL` devices there."""
    return "local" if host == "local" else "adb" if host.partition(":")[0] == "adb" else "ssh"


def open_transport(host: str, options: Sequence[str] = (), *, native: bool = False) -> Transport:
    """The transport for `--host`, of which ssh takes `options` (KEY=VALUE); an ssh host named adb is ssh://adb.

    `native`: for programs that need no Python, which over adb run where adb's own user may write, and not in Termux.
    Connects when first used. Raises UsageError for a host that cannot be.
    """
    return TRANSPORTS[way_of(host)](host, options, native)
