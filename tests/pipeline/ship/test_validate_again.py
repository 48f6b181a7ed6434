"""A validation after another one: what is known is not asked again, what changed is, and only one runs at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgeship.errors import HostError
from edgeship.ship import lock, scripts
from edgeship.ship.contents import read_contents
from edgeship.ship.course import Options
from edgeship.ship.lock import LockedTransport
from edgeship.ship.steps import Validation
from edgeship.ship.teller import Silent
from edgeship.ship.transports import Result, parse_target
from edgeship.ship.transports.local import LocalTransport
from edgeship.ship.transports.ssh import SshTransport
from loopback_sshd import sshd
from tiny_bundle import QUICK, device, needs_linux
from validations import BOOT, Bad, Restarting, check, damage, installed, report_of

pytestmark = needs_linux

VERSION = "edgeship/toy/0123456789ab"


class Counting(Bad):
    """Counts how often each command of the runtime was run."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.ran: list[str] = []

    def meet(self, command: str) -> None:
        self.ran += [name for name in ("doctor", "verify", "bench") if f"edgeship_runtime {name} " in command]


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    home = tmp_path_factory.mktemp("validated")
    assert report_of(LocalTransport(home), bundle).verdict == "pass"
    return home


@pytest.fixture
def home(tmp_path: Path, validated: Path) -> Path:
    """A board where the bundle is installed and has been validated; pushed and installed files are one."""
    subprocess.run(["cp", "-a", f"{validated}/.", str(tmp_path / "home")], check=True)
    return tmp_path / "home"


def said(report: Any, step: str) -> str:
    return next(each.said for each in report.steps if each.name == step)


class TestAgain:
    def test_pushes_installs_and_verifies_nothing(self, bundle: Path, tmp_path: Path) -> None:
        with sshd(tmp_path / "sshd") as server:
            reports = []
            for _ in range(2):
                transport = SshTransport(parse_target(server.host), server.options)
                options = Options(device=device(), **QUICK)
                reports.append(Validation(transport, read_contents(bundle), options, Silent(), threading.Event()).run())
                transport.close()
        assert said(reports[1], "push").startswith("0 files, 0 B sent")
        assert said(reports[1], "install").endswith("is there")
        assert said(reports[1], "verify").startswith("pass, as at 20")
        assert [r and r.verdict for r in reports] == ["pass", "pass"]

    def test_weights_lie_there_once(self, home: Path) -> None:
        pushed = home / "edgeship/.bundles/toy/0123456789ab/artifact/model.onnx.data"
        assert os.path.samefile(pushed, home / VERSION / "artifact/model.onnx.data")

    def test_only_the_bench_runs_and_the_report_says_so(self, home: Path, bundle: Path) -> None:
        board = Counting(home)
        report = report_of(board, bundle)
        assert board.ran == ["bench"]
        assert report.verdict == "pass"
        assert said(report, "verify").startswith("pass, as at 20")
        assert any("the answer of 20" in note and "--fresh asks anew" in note for note in report.notes)
        passed = {c.name: (c.passed, c.found) for c in report.checks}
        assert passed["hashes"] == (True, "every file has its sha256")
        assert passed["tokens"][0] is True
        assert passed["verify"][1].startswith("pass, at 20")
        assert report.agreement.equal == 22

    @pytest.mark.parametrize("linked", [True, False])
    def test_a_changed_file_is_noticed(self, home: Path, bundle: Path, linked: bool) -> None:
        there = home / VERSION / "artifact/model.onnx.data"
        if not linked:  # the pushed copy is another file then, and whole
            shutil.copy(there, there.with_suffix(".copy"))
            there.with_suffix(".copy").replace(there)
        damage(there)
        board = Counting(home)
        report = report_of(board, bundle)
        assert board.ran == ["verify", "verify", "bench"]  # damaged, and again as it was installed anew
        assert report.verdict == "pass"
        assert "the installed copy was damaged and has been installed again" in report.notes

    def test_a_file_beside_the_others_is_noticed(self, home: Path, bundle: Path) -> None:
        (home / VERSION / "artifact/extra").touch()
        board = Counting(home)
        assert report_of(board, bundle).verdict == "pass"
        assert board.ran[0] == "verify"

    @pytest.mark.parametrize("what", ["boot", "threads", "fresh", "hostile"])
    def test_asked_anew(self, home: Path, bundle: Path, what: str) -> None:
        answers = home / "edgeship/.answers/toy"
        if what == "boot":  # of the board's last start
            for path in (answers / "verify.json.for", answers / "doctor-0123456789ab.json.boot"):
                path.write_text(path.read_text().replace(BOOT, "0" * 36))
        if what == "hostile":
            (answers / "verify.json").write_text('{"verdict": "pass", "intact": "yes"}')
        options = {"threads": 2} if what == "threads" else {"fresh": True} if what == "fresh" else {}
        board = Counting(home)
        report = report_of(board, bundle, **options)
        asked = {"boot": ["doctor"], "fresh": ["doctor"]}.get(what, [])
        assert board.ran == [*asked, "verify", "bench"]
        assert report.verdict == "pass"
        assert said(report, "verify") == "pass"
        assert installed(home) == "0123456789ab"

    def test_a_verify_that_failed_is_not_kept(self, home: Path, bundle: Path) -> None:
        class Failing(Counting):
            def answer(self, command: str, result: Result) -> Result:
                if "edgeship_runtime verify " not in command:
                    return result
                told = result.stdout.replace('"verdict": "pass"', '"verdict": "fail"')
                return Result(14, told, result.stderr)

        assert report_of(Failing(home), bundle, threads=2).verdict == "fail"
        board = Counting(home)
        assert report_of(board, bundle, threads=2).verdict == "pass"
        assert board.ran == ["verify", "bench"]

    @pytest.mark.parametrize("damage", ["gone", "fails"])
    def test_an_environment_that_a_power_cut_has_damaged(self, home: Path, bundle: Path, damage: str) -> None:
        python = home / VERSION / "venv/bin/python"
        if damage == "gone":
            python.unlink()
        else:  # it starts, and its packages do not
            python.write_text('#!/bin/sh\n[ "$2" = --version ] && exec python3 --version\nexit 1\n')
            (home / "edgeship/.answers/toy/verify.json.for").unlink()
        report = report_of(LocalTransport(home), bundle)
        assert report.verdict == "pass"
        assert installed(home) == "0123456789ab"


