"""install.sh, run here: what it makes, what it refuses, and that a failure leaves the version before it alone."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from acceptance_files import write_acceptance
from bundles import PYTHON, registry_problem, seal, write_bundle
from edgeship import catalog
from edgeship.progress import Silent
from edgeship.ship.bundle import make_bundle
from toy_artifact import write_toy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="install.sh is for POSIX systems")

PATH = f"{Path(sys.base_prefix) / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


def can(*command: str) -> bool:
    """Whether this machine lets us run `command`."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except OSError:
        return False


NO_NETWORK = ["unshare", "--net"] if can("unshare", "--net", "true") else []


class Board:
    """A home directory to install into, with a space in its path."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()

    @property
    def current(self) -> Path:
        return self.home / "edgeship/toy/current"

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {"PATH": PATH}
        # A network that pip would use if it were asked to, and modules in the way: neither may matter.
        return kept | {"HOME": str(self.home), "PIP_INDEX_URL": "http://192.0.2.1/", "PYTHONPATH": "/nowhere"} | more

    def install(
        self, bundle: Path, *arguments: str, shell: Sequence[str] = ("sh",), **more: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*NO_NETWORK, *shell, str(bundle / "install.sh"), *arguments]
        options: dict[str, object] = {"capture_output": True, "text": True, "timeout": 120, "check": False}
        return subprocess.run(command, env=self.environment(**more), cwd=self.home, **options)  # type: ignore[call-overload,no-any-return]

    def names(self) -> list[str]:
        return sorted(p.name for p in self.home.rglob("*"))


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path / "a home")


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "a bundle", **facts: object) -> Path:
        return write_bundle(tmp_path / name, **facts)  # type: ignore[arg-type]

    return write


@pytest.fixture
def working(board: Board, bundle: Callable[..., Path]) -> Path:
    """A version that is installed and current."""
    done = board.install(bundle("the first", digest="aaaaaaaaaaaa"))
    assert done.returncode == 0, done.stderr
    return board.current.resolve()


# what it makes


@pytest.mark.parametrize("shell", SHELLS)
def test_installs_without_a_network(board: Board, bundle: Callable[..., Path], shell: str) -> None:
    done = board.install(
        bundle(verdict="alone" if NO_NETWORK else "0"), shell=(["busybox", "sh"] if shell == "busybox" else [shell])
    )
    assert done.returncode == 0, done.stderr
    assert os.readlink(board.current) == "0123456789ab"
    assert (board.current / "artifact/verdict").is_file()
    assert not any(name.startswith((".current", ".edgeship-half", "tmp")) for name in board.names())
    python = board.current / "venv/bin/python"
    found = subprocess.run(
        [python, "-I", "-c", "import edgeship_runtime as e; print(e.__file__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "a home" in found.stdout


def test_a_new_version_is_switched_to_and_the_old_one_stays(
    board: Board, bundle: Callable[..., Path], working: Path
) -> None:
    assert board.install(bundle(digest="bbbbbbbbbbbb")).returncode == 0
    assert os.readlink(board.current) == "bbbbbbbbbbbb"
    assert working.is_dir()


def test_the_same_bundle_again_verifies_and_changes_nothing(board: Board, bundle: Callable[..., Path]) -> None:
    made = bundle()
    board.install(made)
    before = (board.current / "venv").stat().st_mtime_ns
    done = board.install(made)
    assert done.returncode == 0, done.stderr
    assert "verifying" in done.stdout
    assert "installing the wheels" not in done.stdout
    assert (board.current / "venv").stat().st_mtime_ns == before


def test_prefix(board: Board, bundle: Callable[..., Path], tmp_path: Path) -> None:
    done = board.install(bundle(), "--prefix", f"{tmp_path}/else where/v1/")
    assert done.returncode == 0, done.stderr
    assert os.readlink(tmp_path / "else where/current") == "v1"
    assert board.names() == []


def test_without_a_model(board: Board, bundle: Callable[..., Path]) -> None:
    done = board.install(bundle(model=False))
    assert done.returncode == 0, done.stderr
    assert "checking the engine" in done.stdout


def test_a_doctor_who_says_no(board: Board, bundle: Callable[..., Path], working: Path) -> None:
    done = board.install(bundle(model=False, ill=True))
    assert done.returncode == 16
    assert "error: onnxruntime 1.0 crashes (SIGILL): nothing can run with it.\n\nhint: make a bundle for" in done.stderr
    assert "warning: hot" in done.stdout
    assert unchanged(board, working)


def test_what_a_power_cut_left_is_cleared_away(board: Board, bundle: Callable[..., Path]) -> None:
    left = board.home / "edgeship/toy/0123456789ab"
    (left / "venv").mkdir(parents=True)
    (left / ".edgeship-half").write_text("0123456789ab\n")
    (left / "rest").touch()
    assert board.install(bundle()).returncode == 0
    assert "rest" not in board.names()


def test_user_service(board: Board, bundle: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/asked"\n')
    (tmp_path / "bin/systemctl").chmod(0o755)
    path = f"{tmp_path}/bin:{PATH}"
    strange = tmp_path / '100 % of "it"' / "v1"
    done = board.install(bundle(), "--user-service", "--prefix", str(strange), PATH=path)
    assert done.returncode == 0, done.stderr
    unit = board.home / ".config/systemd/user/edgeship-toy.service"
    assert '100 %% of \\"it\\"/current/venv/bin/python"' in unit.read_text()
    assert (unit.parent / "default.target.wants" / unit.name).resolve() == unit
    assert "daemon-reload" in (tmp_path / "asked").read_text()
    done = board.install(tmp_path / "a bundle", "--uninstall", "--prefix", str(strange), PATH=path)
    assert done.returncode == 0, done.stderr
    assert unit.name not in board.names()
    assert not strange.parent.exists()


def test_uninstall(board: Board, bundle: Callable[..., Path], working: Path, tmp_path: Path) -> None:
    made = bundle(digest="bbbbbbbbbbbb")
    assert board.install(made).returncode == 0
    assert board.install(tmp_path / "the first", "--uninstall").returncode == 0
    assert not working.exists()
    assert os.readlink(board.current) == "bbbbbbbbbbbb"
    assert board.install(made, "--uninstall").returncode == 0
    assert "current" not in board.names()
    done = board.install(made, "--uninstall")
    assert done.returncode == 8
    assert "nothing is installed here" in done.stderr


def test_uninstall_leaves_other_folders_alone(board: Board, bundle: Callable[..., Path]) -> None:
    (board.home / "mine").mkdir()
    done = board.install(bundle(), "--uninstall", "--prefix", str(board.home / "mine"))
    assert done.returncode == 8
    assert board.names() == ["mine"]


# What the runtime does where opening a socket is an error.
NO_SOCKETS = """
import runpy, socket, sys

