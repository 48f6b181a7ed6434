"""The system's OpenSSH with the user's own configuration, keys and known hosts, over one shared connection."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgeship.errors import EdgeshipError, HostError, UsageError
from edgeship.ship.transports import CutError, Result, Target
from edgeship.ship.transports.command import CommandTransport, last_line
from edgeship_runtime.console import safe

CONNECT_TIMEOUT = 20.0  # seconds, unless the user's configuration says otherwise
_KEEPALIVE = 5  # seconds between signs of life; three missed ones end the connection
_LONGEST_SOCKET = 70  # characters: systems allow 104, and ssh appends its own while it connects
_OPTION = re.compile(r"[A-Za-z0-9]+=.+")
# Options that run a command here, or would take the checks away that every validation relies on.
_REFUSED = {"localcommand", "permitlocalcommand", "knownhostscommand", "batchmode", "controlmaster", "controlpath"}
_AGAIN = "run the same command again: what is done is kept"


class SshTransport(CommandTransport):
    """One host over ssh; `options` are OpenSSH's, as KEY=VALUE (such as ProxyJump=gate or IdentityFile=~/key)."""

    def __init__(self, target: Target, options: Sequence[str] = ()) -> None:
        super().__init__(target.text)
        self._target = target
        self._options = _checked(options)
        self._folder: Path | None = None
        self._master: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._base: list[str] = []

    def _command(self, argv: Sequence[str]) -> tuple[list[str], Path | None, Mapping[str, str] | None]:
        socket = self._connect()
        own = ["ssh", "-S", str(socket), "-o", "ControlMaster=no", *self._base]
        return [*own, "--", self._target.host, shlex.join(argv)], None, None

    def _failure(self, result: Result) -> HostError | None:
        if result.code != 255:  # ssh's own; a remote command may end with it too
            return None
        if self._alive():
            return None
        return CutError(f"the connection broke ({last_line(result.stderr)})", hint=_AGAIN)

    def close(self) -> None:
        """End the connection and what runs over it, and remove its socket."""
        super().close()
        with self._lock:
            self._drop()
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _alive(self) -> bool:
        """Whether the shared connection still stands; its end is seen a moment after that of a command on it."""
        deadline = time.monotonic() + 1
        while self._master is not None and self._master.poll() is None:
            if time.monotonic() > deadline:
                return True
            time.sleep(0.05)
        return False

    def _connect(self) -> Path:
        with self._lock:
            socket = self._socket()
            if self._master is not None and self._master.poll() is None and socket.exists():
                return socket
            self._drop()
            self._base = self._base or self._settings()
            command = ["ssh", "-M", "-S", str(socket), "-o", "ControlPersist=no", *self._base]
            with socket.with_name("said").open("w+b") as said:
                # `cat` ends with this process, however it ends, and the connection with it.
                self._master = _start([*command, "--", self._target.host, "cat"], said)
                try:
                    self._await(socket, said)
                except BaseException:
                    self._drop()
                    raise
            return socket

    def _await(self, socket: Path, said: IO[bytes]) -> None:
        assert self._master is not None
        # ssh has a limit of its own for each address and hop; this one is for those that accept and stay silent.
        deadline = time.monotonic() + 3 * CONNECT_TIMEOUT
        while not socket.exists():
            if self._master.poll() is not None:
                said.seek(0)
                raise connect_error(self._target, said.read(1 << 16).decode("utf-8", "replace"))
            if time.monotonic() > deadline:
                raise CutError(f"{self.host} did not answer in {3 * CONNECT_TIMEOUT:g} s", hint=_reach(self._target))
            time.sleep(0.02)

    def _socket(self) -> Path:
        if self._folder is None:
            base = tempfile.gettempdir()
            self._folder = Path(
                tempfile.mkdtemp(prefix="edgeship-", dir=base if len(base) < _LONGEST_SOCKET else "/tmp")
            )
        return self._folder / "s"

    def _drop(self) -> None:
        if self._master is not None:
            self._master.terminate()
            try:
                self._master.wait(5)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
            if self._master.stdin:
                self._master.stdin.close()
            self._master = None
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / "s").unlink(missing_ok=True)

    def _settings(self) -> list[str]:
        """Options of every call: the caller's first, since OpenSSH keeps the first value it reads."""
        where = [*(["-l", self._target.user] if self._target.user else [])]
        where += ["-p", str(self._target.port)] if self._target.port else []
        given = [part for option in self._options for part in ("-o", option)]
        theirs = self._configured([*where, *given])
        ours = {
            "BatchMode": "yes",
            "RequestTTY": "no",
            "RemoteCommand": "none",
            "PermitLocalCommand": "no",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
        }
        if theirs.get("stricthostkeychecking", "ask") in ("ask", "true", "yes"):
            ours["StrictHostKeyChecking"] = "yes"
        if theirs.get("connecttimeout", "none") in ("none", "0"):
            ours["ConnectTimeout"] = f"{CONNECT_TIMEOUT:g}"
        if theirs.get("serveraliveinterval", "0") == "0":
            ours["ServerAliveInterval"], ours["ServerAliveCountMax"] = str(_KEEPALIVE), "3"
        return [*where, *given, *(part for k, v in ours.items() for part in ("-o", f"{k}={v}"))]

    def _configured(self, arguments: Sequence[str]) -> dict[str, str]:
        """What the user's configuration and options come to for this host."""
        command = ["ssh", "-G", *arguments, "--", self._target.host]
        try:
            asked = subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=20, check=False
            )
        except FileNotFoundError:
            hint = "install OpenSSH's client (Debian: apt install openssh-client)"
            raise HostError("ssh is not on PATH", hint=hint) from None
        except subprocess.TimeoutExpired:
            raise HostError("ssh -G did not end in 20 s", hint="check `Match exec` in your ~/.ssh/config") from None
        if asked.returncode:
            hint = "check ~/.ssh/config and --ssh-option; see man ssh_config"
            raise UsageError(f"ssh refuses its configuration: {last_line(asked.stderr)}", hint=hint)
        pairs = (line.partition(" ") for line in asked.stdout.splitlines())
        return {key.lower(): value.strip().lower() for key, _, value in pairs}


