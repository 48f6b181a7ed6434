"""One bundle on boards: every step, every fault, and nothing half-installed in the place of a working version."""

from __future__ import annotations

import os
import platform
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeship.errors import ArtifactError, HostError, ResourceError
from edgeship.ship import contents as bundles
from edgeship.ship import steps
from edgeship.ship.contents import read_contents
from edgeship.ship.steps import Options, Validation
from edgeship.ship.teller import Silent
from edgeship.ship.transports import CutError, OnLine, Result, Source, Transport, parse_target
from edgeship.ship.transports.local import LocalTransport
from edgeship.ship.transports.ssh import SshTransport
from loopback_sshd import sshd
from tiny_bundle import QUICK, STEPS, device, write_bundle

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="the toy bundle is for Linux")

FAILING = "echo 'error: no venv here' >&2; echo >&2; echo 'hint: install python3-venv' >&2; exit 10\n"


class Bad(LocalTransport):
    """A board that does as its subclass likes with each command, by a word in it."""

    def run(
        self, argv: Sequence[str], *, timeout: float, on_line: OnLine | None = None, source: Source | None = None
    ) -> Result:
        self.meet(" ".join(argv))
        return self.answer(" ".join(argv), super().run(argv, timeout=timeout, on_line=on_line, source=source))

    def meet(self, command: str) -> None: ...

    def answer(self, command: str, result: Result) -> Result:
        return result


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "toy", weights=os.urandom(200_000))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RETRY_AFTER", (0.05, 0.05, 0.05))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def check(transport: Transport, bundle: Path, **options: Any) -> Validation:
    """A validation that has run to its end; raises what it raises."""
    fields = {"device": device(), **QUICK, **options}
    made = Validation(transport, read_contents(bundle), Options(**fields), Silent(), threading.Event())
    made.report = made.run()  # type: ignore[attr-defined]
    return made


def report_of(transport: Transport, bundle: Path, **options: Any) -> Any:
    return check(transport, bundle, **options).report  # type: ignore[attr-defined]


def installed(home: Path) -> str | None:
    """The version that is in use and whole, None where there is none; nothing half beside it."""
    base = home / "edgeship/toy"
    for each in base.glob("*") if base.is_dir() else ():
        assert each.name == "current" or (each / ".edgeship-installed").is_file(), f"half-installed: {each}"
    current = base / "current"
    return (current / ".edgeship-installed").read_text().strip() if current.exists() else None


