"""A real sshd on a free port of the loopback interface, as this user, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_CONFIG = """Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
ForceCommand {command}
"""
# sshd sets HOME itself: the command has to change it.
_COMMAND = 'export HOME={home}; {more}cd "$HOME" && exec sh -c "$SSH_ORIGINAL_COMMAND"'


@dataclass
class Sshd:
    """A server; sessions find themselves in `home`."""

    folder: Path
    home: Path
    port: int
    address: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return f"{getpass.getuser()}@{shown}:{self.port}"

    @property
    def options(self) -> tuple[str, ...]:
        return (
            f"IdentityFile={self.folder}/user_key",
            "IdentitiesOnly=yes",
            f"UserKnownHostsFile={self.folder}/known_hosts",
            "GlobalKnownHostsFile=/dev/null",
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        exports = "".join(f"export {key}={value}; " for key, value in self.environment.items())
        command = _COMMAND.format(home=self.home, more=exports)
        config = _CONFIG.format(port=self.port, address=self.address, folder=self.folder, command=command)
        (self.folder / "config").write_text(config)
        with (self.folder / "log").open("ab") as log:
            given = [_sshd(), "-D", "-e", "-f", str(self.folder / "config")]
            self.process = subprocess.Popen(given, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError), socket.create_connection((self.address, self.port), 1):
                return
            time.sleep(0.05)
        pytest.skip(f"sshd does not start here: {(self.folder / 'log').read_text()[-300:]}")

    def stop(self) -> None:
        """End the server and every session of it."""
        if self.process is not None:
            for child in _children(self.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self.process = None

    def cut(self) -> None:
        """End all sessions; the server goes on."""
        assert self.process is not None
        for child in _children(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def new_key(self) -> None:
        """Give the server another host key, which the known hosts do not have."""
        for path in (self.folder / "host_key", self.folder / "host_key.pub"):
            path.unlink(missing_ok=True)
        _keygen(self.folder / "host_key")

    def know(self) -> None:
        """Write the host key into the known hosts."""
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[{self.address}]:{self.port} {kind} {key}\n")


def _children(pid: int) -> list[int]:
    """The sshd processes of sessions; what they run ends with its pipes."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            _, _, rest = stat.read_text().rpartition(")")
            if int(rest.split()[1]) == pid:
                found += [int(stat.parent.name)]
    return found + [each for child in found for each in _children(child) if _is_sshd(each)]


def _is_sshd(pid: int) -> bool:
    with suppress(OSError):
        return "sshd" in Path(f"/proc/{pid}/comm").read_text()
    return False


def _sshd() -> str:
    found = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if not found or not shutil.which("ssh"):
        pytest.skip("needs OpenSSH's server and client (Debian: openssh-server, openssh-client)")
    return found


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextmanager
def sshd(folder: Path, *, address: str = "127.0.0.1", **environment: str) -> Iterator[Sshd]:
    """A running server that lets this user in; skips the test where there is none."""
    _sshd()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # what sshd wants to exist when it runs as root
    (folder / "home").mkdir(parents=True)
    _keygen(folder / "host_key")
    _keygen(folder / "user_key")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as free:
            free.bind((address, 0))
            port = free.getsockname()[1]
    except OSError:
        pytest.skip(f"no address {address} here")
    server = Sshd(folder, folder / "home", port, address, environment)
    server.know()
    server.start()
    try:
        yield server
    finally:
        server.stop()
