"""What every way to a board does alike: this machine, a real sshd, a stand-in of adb's server, and adb's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adb_standin import SERIAL, own_server
from adb_standin import server as adb_server
from edgeship.errors import HostError
from edgeship.ship.transports import Source, Transport, parse_target
from edgeship.ship.transports.adb import AdbTransport
from edgeship.ship.transports.command import MAX_OUTPUT
from edgeship.ship.transports.local import LocalTransport
from edgeship.ship.transports.ssh import SshTransport
from loopback_sshd import sshd
from tolerances import CUT_SHORT_SECONDS

AWKWARD = "a 'b' \"c\" $HOME `id` \\ ; & | * ? ü\nline"


@pytest.fixture(params=["local", "ssh", "adb", "adb's own server"])
def board(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[tuple[Transport, Path]]:
    """A way to a board, and the home directory it leads to."""
    if request.param == "local":
        yield LocalTransport(home), home
    elif request.param == "ssh":
        with sshd(tmp_path / "sshd") as server:
            transport = SshTransport(parse_target(server.host), server.options)
            yield transport, server.home
            transport.close()
    elif request.param == "adb":
        with adb_server(home) as adb:
            yield AdbTransport(f"adb:{SERIAL}", SERIAL, adb.address), home
    else:
        with own_server(home, tmp_path) as own:
            yield own, home


def test_arguments_arrive_as_they_are(board: tuple[Transport, Path]) -> None:
    done = board[0].run(["printf", "%s|", AWKWARD, "", "-n"], timeout=20)
    assert (done.code, done.stdout) == (0, f"{AWKWARD}||-n|")


def test_exit_code_and_both_streams(board: tuple[Transport, Path]) -> None:
    done = board[0].run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout=20)
    assert (done.code, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_255_is_an_exit_code_like_others(board: tuple[Transport, Path]) -> None:
    assert board[0].run(["sh", "-c", "exit 255"], timeout=20).code == 255


def test_lines_come_while_it_runs_and_cannot_drive_the_terminal(board: tuple[Transport, Path]) -> None:
    seen: list[str] = []
    answered = board[1] / "answered"

    def answer(text: str) -> None:
        seen.append(text)
        answered.touch()

    script = "printf 'a\\033[2Jb\\n'; until [ -e \"$1\" ]; do sleep 0.05; done; printf end"
    board[0].run(["sh", "-c", script, "sh", str(answered)], timeout=60, on_line=answer)
    assert seen == ["a\\x1b[2Jb", "end"]


def test_timeout(board: tuple[Transport, Path]) -> None:
    start = time.monotonic()
    with pytest.raises(HostError, match="did not end within 1 s"):
        board[0].run(["sleep", "60"], timeout=1)
    assert time.monotonic() - start < CUT_SHORT_SECONDS


def test_endless_output_is_bounded(board: tuple[Transport, Path]) -> None:
    done = board[0].run(["sh", "-c", "head -c 5000000 /dev/zero"], timeout=60)
    assert len(done.stdout) == MAX_OUTPUT


def test_put_and_get(board: tuple[Transport, Path], tmp_path: Path) -> None:
    transport, home = board
    (tmp_path / "data").write_bytes(bytes(range(256)) * 5000)
    transport.put(tmp_path / "data", "x/it's here")
    assert (home / "x/it's here").read_bytes() == (tmp_path / "data").read_bytes()
    assert [each.name for each in (home / "x").iterdir()] == ["it's here"]
    assert transport.get("x/it's here", 2_000_000) == (tmp_path / "data").read_bytes()


def test_get_refuses_what_is_missing_or_too_large(board: tuple[Transport, Path]) -> None:
    transport, home = board
    (home / "large").write_bytes(b"x" * 11)
    assert transport.get("large", 11) == b"x" * 11
    with pytest.raises(HostError, match="larger than 10 bytes"):
        transport.get("large", 10)
    with pytest.raises(HostError, match="cannot be read"):
        transport.get("missing", 10)


def test_source_from_an_offset(board: tuple[Transport, Path], tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"0123456789")
    sent: list[int] = []
    done = board[0].run(["cat"], timeout=20, source=Source(tmp_path / "data", 4, sent.append))
    assert (done.stdout, sent) == ("456789", [6])


def test_standard_input_is_at_its_end(board: tuple[Transport, Path]) -> None:
    assert board[0].run(["cat"], timeout=20).stdout == ""


def test_a_program_that_reads_nothing(board: tuple[Transport, Path], tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(8 << 20))
    assert board[0].run(["sh", "-c", "exit 3"], timeout=20, source=Source(tmp_path / "data")).code == 3