class TestPass:
    def test_whole_path_then_again(self, home: Path, bundle: Path) -> None:
        first = report_of(LocalTransport(home), bundle)
        assert first.verdict == "pass", first.checks
        assert [s.name for s in first.steps] == STEPS
        passed = {c.name: c.passed for c in first.checks}
        assert (
            passed.items()
            >= {
                "hashes": True,
                "templates": True,
                "tokens": True,
                "fidelity": True,
                "verify": True,
                "size MB": True,
                "RAM MB": True,
                "decode tokens/s": True,
            }.items()
        )
        assert first.agreement.wrong == 0
        assert len(first.samples) == 1
        assert first.samples[0].decode_tokens == 4
        assert installed(home) == "0123456789ab"
        second = report_of(LocalTransport(home), bundle)
        said = {s.name: s.said for s in second.steps}
        assert said["push"].startswith("0 files, 0 B sent")
        assert said["install"].endswith("is there")
        assert second.verdict == "pass"

    def test_weights_lie_there_once(self, home: Path, bundle: Path) -> None:
        report_of(LocalTransport(home), bundle)
        pushed = home / "edgeship/.bundles/toy/0123456789ab/artifact/model.onnx.data"
        assert os.path.samefile(pushed, home / "edgeship/toy/0123456789ab/artifact/model.onnx.data")

    def test_over_ssh_with_the_connection_cut_in_the_longer_steps(self, tmp_path: Path, bundle: Path) -> None:
        with sshd(tmp_path / "sshd") as server:
            cut: list[str] = []

            class Cutting(Silent):
                def begin(self, host: str, step: str) -> None:
                    if step in ("install", "verify", "bench"):
                        cut.append(step)
                        threading.Timer(0.4, server.cut).start()

            transport = SshTransport(parse_target(server.host), server.options)
            options = Options(device=device(), **QUICK)
            report = Validation(transport, read_contents(bundle), options, Cutting(), threading.Event()).run()
            transport.close()
            assert report is not None
            assert report.verdict == "pass"
            assert cut == ["install", "verify", "bench"]
            assert "install: the connection broke, and the step was resumed" in report.notes
            assert installed(server.home) == "0123456789ab"

    @pytest.mark.parametrize("after", [True, False])
    def test_cut_once_in_every_step(self, home: Path, bundle: Path, after: bool) -> None:
        lost: list[str] = []

        class Cut(Bad):
            step = ""

            def lose(self, done: bool) -> None:
                if done is after and self.step not in lost and self.step in STEPS[1:]:
                    lost.append(self.step)
                    raise CutError("cut")

            def meet(self, command: str) -> None:
                self.lose(False)

            def answer(self, command: str, result: Result) -> Result:
                self.lose(True)
                return result

        class Following(Silent):
            def begin(self, host: str, step: str) -> None:
                transport.step = step

        transport = Cut(home)
        options = Options(device=device(), **QUICK)
        report = Validation(transport, read_contents(bundle), options, Following(), threading.Event()).run()
        assert report is not None
        assert report.verdict == "pass"
        # `fetch` reads files; the transport of this test does that without `run`.
        assert lost == STEPS[1:-1]
        assert len(report.samples) == 1
        assert installed(home) == "0123456789ab"

    def test_prune_keeps_the_version_in_use(self, home: Path, bundle: Path, tmp_path: Path) -> None:
        old = write_bundle(tmp_path / "old", digest="aaaaaaaaaaaa")
        report_of(LocalTransport(home), old)
        (home / "edgeship/toy/notes").mkdir()
        (home / "edgeship/toy/notes/.edgeship-installed").touch()
        report = report_of(LocalTransport(home), bundle, prune=True)
        assert report.steps[-1].said == "2 older versions removed"
        assert sorted(p.name for p in (home / "edgeship/toy").iterdir()) == ["0123456789ab", "current", "notes"]
        assert [p.name for p in (home / "edgeship/.bundles/toy").iterdir()] == ["0123456789ab"]

    def test_soak(self, home: Path, bundle: Path) -> None:
        report = report_of(LocalTransport(home), bundle, soak=2.5)
        assert len(report.samples) > 1
        assert report.samples[-1].at_s >= 2

    def test_emulated_board_is_not_judged_by_its_speed(
        self, home: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("QEMU_CPU", "cortex-a76")
        slow = device(budgets={"ram_share": 0.5, "min_decode": 1e5})
        report = report_of(LocalTransport(home), bundle, device=slow)
        assert report.verdict == "pass"
        assert any("emulated (QEMU user mode, cortex-a76)" in note for note in report.notes)
        assert next(c for c in report.checks if c.name == "decode tokens/s").passed is None


class TestVerdict:
    @pytest.mark.parametrize(
        ("budgets", "failed"),
        [({"ram_share": 0.5, "min_decode": 1e5}, "decode tokens/s"), ({"ram_share": 0.001}, "RAM MB")],
    )
    def test_budgets(self, home: Path, bundle: Path, budgets: dict[str, float], failed: str) -> None:
        report = report_of(LocalTransport(home), bundle, device=device(budgets=budgets))
        assert report.verdict == "fail"
        assert [c.name for c in report.checks if c.passed is False] == [failed]

    def test_installed_copy_damaged_is_installed_again(self, home: Path, bundle: Path) -> None:
        report_of(LocalTransport(home), bundle)
        damage(home / "edgeship/toy/0123456789ab/artifact/model.onnx.data")
        report = report_of(LocalTransport(home), bundle)
        assert report.verdict == "pass"
        assert "the installed copy was damaged and has been installed again" in report.notes

    def test_damaged_between_push_and_installation(self, home: Path, bundle: Path) -> None:
        class Damaging(Bad):
            def meet(self, command: str) -> None:
                if "--prefix" in command:
                    damage(home / "edgeship/.bundles/toy/0123456789ab/artifact/model.onnx.data")

        report = report_of(Damaging(home), bundle)
        assert report.verdict == "fail"
        failed = {c.name: c.found for c in report.checks if c.passed is False}
        assert failed["hashes"] == "files differ from what was sealed"
        assert "model.onnx.data" in failed["verify"]
        assert installed(home) is None
        assert report_of(LocalTransport(home), bundle).verdict == "pass"


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


class TestFaults:
    def test_wrong_architecture(self, home: Path, tmp_path: Path) -> None:
        target = {"os": "linux", "arch": "riscv64", "python": ["3.11"], "glibc": ""}
        made = write_bundle(tmp_path / "bundle", target=target)
        with pytest.raises(HostError, match="local, step probe: expected a board of riscv64") as caught:
            check(LocalTransport(home), made)
        assert "--device" in caught.value.hint
        assert not list(home.iterdir()), "nothing was sent"

    def test_python_too_old(self, home: Path, tmp_path: Path) -> None:
        target = {"os": "linux", "arch": os.uname().machine, "python": ["3.99"], "glibc": ""}
        made = write_bundle(tmp_path / "bundle", target=target)
        with pytest.raises(HostError, match=r"step probe: expected Python 3.99 on the board, found") as caught:
            check(LocalTransport(home), made)
        assert "python3.99" in caught.value.hint
        assert not list(home.iterdir())

    def test_python_of_32_bits_on_a_64_bit_kernel(self, home: Path, bundle: Path) -> None:
        class Narrow(Bad):
            def answer(self, command: str, result: Result) -> Result:
                return Result(result.code, result.stdout.replace(" 64\n", " 32\n"), "")

        with pytest.raises(HostError, match=r"step probe: expected Python .* found Python .* of 32 bits"):
            check(Narrow(home), bundle)

    def test_clock_off_by_years(self, home: Path, bundle: Path) -> None:
        class Old(Bad):
            def answer(self, command: str, result: Result) -> Result:
                return Result(result.code, result.stdout.replace(f"clock={int(time.time()) // 10000}", "clock=3"), "")

        report = report_of(Old(home), bundle)
        assert report.verdict == "pass"
        assert any("clock is off by" in note and "years" in note for note in report.notes)
        assert report.time.startswith(time.strftime("%Y"))

    def test_disk_too_small(self, home: Path, tmp_path: Path) -> None:
        made = write_bundle(tmp_path / "bundle", needs_mb=1 << 30)
        with pytest.raises(ResourceError, match="local, step space: the board's disk is too small") as caught:
            check(LocalTransport(home), made)
        assert "--prune" in caught.value.hint
        assert installed(home) is None

    def test_installation_fails_beside_a_working_version(self, home: Path, bundle: Path, tmp_path: Path) -> None:
        report_of(LocalTransport(home), bundle)
        other = write_bundle(tmp_path / "other", digest="bbbbbbbbbbbb", install=FAILING)
        with pytest.raises(HostError, match="local, step install: no venv here") as caught:
            check(LocalTransport(home), other)
        assert caught.value.hint == "install python3-venv"
        assert installed(home) == "0123456789ab"

    def test_verify_fails_beside_a_working_version(self, home: Path, bundle: Path, tmp_path: Path) -> None:
        report_of(LocalTransport(home), bundle)
        other = write_bundle(tmp_path / "other", digest="bbbbbbbbbbbb", install="echo files NOT intact; exit 14\n")
        assert report_of(LocalTransport(home), other).verdict == "fail"
        assert installed(home) == "0123456789ab"

    def test_command_that_never_ends(self, home: Path, tmp_path: Path) -> None:
        made = write_bundle(tmp_path / "bundle", install="sleep 60\n")
        with pytest.raises(HostError, match=r"step install: .* did not end within 1 s"):
            check(LocalTransport(home), made, timeout=1.0)

    def test_an_installer_left_behind_ends_first(self, home: Path, bundle: Path) -> None:
        (home / "edgeship/.answers").mkdir(parents=True)
        (home / "install.sh").write_text("trap 'echo ended > ended; exit 143' TERM\nsleep 1\nsleep 1\nsleep 60\n")
        with subprocess.Popen(["sh", "install.sh"], cwd=home) as old:
            (home / "edgeship/.answers/installing-toy").write_text(f"{old.pid}\n")
            threading.Thread(target=old.wait, daemon=True).start()  # a process that nobody waits for stays
            assert report_of(LocalTransport(home), bundle).verdict == "pass"
            assert (home / "ended").read_text() == "ended\n"

    def test_connection_gone_for_good(self, home: Path, bundle: Path, tmp_path: Path) -> None:
        class Gone(Bad):
            def meet(self, command: str) -> None:
                if "--prefix" in command or command.startswith("sh -c cat /proc/sys/kernel/random/boot_id"):
                    raise CutError("the connection broke", hint="run the same command again: what is done is kept")

        report_of(LocalTransport(home), bundle)
        other = write_bundle(tmp_path / "other", digest="bbbbbbbbbbbb")
        with pytest.raises(CutError, match="local, step install: the connection broke") as caught:
            check(Gone(home), other)
        assert "again" in caught.value.hint
        assert installed(home) == "0123456789ab"

    def test_board_restarts_during_the_bench(self, home: Path, bundle: Path) -> None:
        class Restarting(Bad):
            lost = False

            def meet(self, command: str) -> None:
                if " bench " in command and not self.lost:
                    self.lost = True
                    raise CutError("the connection broke")

            def answer(self, command: str, result: Result) -> Result:
                boot = command.startswith("sh -c cat /proc/sys/kernel/random/boot_id")
                return Result(0, "another\n", "") if boot else result

        report = report_of(Restarting(home), bundle)
        assert report.verdict == "pass"
        assert "bench: the board restarted, and the step was resumed" in report.notes

    @pytest.mark.parametrize(
        "answer",
        [
            "",
            "no json",
            "[]",
            "{}",
            '{"verdict": "pass", "intact": 3}',
            "[" * 5000,
            '{"verdict": NaN}',
            "x" * (2 << 20),
        ],
    )
    def test_answers_that_are_none(self, home: Path, bundle: Path, answer: str) -> None:
        class Lying(LocalTransport):
            def get(self, remote: str, limit: int) -> bytes:
                if remote.endswith("verify.json"):
                    (home / remote).write_text(answer)
                return super().get(remote, limit)

        with pytest.raises(HostError, match=r"local, step verify: (what came back is no report|.* is larger than)"):
            check(Lying(home), bundle)

    def test_bench_that_dies_names_the_signal(self, home: Path, bundle: Path) -> None:
        class Dying(Bad):
            def answer(self, command: str, result: Result) -> Result:
                return Result(132, "", "") if " bench " in command else result

        with pytest.raises(HostError, match="step bench: bench failed there: it was ended by signal 4"):
            check(Dying(home), bundle)


class TestBundle:
    def test_file_changed_since(self, tmp_path: Path) -> None:
        made = write_bundle(tmp_path / "bundle")
        damage(made / "artifact/model.onnx.data")
        with pytest.raises(ArtifactError, match=r"artifact/model\.onnx\.data is not what the bundle was made with"):
            read_contents(made)

    @pytest.mark.parametrize(
        ("members", "said"),
        [
            ({"name": "../up"}, "names a directory"),
            ({"name": "a b"}, "names a directory"),
            ({"digest": "x" * 12}, "hex digits"),
            ({"engine": "other"}, "expected one of"),
            ({"files": {}}, "is missing"),
            ({"files": {"../x": {"size": 1, "sha256": "a" * 64}}}, "expected a path inside"),
            ({"files": 3}, "expected an object"),
        ],
    )
    def test_hostile(self, tmp_path: Path, members: dict[str, Any], said: str) -> None:
        with pytest.raises(ArtifactError, match=said):
            read_contents(write_bundle(tmp_path / "bundle", **members))

    def test_is_known_by_its_file(self, bundle: Path, tmp_path: Path) -> None:
        assert bundles.is_bundle(bundle)
        assert not bundles.is_bundle(tmp_path)
