"""The environments of other exporters: found, refused, installed, and what comes of a worker that fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgeship.errors import ArtifactError, DependencyError, EdgeshipError, ExporterError, ResourceError, UsageError
from edgeship.exporters import EXPORTERS, environment, packages
from edgeship.progress import Silent
from exporter_standin import asked, stand_in
from exports import Listener
from tolerances import CUT_SHORT_SECONDS

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGESHIP_EXPORTERS", str(tmp_path / "environments"))
    return tmp_path / "environments"


def test_each_exporter_is_an_extra_of_pinned_packages() -> None:
    assert set(environment.NAMES) == {*EXPORTERS}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in environment.NAMES:
        assert {*packages.packages(name)} == {line.replace("_", "-") for line in extras[name]}
        assert all("==" in line for line in packages.packages(name) if line != "requests")


def test_an_edgeship_without_the_extra_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.metadata, "requires", lambda name: ["numpy>=1.26", 'torch==2.13.0; extra == "train"'])
    packages.packages.cache_clear()
    with pytest.raises(DependencyError, match="extra of this name"):
        environment.find("olive")
    packages.packages.cache_clear()


def test_the_extra_in_this_environment_serves_where_there_is_no_own(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages.metadata, "version", lambda name: versions.get(name, "0"))
    versions = dict(line.partition("==")[::2] for line in packages.packages("optimum"))
    found = environment.find("optimum")
    assert found.shared
    assert (found.python, found.directory) == (Path(sys.executable), Path(sys.prefix))
    assert environment.require("optimum") == environment.install("optimum", Silent()) == found
    assert not environment.find("olive").shared
    versions["onnx"] = "1.0"
    assert not environment.find("optimum").shared
    versions["onnx"] = "1.23.2"
    made = stand_in(root, "optimum", monkeypatch)
    assert environment.find("optimum") == made


def test_a_worker_in_this_environment() -> None:
    here = environment.Environment("optimum", Path(sys.prefix), shared=True)
    with pytest.raises(ExporterError, match="No module named 'absent_worker'"):
        environment.run(here, "absent_worker", {}, Silent())


def test_a_missing_one_is_refused_with_its_command() -> None:
    with pytest.raises(DependencyError, match="not installed") as caught:
        environment.require("optimum")
    assert "edgeship install-exporter optimum" in caught.value.hint


def test_one_of_other_versions_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stand_in(root, "olive", monkeypatch)
    assert environment.require("olive") == made
    (made.directory / environment.MARKER).write_text('{"packages": "old"}')
    with pytest.raises(DependencyError, match="other versions"):
        environment.require("olive")


def test_a_name_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'optimum'\?"):
        environment.find("optimun")


def test_without_a_variable_it_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGESHIP_EXPORTERS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environment.find("olive").directory == tmp_path / "edgeship" / "exporters" / "olive"


class FakePip:
    """In place of pip: takes a command, and ends as told."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.commands = code, list[list[str]]()

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        return subprocess.CompletedProcess(command, self.code, "", "WARNING: x\nERROR: No matching distribution")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    pip = FakePip()

    def create(directory: Path, **_: Any) -> None:
        (directory / "bin").mkdir(parents=True)
        (directory / "bin" / "python").touch()

    monkeypatch.setattr(environment.venv, "create", create)
    monkeypatch.setattr(environment.subprocess, "run", pip)
    return pip


def test_it_is_installed_once(fake: FakePip, root: Path) -> None:
    (root / "optimum").mkdir(parents=True)  # an earlier attempt that was cut short
    (root / "optimum" / "rest").touch()
    made = environment.install("optimum", Silent())
    assert made.ready
    assert not (root / "optimum" / "rest").exists()
    environment.install("optimum", Silent())
    (command,) = fake.commands
    assert "optimum==2.1.0" in command


def test_where_pip_fails_nothing_is_left(fake: FakePip, root: Path) -> None:
    fake.code = 1
    with pytest.raises(DependencyError, match="No matching distribution") as caught:
        environment.install("olive", Silent())
    assert "WARNING" not in caught.value.message
    assert not (root / "olive").exists()
    with pytest.raises(DependencyError):
        environment.require("olive")


def test_two_at_once_are_refused(fake: FakePip, root: Path) -> None:
    from filelock import FileLock

    root.mkdir()
    with FileLock(root / ".olive.lock"), pytest.raises(ArtifactError, match="right now"):
        environment.install("olive", Silent())


def test_a_directory_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGESHIP_EXPORTERS", str(tmp_path / "file" / "in"))
    with pytest.raises(ArtifactError, match="cannot be made"):
        environment.install("olive", Silent())


def test_a_worker_gets_the_request_and_its_notes_are_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, notes = stand_in(root, "olive", monkeypatch), Listener()
    assert environment.run(made, "workflow", {"passes": []}, notes) == {"made_with": "a stand-in"}
    assert notes.notes == ["at work"]
    assert asked(made) == [{"passes": [], "module": "workflow", "offline": "1"}]


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"error": "the option is unknown"}, ExporterError, "the option is unknown"),
        ({"exit": 3}, ExporterError, "exit code 3"),
        ({"exit": 0}, ExporterError, "a library's own words"),
        ({"signal": int(signal.SIGSEGV)}, ExporterError, "signal 11"),
        ({"signal": int(signal.SIGKILL)}, ResourceError, "memory"),
    ],
)
def test_a_worker_that_fails(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], kind: type[EdgeshipError], said: str
) -> None:
    made = stand_in(root, "olive", monkeypatch, **how)
    with pytest.raises(kind, match=said) as caught:
        environment.run(made, "workflow", {}, Silent())
    assert json.dumps(caught.value.hint)
    assert caught.value.hint


def test_a_quiet_worker_is_said_to_live(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, notes = stand_in(root, "olive", monkeypatch, sleep=1), Listener()
    monkeypatch.setattr(environment, "QUIET", 0.2)
    environment.run(made, "workflow", {}, notes)
    assert any(text.startswith("still at work") for text in notes.notes)


class Impatient(Silent):
    """The user, who interrupts at the first word."""

    def note(self, text: str) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_ends_the_worker(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stand_in(root, "olive", monkeypatch, sleep=60)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        environment.run(made, "workflow", {}, Impatient())
    assert time.monotonic() - started < CUT_SHORT_SECONDS