def _start(command: list[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"LC_ALL": "C"}  # messages are read below
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"ssh cannot be started: {error.strerror}", hint="install OpenSSH's client") from None


def _checked(options: Sequence[str]) -> tuple[str, ...]:
    for option in options:
        key = option.partition("=")[0].lower()
        if not _OPTION.fullmatch(option) or key in _REFUSED:
            found = f"found {safe(option[:80])!r}"
            raise UsageError(
                f"--ssh-option: expected KEY=VALUE that does not touch {', '.join(sorted(_REFUSED))}; {found}",
                hint="for instance --ssh-option ProxyJump=gate.example",
            )
    return tuple(options)


def connect_error(target: Target, said: str) -> EdgeshipError:
    """The error for what ssh said before it gave up."""
    last = last_line("\n".join(line for line in said.splitlines() if not line.startswith("@")))
    if "IDENTIFICATION HAS CHANGED" in said:
        return _changed(target, said)
    if "Host key verification failed" in said or "host key is known" in said:
        hint = f"connect once by hand and compare the fingerprint before you accept it: {_by_hand(target)}"
        return HostError(f"the host key of {target.host} is not known here, so it is not trusted", hint=hint)
    if "Permission denied" in said:
        hint = f"no password is ever asked for; put your key there (ssh-copy-id), then check: {_by_hand(target)}"
        return HostError(f"{target.text} does not let us in: {last}", hint=hint)
    if "Bad configuration option" in said or "unknown option" in said or "keyword" in said:
        return UsageError(f"ssh refuses its configuration: {last}", hint="check ~/.ssh/config and --ssh-option")
    return CutError(f"no connection to {target.text}: {last}", hint=_reach(target))


def _changed(target: Target, said: str) -> HostError:
    where = re.search(r"Offending .*? key in (.+?):(\d+)", said)
    print_ = re.search(r"(SHA256:[A-Za-z0-9+/=]+)", said)
    known = f" ({safe(where[1])}, line {where[2]})" if where else ""
    shown = f"; it now shows {print_[1]}" if print_ else ""
    name = f"[{target.host}]:{target.port}" if target.port else target.host
    hint = (
        "someone may stand between you and the board. If it was set up anew, compare the fingerprint on the board "
        f"(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: ssh-keygen -R {shlex.quote(name)}"
    )
    return HostError(f"the host key of {target.host} has changed from the one known here{known}{shown}", hint=hint)


def _by_hand(target: Target) -> str:
    user = ["-l", target.user] if target.user else []
    return shlex.join(["ssh", *(["-p", str(target.port)] if target.port else []), *user, target.host])


def _reach(target: Target) -> str:
    return f"check that the board is on and that this works: {_by_hand(target)}"