def refused(*_, **__):
    raise SystemExit("a socket was opened")

socket.socket = socket.create_connection = socket.getaddrinfo = refused
sys.argv = ["edgeship-runtime", "verify", sys.argv[1]]
runpy.run_module("edgeship_runtime", run_name="__main__")
"""


def test_a_real_bundle_for_this_machine(board: Board, tmp_path: Path) -> None:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("the profile is that of a Linux machine with x86-64")
    if registry_problem():
        pytest.skip(registry_problem())
    toy = write_acceptance(write_toy(tmp_path / "toy/onnx")).parent
    device = catalog.find_device("laptop-avx2").model_copy(update={"name": "here", "python": (PYTHON,)})
    made = make_bundle(toy, device, "ort", tmp_path / "bundles here", kind=None, progress=Silent())
    done = board.install(made.path)
    assert done.returncode == 0, done.stderr
    assert "pass" in done.stdout
    command = [board.current / "venv/bin/python", "-I", "-c", NO_SOCKETS, board.current / "artifact"]
    done = subprocess.run([*NO_NETWORK, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# what it refuses before anything is written


@pytest.mark.parametrize(
    ("facts", "code", "said"),
    [
        ({"arch": "riscv64"}, 20, "this bundle is for riscv64 (here), and this machine is"),
        ({"os": "macos" if sys.platform != "darwin" else "linux"}, 20, "this bundle is for"),
        ({"pythons": ("3.99", "2.1")}, 10, f"(Python {PYTHON})"),
        ({"glibc": "9.99"}, 20, "needs glibc 9.99 or newer"),
        ({"needs_mb": 10**9}, 9, "installing takes 1000000000 MB"),
    ],
)
def test_a_machine_that_does_not_fit(
    board: Board, bundle: Callable[..., Path], facts: dict[str, object], code: int, said: str
) -> None:
    done = board.install(bundle(**facts))
    assert done.returncode == code
    assert said in done.stderr
    assert "Nothing was installed" in done.stderr
    assert "hint: " in done.stderr
    assert board.names() == []


def test_no_venv_module(board: Board, bundle: Callable[..., Path], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase $* in *"import venv"*) echo 64 none 2.36 yes 9999;; *) exec "{sys.executable}" "$@";; esac\n'
    )
    python.chmod(0o755)
    done = board.install(bundle(), "--python", str(python))
    assert done.returncode == 10
    assert "has no module venv" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert board.names() == []


@pytest.mark.parametrize("arguments", [["--prefix"], ["--nonsense"], ["--prefix", "/"], ["--prefix", "current"]])
def test_usage(board: Board, bundle: Callable[..., Path], arguments: list[str]) -> None:
    done = board.install(bundle(), *arguments)
    assert done.returncode == 2
    assert "hint: sh install.sh --help" in done.stderr
    assert board.names() == []


def test_help(board: Board, bundle: Callable[..., Path]) -> None:
    done = board.install(bundle(), "--help")
    assert done.returncode == 0
    assert "example: sh install.sh" in done.stdout


@pytest.mark.parametrize("name", ["wheels/edgeship_runtime-1.0-py3-none-any.whl", "requirements.txt"])
def test_a_damaged_bundle(board: Board, bundle: Callable[..., Path], working: Path, name: str) -> None:
    made = bundle()
    with (made / name).open("ab") as file:
        file.write(b" ")
    before = board.names()
    done = board.install(made)
    assert done.returncode == 8
    assert f"{name}: its bytes are not those of the bundle" in done.stderr
    assert board.names() == before


def test_folders_that_are_not_ours(board: Board, bundle: Callable[..., Path]) -> None:
    mine = board.home / "edgeship/toy/0123456789ab"
    mine.mkdir(parents=True)
    (mine / "letters").touch()
    done = board.install(bundle())
    assert done.returncode == 8
    assert "exists and is no installation" in done.stderr
    assert (mine / "letters").exists()
    board.current.mkdir()
    done = board.install(bundle("another", digest="cccccccccccc"))
    assert done.returncode == 8
    assert "expected a link" in done.stderr


def test_another_version_in_the_same_place(board: Board, bundle: Callable[..., Path], working: Path) -> None:
    done = board.install(bundle(), "--prefix", str(working))
    assert done.returncode == 8
    assert "another version is installed here" in done.stderr


# failures on the way: the working version stays


def unchanged(board: Board, working: Path) -> bool:
    same = os.readlink(board.current) == working.name and (working / ".edgeship-installed").is_file()
    return same and sorted(p.name for p in board.current.parent.iterdir()) == [working.name, "current"]


@pytest.mark.parametrize(
    ("verdict", "code", "said"),
    [("14", 14, "failed its check"), ("die", 12, "an instruction that this processor does not have")],
)
def test_verify_fails(
    board: Board, bundle: Callable[..., Path], working: Path, verdict: str, code: int, said: str
) -> None:
    done = board.install(bundle(verdict=verdict))
    assert done.returncode == code
    assert said in done.stderr
    assert "Nothing was installed" in done.stderr
    assert unchanged(board, working)


def test_a_hash_that_is_not_the_pinned_one(board: Board, bundle: Callable[..., Path], working: Path) -> None:
    made = bundle()
    requirements = made / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("sha256:", "sha256:00")[:-3] + "\n")
    seal(made)
    done = board.install(made)
    assert done.returncode == 1
    assert "could not be installed" in done.stderr
    assert unchanged(board, working)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped(
    board: Board, bundle: Callable[..., Path], working: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    reached = tmp_path / "reached"
    command = ["sh", str(bundle(verdict=f"wait {reached}") / "install.sh")]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # A suite run by nohup hands down an ignored SIGHUP, which no shell can trap.
    quiet["preexec_fn"] = lambda: signal.signal(sent, signal.SIG_DFL)
    process = subprocess.Popen(command, env=board.environment(), start_new_session=True, **quiet)
    deadline = time.monotonic() + 60
    while not reached.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, sent)
    assert process.wait(30) != 0
    assert unchanged(board, working)


@pytest.mark.skipif(not can("unshare", "--mount", "true"), reason="a full disk needs the right to mount one")
def test_a_disk_that_fills_up(board: Board, bundle: Callable[..., Path], working: Path) -> None:
    made, place = bundle(needs_mb=0), board.home / "small disk"
    place.mkdir()
    script = 'mount -t tmpfs -o size=64k none "$1" && shift && "$@"; code=$?; ls -A "$0"; exit $code'
    shell = ["unshare", "--mount", "sh", "-c", script, str(place), str(place), "sh"]
    done = board.install(made, "--prefix", str(place / "v1"), shell=shell)
    assert done.returncode == 9, done.stderr
    assert "is full" in done.stderr
    assert "making a Python environment" in done.stdout
    assert not done.stdout.endswith("v1\n")  # what `ls` of the full disk shows
    assert unchanged(board, working)


# the script itself


def test_shellcheck(bundle: Callable[..., Path]) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", "--shell=sh", str(bundle() / "install.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_values_are_quoted_for_the_shell(board: Board, bundle: Callable[..., Path]) -> None:
    done = board.install(bundle(device="a'b $(touch hacked) `touch hacked`", arch="none"))
    assert "a'b $(touch hacked)" in done.stderr
    assert board.names() == []
