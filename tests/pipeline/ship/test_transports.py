"""Ways to a board: what they run, send and fetch, and what they say when that fails; ssh against a real sshd."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.errors import EdgeshipError, HostError, ResourceError, UsageError
from edgeship.ship.transports import CutError, Source, Target, open_transport, parse_target
from edgeship.ship.transports.command import write_error
from edgeship.ship.transports.dry_run import DryRunTransport
from edgeship.ship.transports.local import LocalTransport
from edgeship.ship.transports.ssh import SshTransport, connect_error
from loopback_sshd import Sshd, sshd
from tolerances import CUT_SHORT_SECONDS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd") as running:
        yield running


class TestTarget:
    @pytest.mark.parametrize(
        ("text", "target"),
        [
            ("pi@10.0.0.7", ("10.0.0.7", "pi", None)),
            ("board", ("board", None, None)),
            ("pi@board.local:2222", ("board.local", "pi", 2222)),
            ("[fe80::1%eth0]:22", ("fe80::1%eth0", None, 22)),
            ("pi@fe80::1", ("fe80::1", "pi", None)),
            ("::1", ("::1", None, None)),
            ("ssh://pi@board:23", ("board", "pi", 23)),
        ],
    )
    def test_read(self, text: str, target: tuple[str, str | None, int | None]) -> None:
        assert parse_target(text) == Target(text, *target)

    @pytest.mark.parametrize(
        "text", ["", "-oProxyCommand=id", "a b", "pi@-x", "-l@board", "board:99999", "a;id", "$(id)", "a\nb", "ssh://"]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="--host"):
            parse_target(text)

    @given(st.text(max_size=40))
    def test_anything_is_a_host_or_refused(self, text: str) -> None:
        try:
            target = parse_target(text)
        except UsageError:
            return
        assert target.host
        assert not target.host.startswith("-")
        assert not set(target.host) & set(" ;&|$`'\"\\\n/@")


class TestLocal:
    def test_nothing_of_this_environment_leaks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", "/somewhere")
        done = LocalTransport(tmp_path).run(["sh", "-c", 'echo "$HOME ${PYTHONPATH-none}"; pwd'], timeout=10)
        assert done.stdout == f"{tmp_path} none\n{tmp_path}\n"

    def test_close_ends_what_runs(self, tmp_path: Path) -> None:
        transport = LocalTransport(tmp_path)
        threading.Timer(0.5, transport.close).start()
        start = time.monotonic()
        assert transport.run(["sleep", "60"], timeout=90).code != 0
        assert time.monotonic() - start < CUT_SHORT_SECONDS

    def test_no_such_program(self, tmp_path: Path) -> None:
        with pytest.raises(HostError, match="cannot be started"):
            LocalTransport(tmp_path).run(["no-such-program"], timeout=5)


class TestSsh:
    def test_ipv6(self, tmp_path: Path) -> None:
        with sshd(tmp_path / "sshd", address="::1") as server:
            transport = SshTransport(parse_target(server.host), server.options)
            assert transport.run(["echo", "here"], timeout=20).stdout == "here\n"
            transport.close()

    def test_jump_host(self, server: Sshd) -> None:
        # A jump runs ssh anew, which knows the keys from a configuration file only.
        config = server.folder / "ssh_config"
        config.write_text("\n".join([f"{o.replace('=', ' ', 1)}" for o in server.options]) + "\n")
        jump = f"ProxyCommand=ssh -F {config} -p {server.port} -W [%h]:%p {server.host.rpartition(':')[0]}"
        transport = SshTransport(parse_target(server.host), (*server.options, jump))
        # The server's sessions run a command of ours, so forwarding is all that is asked of it.
        assert transport.run(["echo", "through"], timeout=20).stdout == "through\n"
        transport.close()

    def test_one_connection_for_all(self, server: Sshd) -> None:
        transport = SshTransport(parse_target(server.host), server.options)
        for _ in range(3):
            transport.run(["true"], timeout=20)
        transport.close()
        assert (server.folder / "log").read_text().count("Accepted publickey") == 1

    def test_socket_is_private_and_goes_away(self, server: Sshd) -> None:
        transport = SshTransport(parse_target(server.host), server.options)
        transport.run(["true"], timeout=20)
        folder = transport._folder
        assert folder is not None
        assert folder.stat().st_mode & 0o077 == 0
        transport.close()
        assert not folder.exists()

    def test_connection_ends_with_the_process_that_made_it(self, server: Sshd) -> None:
        code = (
            "import os, sys\n"
            "from edgeship.ship.transports import parse_target\n"
            "from edgeship.ship.transports.ssh import SshTransport\n"
            "made = SshTransport(parse_target(sys.argv[1]), sys.argv[2:])\n"
            "made.run(['true'], timeout=20)\n"
            "print(made._master.pid, made._folder, flush=True)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        given = [sys.executable, "-c", code, server.host, *server.options]
        pid, folder = subprocess.run(given, capture_output=True, text=True, check=False).stdout.split()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.1)
        else:
            assert not Path(f"/proc/{pid}").exists()
        shutil.rmtree(folder)

    def test_nothing_runs_after_close(self, server: Sshd) -> None:
        transport = SshTransport(parse_target(server.host), server.options)
        transport.close()
        with pytest.raises(HostError, match="was closed"):
            transport.run(["true"], timeout=5)

    def test_unknown_host_key(self, server: Sshd) -> None:
        (server.folder / "known_hosts").write_text("")
        error = _refused(server, HostError, "is not known here")
        assert "ssh -p" in error.hint
        assert (server.folder / "known_hosts").read_text() == ""

    def test_unknown_host_key_where_the_user_accepts_new_ones(self, server: Sshd) -> None:
        (server.folder / "known_hosts").write_text("")
        transport = SshTransport(parse_target(server.host), (*server.options, "StrictHostKeyChecking=accept-new"))
        assert transport.run(["echo", "hi"], timeout=20).stdout == "hi\n"
        transport.close()

    def test_changed_host_key(self, server: Sshd) -> None:
        server.stop()
        server.new_key()
        server.start()
        error = _refused(server, HostError, "has changed")
        assert not isinstance(error, CutError)
        assert "known_hosts, line 1" in error.message
        assert "SHA256:" in error.message
        assert f"ssh-keygen -R '[{server.address}]:{server.port}'" in error.hint

    def test_key_that_is_not_allowed(self, server: Sshd) -> None:
        server.stop()
        (server.folder / "user_key.pub").write_text("")
        server.start()
        assert "ssh-copy-id" in _refused(server, HostError, "does not let us in").hint

    def test_nobody_answers(self, server: Sshd) -> None:
        server.stop()
        assert "check that the board is on" in _refused(server, CutError, "Connection refused").hint

    def test_cut_while_a_command_runs_and_reconnected(self, server: Sshd) -> None:
        transport = SshTransport(parse_target(server.host), server.options)
        transport.run(["true"], timeout=20)
        threading.Timer(0.7, server.cut).start()
        with pytest.raises(CutError, match="the connection broke"):
            transport.run(["sleep", "30"], timeout=40)
        assert transport.run(["echo", "again"], timeout=20).stdout == "again\n"
        transport.close()

    @pytest.mark.parametrize(
        "option", ["LocalCommand=id", "PermitLocalCommand=yes", "controlpath=/tmp/x", "BatchMode=no", "no-equals", "=x"]
    )
    def test_options_that_are_refused(self, option: str) -> None:
        with pytest.raises(UsageError, match="--ssh-option"):
            open_transport("board", [option])

    def test_option_that_ssh_does_not_know(self, server: Sshd) -> None:
        transport = SshTransport(parse_target(server.host), ("NoSuchOption=1",))
        with pytest.raises(UsageError, match="refuses its configuration"):
            transport.run(["true"], timeout=20)

    @given(st.text(max_size=300))
    def test_whatever_ssh_says_is_an_error_of_ours(self, said: str) -> None:
        error = connect_error(parse_target("pi@board:2222"), said)
        assert error.hint
        assert error.message.isprintable()


def _refused(server: Sshd, kind: type[EdgeshipError], said: str) -> EdgeshipError:
    transport = SshTransport(parse_target(server.host), server.options)
    with pytest.raises(kind, match=said) as caught:
        transport.run(["true"], timeout=20)
    transport.close()
    return caught.value


class TestDryRun:
    def test_says_and_does_nothing(self, tmp_path: Path) -> None:
        said: list[str] = []
        (tmp_path / "data").write_bytes(b"x" * 2000)
        transport = DryRunTransport("pi@board", said.append)
        for _ in range(2):
            transport.run(["sh", "-c", "rm -rf /", "sh", "an argument"], timeout=1, source=Source(tmp_path / "data"))
        transport.put(tmp_path / "data", "there")
        assert transport.get("there", 10) == b""
        assert "rm -rf /" in said[0]
        assert "rm -rf /" not in said[1]
        assert "script 1 'an argument'" in said[1]
        assert "2.00 KB" in said[2]


def test_full_disk_is_a_resource_error(tmp_path: Path) -> None:
    done = LocalTransport(tmp_path).run(["sh", "-c", "head -c 9999 /dev/zero | cat > /dev/full"], timeout=5)
    assert done.code
    assert isinstance(write_error("file", done), ResourceError)
