"""The validation of several boards at once, and the commands around it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from command_line import ROOT
from edgeship import cli
from edgeship.errors import ArtifactError, UsageError
from edgeship.ship import validate
from edgeship.ship.contents import read_contents
from edgeship.ship.course import Options
from edgeship.ship.report import parse_report
from edgeship.ship.teller import Lines, Silent
from edgeship.ship.transports import CutError, OnLine, Result, Source, Transport
from edgeship.ship.transports.local import LocalTransport
from tiny_bundle import QUICK, STEPS, device, needs_linux

pytestmark = needs_linux


class Lost(LocalTransport):
    """A board that cannot be reached."""

    def run(
        self, argv: Sequence[str], *, timeout: float, on_line: OnLine | None = None, source: Source | None = None
    ) -> Result:
        raise CutError("no connection", hint="check the cable")


class TestSeveralHosts:
    def test_one_error_does_not_end_the_others(self, tmp_path: Path, bundle: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()

        boards: dict[str, Transport] = {
            "a": LocalTransport(tmp_path / "a"),
            "b": Lost(tmp_path / "b"),
        }
        with (tmp_path / "log").open("w") as log:
            done = validate.validate(
                read_contents(bundle),
                ["a", "b"],
                Options(device=device(), **QUICK),
                open_transport=boards.__getitem__,
                reports=tmp_path / "reports",
                teller=Lines(log),
            )
        assert [each.exit_code for each in done] == [0, 12]
        assert done[0].path is not None
        assert done[0].path.is_file()
        assert done[0].path.with_suffix(".html").is_file()
        assert "step probe: no connection" in str(done[1].error)
        told = (tmp_path / "log").read_text()
        assert all(f"local: {step}: " in told for step in STEPS)

    def test_same_host_twice(self, bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="given twice"):
            validate.validate(
                read_contents(bundle),
                ["a", "a"],
                Options(device=device()),
                open_transport=lambda host: LocalTransport(tmp_path),
                reports=tmp_path,
                teller=Silent(),
            )


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "test-board.yaml"
    path.write_text((ROOT / "devices/laptop-avx2.yaml").read_text())
    return path


class TestCommand:
    @pytest.fixture(autouse=True)
    def _home(self, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.chdir(tmp_path)

    def run(self, *more: object) -> int:
        quick = ["--repeats", "1", "--prompt-tokens", "8", "--decode-tokens", "4", "--threads", "1"]
        return cli.run(["validate", *map(str, more), "--host", "local", *quick])

    def test_table_and_report(self, bundle: Path, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(bundle, "--device", profile) == 0
        told = capsys.readouterr()
        assert "verdict: pass, reports/test-board/" in told.out
        assert "local: push: " in told.err
        assert cli.run(["report", "--html", "pages"]) == 0
        assert "wrote pages/test-board-toy-ort.html" in capsys.readouterr().out

    def test_json(self, bundle: Path, profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(bundle, "--device", profile, "--json") == 0
        told = capsys.readouterr()
        (result,) = json.loads(told.out)["results"]
        assert told.err == ""
        assert parse_report(json.dumps(result["report"]).encode(), "here").verdict == "pass"

    def test_dry_run(self, bundle: Path, profile: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(bundle, "--device", profile, "--dry-run") == 0
        told = capsys.readouterr().out
        assert "sh edgeship/.bundles/toy/0123456789ab/install.sh --prefix edgeship/toy/0123456789ab" in told
        assert "model.onnx.data" in told
        assert not list(home.iterdir())
        assert not Path("reports").exists()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--soak", "ten minutes"], "--soak"),
            (["--host", "-oProxyCommand=id"], "--host"),
            (["--engine", "llamacpp"], "a bundle for ort"),
            (["--ssh-option", "LocalCommand=id", "--host", "board"], "--ssh-option"),
        ],
    )
    def test_usage(
        self, bundle: Path, profile: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(bundle, "--device", profile, *arguments) == UsageError.exit_code
        told = capsys.readouterr().err
        assert said in told
        assert "hint:" in told

    def test_bundle_for_another_device(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(bundle, "--device", "laptop-avx2") == UsageError.exit_code
        assert "a bundle for test-board" in capsys.readouterr().err

    def test_no_reports_yet(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["report", "--json"]) == ArtifactError.exit_code
        assert "validate" in json.loads(capsys.readouterr().out)["error"]["hint"]
