"""One validation at a time on a board: a lock there, and a transport whose commands run only while it is held.

The holder is a process on the machine that validates. While it works its commands renew the lock; when it is gone, the
next one takes over: at once from the same machine, which sees that the process has ended, after a restart of the board
at once too, and after LOCK_MINUTES from elsewhere.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgeship.errors import HostError
from edgeship.ship import scripts
from edgeship.ship.report import line
from edgeship.ship.transports import OnLine, Result, Source, Transport
from edgeship.ship.transports.command import last_line

_TIMEOUT = 120.0  # seconds for commands that answer at once on an idle board
_WHO = re.compile(
    r"(?P<user>[\w.-]*)@(?P<node>[\w.-]*),(?P<machine>[0-9a-f]{16}),(?P<pid>\d{1,10}),(?P<start>\d{0,20})"
)
_held: set[str] = set()  # tokens of this process: several boards, and in tests several validations of one


class LockedTransport:
    """A transport whose commands hold the board's lock once `take` has got it."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._token = secrets.token_hex(8)
        self._prologue = ""

    @property
    def host(self) -> str:
        return self._inner.host

    @property
    def pretends(self) -> bool:
        return self._inner.pretends

    def take(self, then: str = "", *given: str, timeout: float = _TIMEOUT) -> tuple[str, str]:
        """Get the lock, or find that it still is held: the board's boot id, and what the script `then` prints.

        Raises HostError where another has it.
        """
        _held.add(self._token)
        argv = ["sh", "-c", scripts.LOCK + then, "sh", self._token, _who(), "", *given]
        done = self._inner.run(argv, timeout=timeout)
        if done.code == scripts.LOCK_HELD and _has_ended(done.stdout.strip()):
            argv[6] = done.stdout.partition(":")[0].strip()
            done = self._inner.run(argv, timeout=timeout)
        if done.code == scripts.LOCK_HELD:
            raise _busy(done.stdout.strip())
        if done.code:
            hint = f"check that ~/{scripts.ROOT} on the board can be written, and its disk (df)"
            raise HostError(f"the lock cannot be made there: {last_line(done.stderr)}", hint=hint)
        self._prologue = scripts.kept(self._token)
        boot, _, rest = done.stdout.partition("\n")
        return boot.strip(), rest

    def forget(self) -> None:
        """Give the lock up without a word to the board, which cannot be reached: it runs out there."""
        self._prologue = ""
        _held.discard(self._token)

    def release(self) -> None:
        """Give the lock back where the board can be reached; harmless when it is not held."""
        if self._prologue:
            with suppress(HostError):
                self._inner.run(["sh", "-c", scripts.UNLOCK, "sh", self._token], timeout=_TIMEOUT)
        self.forget()

    def run(
        self, argv: Sequence[str], *, timeout: float, on_line: OnLine | None = None, source: Source | None = None
    ) -> Result:
        """Run a command as the inner transport does; HostError where the lock is another's by now."""
        if self._prologue:
            script = list(argv) if list(argv[:2]) == ["sh", "-c"] else ["sh", "-c", 'exec "$@"', "sh", *argv]
            argv = [*script[:2], self._prologue + script[2], *script[3:]]
        done = self._inner.run(argv, timeout=timeout, on_line=on_line, source=source)
        if self._prologue and done.code == scripts.LOCK_LOST:
            hint = "see who else validates there, then run the same command again: what is done is kept"
            raise HostError("another validation took over the board while this one was cut off", hint=hint)
        return done

    def put(self, local: Path, remote: str) -> None:
        """Write a file there."""
        self._inner.put(local, remote)

    def get(self, remote: str, limit: int) -> bytes:
        """The bytes of a file of at most `limit` bytes."""
        return self._inner.get(remote, limit)

    def close(self) -> None:
        """End the connection."""
        self._inner.close()


def _who() -> str:
    user = "user"
    with suppress(OSError, KeyError, ImportError):  # a container may have no name for its user
        user = getpass.getuser()
    names = (re.sub(r"[^\w.-]", "-", each, flags=re.ASCII)[:40] for each in (user, platform.node()))
    return f"{'@'.join(names)},{_machine()},{os.getpid()},{_started(os.getpid())}"


def _machine() -> str:
    """This machine since its start, and this container of it: what process numbers belong to."""
    told = [platform.node()]
    for name in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with suppress(OSError):
            told.append(Path(name).read_text())
    with suppress(OSError):
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _started(pid: int) -> str:
    """When a process of this machine began, in its own count; empty where the system does not say."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _has_ended(lock: str) -> bool:
    """Whether a lock's holder is a process of this machine that is no more."""
    token, _, rest = lock.partition(":")
    who = _WHO.fullmatch(rest.partition(":")[2])
    if who is None or who["machine"] != _machine():
        return False
    pid = int(who["pid"])
    if pid == os.getpid():
        return token not in _held
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _started(pid) != who["start"]


def _busy(lock: str) -> HostError:
    who = _WHO.fullmatch(lock.partition(":")[2].partition(":")[2])
    name = f"by {who['user']}@{who['node']}, process {who['pid']}" if who else line(lock, 100)
    hint = (
        f"wait until it ends; a lock that no command renews is taken over after {scripts.LOCK_MINUTES} minutes, "
        f"and ~/{scripts.ROOT}/.lock can be removed by hand"
    )
    return HostError(f"another validation is at work there, {name}", hint=hint)
