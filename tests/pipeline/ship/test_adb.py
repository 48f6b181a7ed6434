"""Devices over adb: against a stand-in of its server, and against adb's own server with a stand-in of a device."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adb_standin import SERIAL, Server, own_server, server
from edgeship.errors import HostError, UsageError
from edgeship.ship.transports import CutError, open_transport, way_of
from edgeship.ship.transports.adb import AdbTransport, parse_host, refusal
from tiny_bundle import write_bundle
from validations import installed, report_of


@pytest.fixture
def adb(home: Path) -> Iterator[Server]:
    with server(home) as running:
        yield running


@pytest.fixture
def real(tmp_path: Path, home: Path) -> Iterator[AdbTransport]:
    with own_server(home, tmp_path) as transport:
        yield transport


@pytest.fixture(params=["standin", "real"])
def board(request: pytest.FixtureRequest, home: Path) -> tuple[AdbTransport, Path]:
    """A device behind the stand-in of a server, and one behind adb's own."""
    if request.param == "real":
        return request.getfixturevalue("real"), home
    return AdbTransport(f"adb:{SERIAL}", SERIAL, request.getfixturevalue("adb").address), home


class TestBoard:
    def test_home(self, board: tuple[AdbTransport, Path]) -> None:
        done = board[0].run(["sh", "-c", "pwd; echo $HOME; echo err >&2; exit 7"], timeout=20)
        assert (done.code, done.stdout, done.stderr) == (7, f"{board[1]}\n{board[1]}\n", "err\n")

    def test_a_signal_is_an_exit_code(self, board: tuple[AdbTransport, Path]) -> None:
        assert board[0].run(["sh", "-c", "kill -9 $$"], timeout=20).code == 137

    def test_validation(self, board: tuple[AdbTransport, Path], tmp_path: Path) -> None:
        transport, home = board
        report = report_of(transport, write_bundle(tmp_path / "bundle"))
        assert report.verdict == "pass", report.checks
        assert report.host.startswith("adb:")
        assert installed(home) == "0123456789ab"


class TestPlace:
    def test_without_a_home(self, tmp_path: Path) -> None:
        with server(tmp_path, HOME="/nowhere") as adb:
            transport = AdbTransport("adb", None, adb.address)
            if Path("/data/local/tmp").is_dir():
                pytest.skip("this machine is an Android device")
            with pytest.raises(HostError, match="can write nowhere"):
                transport.run(["true"], timeout=5)

    def test_termux(self, tmp_path: Path) -> None:
        (tmp_path / "bin").mkdir()
        fake = tmp_path / "bin/run-as"
        fake.write_text(f'#!/bin/sh\n[ "$1" = com.termux ] || exit 1\nshift\necho "$@" >> {tmp_path}/asked\n')
        fake.chmod(0o755)
        with server(tmp_path, HOME="/", PATH=f"{tmp_path}/bin:{os.environ['PATH']}") as adb:
            AdbTransport("adb", None, adb.address).run(["echo", "a b"], timeout=10)
        asked = (tmp_path / "asked").read_text().splitlines()
        assert asked[0] == "true"
        assert asked[1].startswith(
            "/data/data/com.termux/files/usr/bin/sh -c export HOME=/data/data/com.termux/files/home"
        )
        assert asked[1].endswith("cd; exec echo 'a b'")


class TestFaults:
    @pytest.mark.parametrize(
        ("state", "kind", "said", "hint"),
        [
            ("offline", CutError, "device offline", "adb devices"),
            ("none", CutError, "no devices/emulators found", "adb devices"),
            ("two", HostError, "more than one", "adb:SERIAL"),
            ("unauthorized", HostError, "does not let us in: device unauthorized", "unlock"),
        ],
    )
    def test_refused(self, adb: Server, state: str, kind: type[HostError], said: str, hint: str) -> None:
        adb.state = state
        with pytest.raises(kind, match=said) as caught:
            AdbTransport("adb", None, adb.address).run(["true"], timeout=5)
        assert hint in caught.value.hint
        assert isinstance(caught.value, CutError) is (kind is CutError)

    def test_another_serial(self, adb: Server) -> None:
        with pytest.raises(CutError, match="device 'other' not found"):
            AdbTransport("adb:other", "other", adb.address).run(["true"], timeout=5)

    def test_the_real_server_refuses_so_too(self, real: AdbTransport) -> None:
        with pytest.raises(CutError, match="device 'other' not found"):
            AdbTransport("adb:other", "other", real._server).run(["true"], timeout=5)

    def test_cut_while_a_command_runs_and_again(self, adb: Server) -> None:
        transport = AdbTransport("adb", None, adb.address)
        threading.Timer(0.7, adb.cut).start()
        with pytest.raises(CutError, match="connection"):
            transport.run(["sleep", "30"], timeout=40)
        assert transport.run(["echo", "again"], timeout=20).stdout == "again\n"

    def test_no_server_and_no_adb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(HostError, match="adb is not on PATH") as caught:
            AdbTransport("adb", None, ("127.0.0.1", port)).run(["true"], timeout=5)
        assert "apt install adb" in caught.value.hint

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad", b"FAIL", b"FAILzzzzno", b"FAIL0003no", b"OKAY"])
    def test_something_else_listens_there(self, answer: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]

            def serve() -> None:
                link, _ = listener.accept()
                with link:
                    link.recv(4096)
                    link.sendall(answer)

            threading.Thread(target=serve, daemon=True).start()
            with pytest.raises(HostError) as caught:
                AdbTransport("adb", None, ("127.0.0.1", port)).run(["true"], timeout=5)
            assert caught.value.hint

    def test_nothing_runs_after_close(self, adb: Server) -> None:
        transport = AdbTransport("adb", None, adb.address)
        threading.Timer(0.5, transport.close).start()
        with pytest.raises(HostError):
            transport.run(["sleep", "60"], timeout=90)
        with pytest.raises(HostError, match="was closed"):
            transport.run(["true"], timeout=5)

    @given(st.text(max_size=200))
    def test_whatever_the_server_says_is_an_error_of_ours(self, said: str) -> None:
        error = refusal("adb", said)
        assert error.hint
        assert error.message.isprintable()


class TestHost:
    def test_read(self) -> None:
        assert [way_of(each) for each in ("adb", "adb:x", "local", "adb.example", "ssh://adb")] == [
            "adb",
            "adb",
            "local",
            "ssh",
            "ssh",
        ]
        assert isinstance(open_transport("adb:192.168.1.5:5555"), AdbTransport)
        assert parse_host("adb", {"ANDROID_ADB_SERVER_PORT": "5038"})._server == ("127.0.0.1", 5038)
        assert parse_host("adb", {"ADB_SERVER_SOCKET": "tcp:box:99"})._server == ("box", 99)

    @pytest.mark.parametrize("text", ["adb:", "adb:-s", "adb:a b", "adb:a;id", "adb:\n"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="--host"):
            open_transport(text)

    @pytest.mark.parametrize("text", ["unix:/x", "tcp:x", "tcp:1:2:99999", "tcp:0"])
    def test_server_that_cannot_be(self, text: str) -> None:
        with pytest.raises(UsageError, match="adb server"):
            parse_host("adb", {"ADB_SERVER_SOCKET": text})
