"""What goes wrong on a board, as far as this machine can play one: the step, the host and what to do next are named."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edgeship.errors import EdgeshipError, HostError, ResourceError
from edgeship.ship import probe
from edgeship.ship.contents import read_contents
from edgeship.ship.course import Options
from edgeship.ship.steps import Validation
from edgeship.ship.teller import Silent
from edgeship.ship.transports import Result, parse_target
from edgeship.ship.transports.local import LocalTransport
from edgeship.ship.transports.ssh import SshTransport
from loopback_sshd import sshd
from small_disks import small_disk
from tiny_bundle import QUICK, device, needs_linux, write_bundle
from validations import BOOT, Bad, check, installed, report_of, working

pytestmark = needs_linux


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "toy", weights=os.urandom(3 << 20))


class TestDisk:
    def test_full_before(self, tmp_path: Path, bundle: Path) -> None:
        with small_disk(tmp_path / "disk") as home:
            with pytest.raises(ResourceError, match="local, step space: the board's disk is too small") as caught:
                check(LocalTransport(home), bundle)
            assert "free" in caught.value.hint
            assert not list(home.rglob("weights.bin"))

    def test_full_while_it_is_sent(self, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe, "MARGIN", -(1 << 40))  # another program has filled the disk since
        with small_disk(tmp_path / "disk", megabytes=2) as home:
            working(home)
            with pytest.raises(ResourceError, match=r"local, step push: .*disk is full") as caught:
                check(LocalTransport(home), bundle)
            assert "--prune" in caught.value.hint
            assert installed(home) == "aaaaaaaaaaaa"
            assert not list((home / "edgeship").glob(".lock*"))


class TestInstallation:
    @pytest.mark.parametrize(
        ("says", "code", "kind", "said", "hint"),
        [
            (
                "the disk of /home is full.\n\nhint: free 100 MB",
                9,
                ResourceError,
                "disk of /home is full",
                "free 100 MB",
            ),
            ("python3 has no module venv.\n\nhint: apt install python3-venv", 10, HostError, "no module venv", "apt"),
            ("the engine was killed by signal 4\n\nhint: make a bundle", 12, HostError, "by signal 4", "make a bundle"),
            ("", 1, HostError, "no message", "run the same command again"),
        ],
    )
    def test_fails(
        self, home: Path, tmp_path: Path, says: str, code: int, kind: type[EdgeshipError], said: str, hint: str
    ) -> None:
        working(home)
        script = f"printf 'error: %s\\n' '{says}' >&2; exit {code}\n" if says else f"exit {code}\n"
        made = write_bundle(tmp_path / "bundle", install=script)
        with pytest.raises(kind, match=f"local, step install: .*{said}") as caught:
            check(LocalTransport(home), made)
        assert hint in caught.value.hint
        assert "What was installed before is untouched" in caught.value.message
        assert installed(home) == "aaaaaaaaaaaa"

    def test_an_engine_that_this_processor_cannot_run(self, home: Path, bundle: Path) -> None:
        class Foreign(Bad):
            def answer(self, command: str, result: Result) -> Result:
                if "doctor-0123456789ab" not in command or "edgeship_runtime doctor" not in command:
                    return result
                finding = '{"level": "error", "what": "onnxruntime crashes (SIGILL)", "hint": "install a wheel for it"}'
                return Result(16, result.stdout.replace('"findings": [', f'"findings": [{finding}, ', 1), "")

        with pytest.raises(HostError, match=r"local, step doctor: onnxruntime crashes \(SIGILL\)") as caught:
            check(Foreign(home), bundle)
        assert caught.value.hint == "install a wheel for it"


def test_host_key_changed(tmp_path: Path, bundle: Path) -> None:
    with sshd(tmp_path / "sshd") as server:
        server.stop()
        server.new_key()
        server.start()
        transport = SshTransport(parse_target(server.host), server.options)
        made = Validation(
            transport, read_contents(bundle), Options(device=device(), **QUICK), Silent(), threading.Event()
        )
        with pytest.raises(HostError, match=r"step probe: the host key of .* has changed") as caught:
            made.run()
        transport.close()
        assert server.host in caught.value.message
        assert "ssh-keygen -R" in caught.value.hint
        assert not list(server.home.iterdir())


def test_what_a_power_cut_leaves_behind(home: Path, bundle: Path) -> None:
    """Files that had a name and no bytes yet, and whatever was held or marked before the board went off."""
    answers = home / "edgeship/.answers/toy"
    answers.mkdir(parents=True)
    for name in ("verify.json", "verify.json.for", "bench-1.json", "bench-1.json.part", "running", "installing-toy"):
        (answers / name).touch()
    (answers / "doctor-0123456789ab.json").touch()
    (answers / "doctor-0123456789ab.json.boot").write_text(BOOT)
    (home / "edgeship/.lock").symlink_to("0123456789abcdef:a boot before:you@there,0123456789abcdef,1,1")
    pushed = home / "edgeship/.bundles/toy/0123456789ab"
    (pushed / ".parts").mkdir(parents=True)
    (pushed / "bundle.json").touch()
    (pushed / "install.sh").write_bytes(bytes(4096))
    assert report_of(LocalTransport(home), bundle).verdict == "pass"
    assert installed(home) == "0123456789ab"
    (answers / "verify.json").write_bytes(b"")
    (answers / "doctor-0123456789ab.json").write_bytes(bytes(100))
    assert report_of(LocalTransport(home), bundle).verdict == "pass"
