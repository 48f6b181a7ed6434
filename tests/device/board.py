"""An emulated Raspberry Pi that answers SSH on a loopback port.

    python tests/device/board.py pi5     # starts one, prints the ssh command, ends with Ctrl-C

Real: the ABI, glibc, instruction faults, choice of kernels, numerics, installs, SSH. Not real: speed, heat, memory
bandwidth, the amount of memory, the page size. The board has no network: connections are handed in from outside.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from device.chamber import launch
from device.models import MODELS, BoardModel
from device.rootfs import CACHE, BoardError, Say, extract, last_lines, missing, stop

HOST = "127.0.0.1"
USER = "pi"
CAVEAT = "emulated by qemu: its speed says nothing about a board's"
_START_SECONDS = 90.0
PYTHON = "usr/lib/python3.11"  # its library, in the root file system

# No Python on a board opens a socket, whatever is installed there and however it is started.
_NO_SOCKETS = """import sys

def _refuse(event, _):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError("sockets are blocked on this board")

sys.addaudithook(_refuse)
"""

_SSHD_CONFIG = """HostKey /etc/ssh/ssh_host_ed25519_key
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
PrintMotd no
Subsystem sftp /usr/lib/openssh/sftp-server
AuthorizedKeysFile /etc/ssh/authorized_keys
"""
# sshd starts sessions with an environment of its own: without this they run on a processor with everything.
_SSHD_CPU = "SetEnv QEMU_CPU={cpu}\n"


@dataclass(frozen=True)
class Board:
    """A running board; `root` is its file system as seen from here."""

    model: BoardModel
    port: int
    folder: Path
    process: subprocess.Popen[bytes] = field(repr=False)
    host: str = HOST
    user: str = USER

    @property
    def key(self) -> Path:
        """The private key that may log in."""
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        """The board's host key."""
        return self.folder / "known_hosts"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def ssh_options(self) -> list[str]:
        """Options for ssh, sftp and scp; the port is among them."""
        options = {
            "IdentityFile": self.key,
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.known_hosts,
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "Port": self.port,
        }
        return ["-F", "/dev/null", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]

    def run(
        self, command: str, *, timeout: float = 120, input: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as the board's user; raises subprocess.TimeoutExpired."""
        done = subprocess.run(
            ["ssh", *self.ssh_options(), f"{self.user}@{self.host}", command],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        out, error = (raw.decode(errors="replace") for raw in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(command, done.returncode, out, error)

    def put(self, files: Sequence[Path], remote: str, *, timeout: float = 300) -> None:
        """Copy files and directories into the directory `remote`, which is made."""
        pack = ["tar", "-c", *(word for each in files for word in ("-C", str(each.parent), each.name))]
        packed = subprocess.run(pack, capture_output=True, check=True).stdout
        into = shlex.quote(remote)
        done = self.run(f"mkdir -p {into} && tar -x --no-same-owner -C {into}", timeout=timeout, input=packed)
        if done.returncode:
            raise BoardError(f"copying to {remote} failed: {done.stderr.strip()}")

    def cut_power(self, seconds: float = 0) -> None:
        """End every process on the board at once; files stay, and it answers again after that time."""
        self.inflict(f"power {seconds:g}")

    def cut_connections(self) -> None:
        """Break every connection; what runs on the board goes on."""
        self.inflict("cut")

    @contextmanager
    def small_disk(self, size: int) -> Iterator[None]:
        """Give the user an empty home directory on a disk of `size` bytes, and the old one back afterwards."""
        self.inflict(f"disk {size}")
        self._await("df -P $HOME | grep -q tmpfs")
        try:
            yield
        finally:
            self.inflict("disk 0")
            self._await("! df -P $HOME | grep -q tmpfs")

    def inflict(self, fault: str) -> None:
        """Send a line to what runs the board."""
        assert self.process.stdin
        self.process.stdin.write(f"{fault}\n".encode())
        self.process.stdin.flush()

    def _await(self, condition: str) -> None:
        end = time.monotonic() + 20
        while self.run(condition).returncode:
            if time.monotonic() > end:
                raise BoardError(f"the board does not come to: {condition}; {last_lines(self.folder / 'log')}")
            time.sleep(0.2)


@contextmanager
def running(model: BoardModel, say: Say = lambda _: None) -> Iterator[Board]:
    """A fresh board of this model, ended and deleted afterwards; raises BoardError when it does not start."""
    CACHE.mkdir(parents=True, exist_ok=True)
    sweep()
    folder = Path(mkdtemp(prefix=f"run-{os.getpid()}-", dir=CACHE))
    try:
        extract(folder / "root", say)
        with socket.create_server((HOST, 0)) as listener:
            port = int(listener.getsockname()[1])
            _configure(folder, model, port)
            with (folder / "log").open("wb") as log:
                cpuinfo = folder / "cpuinfo"
                process = launch(
                    folder / "root", cpuinfo=cpuinfo, qemu_cpu=model.qemu_cpu, listener=listener, output=log
                )
        try:
            board = Board(model, port, folder, process)
            wait(board)
            say(f"{model.title} answers on {HOST}:{port} ({CAVEAT})")
            yield board
        finally:
            stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Delete the folders of boards whose process was killed: nothing is mounted there, its namespaces are gone."""
    for left in CACHE.glob("run-*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)


def _configure(folder: Path, model: BoardModel, port: int) -> None:
    root = folder / "root"
    give_keys(folder, port)
    with (root / "etc/ssh/sshd_config").open("a") as file:
        file.write(_SSHD_CPU.format(cpu=model.qemu_cpu))
    (folder / "cpuinfo").write_text(model.cpuinfo())
    title = root / "sys/firmware/devicetree/base/model"  # what /proc/device-tree points to on a board
    title.parent.mkdir(parents=True)
    title.write_text(f"{model.title}\0")


def give_keys(folder: Path, port: int) -> None:
    """Make a key for the user and one for the host, known here, and configure the board's sshd with them."""
    root = folder / "root"
    make_host_key(folder, port)
    _keygen(folder / "key")
    (root / "etc/ssh/authorized_keys").write_bytes((folder / "key.pub").read_bytes())
    (root / "etc/ssh/sshd_config").write_text(_SSHD_CONFIG)
    site = root / PYTHON / "sitecustomize.py"
    site.unlink(missing_ok=True)  # Debian's leads into /etc
    site.write_text(_NO_SOCKETS)
    (root / "etc/hostname").write_text("raspberrypi\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost raspberrypi\n")


def make_host_key(folder: Path, port: int, *, known: bool = True) -> None:
    """Give the board another host key, which the known hosts have if `known`."""
    path = folder / "root/etc/ssh/ssh_host_ed25519_key"
    path.unlink(missing_ok=True)
    _keygen(path)
    if known:
        (folder / "known_hosts").write_text(f"[{HOST}]:{port} {path.with_suffix('.pub').read_text()}")


def _keygen(path: Path) -> None:
    path.with_name(f"{path.name}.pub").unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)


def wait(board: Board, seconds: float = _START_SECONDS) -> None:
    """Until the board answers; raises BoardError, with the end of its logs."""
    end = time.monotonic() + seconds
    said = "nothing"
    while time.monotonic() < end and board.process.poll() is None:
        try:
            done = board.run("true", timeout=30)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            return
        said = done.stderr.strip()
        time.sleep(0.5)
    logs = "\n".join(map(last_lines, (board.folder / "log", board.root / "var/log/sshd.log")))
    raise BoardError(f"the board does not answer; ssh said: {said}; the logs end with:\n{logs}")


def keep(reason: str | None, start: Callable[[Say], AbstractContextManager[Board]]) -> int:
    """Start a board, say how to reach it, and wait: 0 when interrupted, 1 when it ends, 2 when `reason` forbids it."""

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    if reason:
        say(reason)
        return 2
    with start(say) as board:
        print(shlex.join(["ssh", *board.ssh_options(), f"{board.user}@{board.host}"]), flush=True)
        try:
            board.process.wait()
        except KeyboardInterrupt:
            return 0
    return 1


def main() -> int:
    """Run one board until interrupted."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    reason = f"usage: board.py {'|'.join(MODELS)}" if name not in MODELS else missing()
    return keep(reason, lambda say: running(MODELS[name], say=say))


if __name__ == "__main__":
    sys.exit(main())