class TestRestart:
    def test_once(self, home: Path, bundle: Path) -> None:
        report = report_of(Restarting(home, " bench "), bundle)
        assert report.verdict == "pass"
        assert "bench: the board restarted, and the step was resumed" in report.notes

    def test_again_when_resumed(self, home: Path, bundle: Path) -> None:
        with pytest.raises(HostError, match="local, step bench: the board restarted, and again") as caught:
            check(Restarting(home, " bench ", times=2), bundle)
        assert "power supply" in caught.value.hint
        assert "run the same command again" in caught.value.hint
        assert installed(home) == "0123456789ab"
        assert report_of(LocalTransport(home), bundle).verdict == "pass"

    def test_between_two_commands(self, home: Path, bundle: Path) -> None:
        class Quiet(Restarting):
            """Nobody was connected meanwhile, so nothing was cut."""

            def meet(self, command: str) -> None:
                if " bench " in command:
                    self._boot = "0" * 36

        report = report_of(Quiet(home, ""), bundle)
        assert report.verdict == "pass"
        assert "bench: the board restarted, and the step was resumed" in report.notes

    def test_told_to_end_by_a_board_that_shuts_down(self, home: Path, bundle: Path) -> None:
        class Ending(Restarting):
            def meet(self, command: str) -> None: ...

            def answer(self, command: str, result: Result) -> Result:
                if " bench " in command and self._times:
                    self._times -= 1
                    self._boot = "0" * 36
                    return Result(143, "", "")
                return super().answer(command, result)

        report = report_of(Ending(home, ""), bundle)
        assert report.verdict == "pass"
        assert "bench: the board restarted, and the step was resumed" in report.notes


