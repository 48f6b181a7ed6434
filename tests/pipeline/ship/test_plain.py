"""Artifacts that need no bundle: on this machine where they lie, and on devices with a runtime of their own."""

from __future__ import annotations

import json
import platform
import threading
from pathlib import Path

import pytest

from acceptance_files import write_acceptance
from adb_standin import server
from edgeship import cli
from edgeship.errors import ArtifactError, HostError, UsageError
from edgeship.ship.contents import read_plain
from edgeship.ship.course import Options
from edgeship.ship.plain import Plain
from edgeship.ship.teller import Silent
from edgeship.ship.transports.adb import AdbTransport
from tiny_bundle import ARCH, QUICK, device
from toy_artifact import write_toy

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="asks /proc")

SHORT = ["--repeats", "1", "--prompt-tokens", "8", "--decode-tokens", "4", "--threads", "1"]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_acceptance(write_toy(tmp_path / "artifact"))
    return tmp_path / "artifact"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


class TestHere:
    def test_verified_and_measured_where_it_lies(
        self, artifact: Path, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.run(["validate", str(artifact), "--device", "local", *SHORT, "--json"]) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        report = result["report"]
        assert (report["verdict"], report["device"], report["host"]) == ("pass", "local", "local")
        assert [step["name"] for step in report["steps"]] == ["probe", "doctor", "verify", "bench", "fetch"]
        assert report["board"]["python"] == platform.python_version()
        assert any("where it lies" in note for note in report["notes"])
        assert not (home / "edgeship/.bundles").exists(), "nothing is copied"

    def test_damaged(self, artifact: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with (artifact / "model.onnx.data").open("r+b") as file:
            file.write(b"!!!!")
        assert cli.run(["validate", str(artifact), "--device", "local", *SHORT]) == ArtifactError.exit_code
        assert "model.onnx.data" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "code", "said"),
        [
            (["--device", "local", "--engine", "other"], UsageError.exit_code, "there is no engine"),
            (["--device", "local", "--engine", "llamacpp"], ArtifactError.exit_code, "onnx"),
            (["--device", "raspberry-pi-5-8gb"], UsageError.exit_code, "--host is missing"),
            (["--device", "android-flagship"], UsageError.exit_code, "--host is missing"),
        ],
    )
    def test_refused(
        self, artifact: Path, home: Path, options: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.run(["validate", str(artifact), *options]) == code
        told = capsys.readouterr().err
        assert said in told
        assert "hint:" in told

    def test_dry_run(self, artifact: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["validate", str(artifact), "--device", "local", "--dry-run", *SHORT]) == 0
        assert f"edgeship_runtime verify {artifact}" in capsys.readouterr().out
        assert not list(home.iterdir())


class TestPhone:
    """A phone as its profile says it: Android, adb, a Python that has the runtime."""

    PHONE = device(name="test-phone", os="android", arch=ARCH, libc="bionic")

    def validate(self, home: Path, artifact: Path, port: int) -> Plain:
        transport = AdbTransport("adb", None, ("127.0.0.1", port))
        contents = read_plain(artifact, self.PHONE, None)
        return Plain(transport, contents, Options(device=self.PHONE, **QUICK), Silent(), threading.Event())

    def test_sent_and_measured(self, artifact: Path, home: Path) -> None:
        with server(home, PATH=f"{python(home)}:/usr/bin:/bin") as adb:
            report = self.validate(home, artifact, adb.port).run()
            assert report is not None
            assert report.verdict == "pass", report.checks
            assert [step.name for step in report.steps][1:3] == ["space", "push"]
            again = self.validate(home, artifact, adb.port).run()
        assert again is not None
        assert next(step.said for step in again.steps if step.name == "push").startswith("0 files, 0 B sent")

    def test_without_the_runtime(self, artifact: Path, home: Path) -> None:
        none = python(home)
        (none / "python3").write_text("#!/bin/sh\necho 'python3: No module named edgeship_runtime' >&2; exit 1\n")
        with (
            server(home, PATH=f"{none}:/usr/bin:/bin") as adb,
            pytest.raises(HostError, match=r"adb, step doctor: .*No module named edgeship_runtime") as caught,
        ):
            self.validate(home, artifact, adb.port).run()
        assert "pip install 'edgeship-runtime[ort]'" in caught.value.hint


def python(home: Path) -> Path:
    """A folder with the Python that runs the tests, under the name that is looked for."""
    import sys

    folder = home.parent / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "python3"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return folder