class TestLock:
    def test_two_at_once(self, home: Path, bundle: Path) -> None:
        first = LockedTransport(LocalTransport(home))
        first.take()
        with pytest.raises(
            HostError, match=r"local, step space: another validation .* by .*@.*, process \d+"
        ) as caught:
            check(LocalTransport(home), bundle)
        assert "edgeship/.lock" in caught.value.hint
        first.release()
        assert report_of(LocalTransport(home), bundle).verdict == "pass"
        assert not list((home / "edgeship").glob(".lock*")), "given back at the end"

    def test_given_back_after_an_error(self, home: Path, bundle: Path) -> None:
        class Dying(Bad):
            def answer(self, command: str, result: Result) -> Result:
                return Result(1, "", "no\n") if " bench " in command else result

        with pytest.raises(HostError, match="step bench"):
            check(Dying(home), bundle)
        assert not list((home / "edgeship").glob(".lock*"))

    def test_of_a_process_that_has_ended(self, tmp_path: Path) -> None:
        pid = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
        held_by(tmp_path, f"me@here,{lock._machine()},{pid},123")
        take_and_give_back(tmp_path)

    def test_of_a_process_number_that_is_another_now(self, tmp_path: Path) -> None:
        held_by(tmp_path, f"me@here,{lock._machine()},{os.getppid()},1")
        take_and_give_back(tmp_path)

    def test_of_a_process_that_runs(self, tmp_path: Path) -> None:
        parent = os.getppid()
        held_by(tmp_path, f"me@here,{lock._machine()},{parent},{lock._started(parent)}")
        with pytest.raises(HostError, match=f"by me@here, process {parent}"):
            LockedTransport(LocalTransport(tmp_path)).take()

    def test_from_before_a_restart(self, tmp_path: Path) -> None:
        held_by(tmp_path, "you@there,0123456789abcdef,1,1", boot="another")
        take_and_give_back(tmp_path)

    def test_from_elsewhere_holds_until_it_is_old(self, tmp_path: Path) -> None:
        held_by(tmp_path, "you@there,0123456789abcdef,1,1")
        with pytest.raises(HostError, match="by you@there, process 1"):
            LockedTransport(LocalTransport(tmp_path)).take()
        age(tmp_path, minutes=scripts.LOCK_MINUTES + 1)
        take_and_give_back(tmp_path)

    def test_from_elsewhere_holds_while_its_command_runs(self, tmp_path: Path) -> None:
        held_by(tmp_path, "you@there,0123456789abcdef,1,1")
        with subprocess.Popen(["sh", "-c", "sleep 60; exit", "edgeship"]) as running:
            (tmp_path / "edgeship/.lock-beat").write_text(f"{running.pid}\n")
            age(tmp_path, minutes=60)
            with pytest.raises(HostError, match="another validation"):
                LockedTransport(LocalTransport(tmp_path)).take()
            running.kill()
        take_and_give_back(tmp_path)

    def test_lost_to_another_while_cut_off(self, tmp_path: Path) -> None:
        first = LockedTransport(LocalTransport(tmp_path))
        first.take()
        (tmp_path / "edgeship/.lock").unlink()
        held_by(tmp_path, "you@there,0123456789abcdef,1,1")
        with pytest.raises(HostError, match="another validation took over"):
            first.run(["touch", "done"], timeout=10)
        assert not (tmp_path / "done").exists()
        first.release()
        assert (tmp_path / "edgeship/.lock").is_symlink(), "the other's lock stays"

    def test_many_at_once_and_one_gets_it(self, tmp_path: Path) -> None:
        held_by(tmp_path, "you@there,0123456789abcdef,1,1", boot="another")  # which all of them may take over
        age(tmp_path, minutes=60)
        got: list[LockedTransport] = []

        def take() -> None:
            mine = LockedTransport(LocalTransport(tmp_path))
            try:
                mine.take()
            except HostError:
                return
            got.append(mine)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(got) == 1

    def test_a_power_cut_while_it_was_taken_over(self, tmp_path: Path) -> None:
        held_by(tmp_path, "you@there,0123456789abcdef,1,1", boot="another")
        taking = tmp_path / "edgeship/.lock-taking"
        taking.mkdir()
        os.utime(taking, (0, 0))
        take_and_give_back(tmp_path)

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "edgeship").write_text("a file in the place of the folder")
        with pytest.raises(HostError, match="the lock cannot be made there") as caught:
            LockedTransport(LocalTransport(tmp_path)).take()
        assert "edgeship" in caught.value.hint


def held_by(home: Path, who: str, boot: str = BOOT) -> None:
    (home / "edgeship").mkdir(exist_ok=True)
    (home / "edgeship/.lock").symlink_to(f"0123456789abcdef:{boot}:{who}")
    (home / "edgeship/.lock-beat").write_text("999999999\n")


def age(home: Path, minutes: float) -> None:
    """Make the lock look as if its holder had been silent for so long."""
    past = time.time() - 60 * minutes
    for name in (".lock", ".lock-beat"):
        os.utime(home / "edgeship" / name, (past, past), follow_symlinks=False)


def take_and_give_back(home: Path) -> None:
    mine = LockedTransport(LocalTransport(home))
    assert mine.take()[0] == BOOT
    assert mine.run(["echo", "here"], timeout=10).stdout == "here\n"
    mine.release()
    assert not list((home / "edgeship").glob(".lock*"))
