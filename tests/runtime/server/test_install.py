"""`edgeship-runtime service`: the unit, what systemd makes of it, and what is said where something is in the way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeship_runtime.cli import build_parser, main
from edgeship_runtime.errors import UsageError
from edgeship_runtime.server import install, systemd
from edgeship_runtime.server.keys import new_key
from edgeship_runtime.server.notify import notify
from edgeship_runtime.server.serve import build
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.server.telemetry import Log
from toy_artifact import write_toy

HOSTILE = [
    "a b",
    "100%h",
    "$HOME ${HOME}",
    'it\'s "so"',
    "two\nlines",
    "tab\t",
    "back\\slash\\",
    "",
    "; rm",
    "-x",
    "ü 猫",
    "\x07",
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("install") / "toy" / "onnx").directory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where units lie; no systemctl is found."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "config/systemd/user"


@pytest.fixture
def systemctl(home: Path, tmp_path: Path) -> Callable[[], list[str]]:
    """A stand-in for systemctl that notes what it is asked; `fail` in its folder has it refuse that verb."""
    program = tmp_path / "bin" / "systemctl"
    program.write_text(
        f"""#!{sys.executable}
import pathlib, sys
here = pathlib.Path({str(tmp_path)!r})
words = [each for each in sys.argv[1:] if each not in ("--user", "--no-pager")]
with (here / "asked").open("a") as file:
    print(*words, file=file)
if words == ["--version"]:
    print("systemd 252 (252.1)")
refused = (here / "fail").read_text().split() if (here / "fail").exists() else []
if words[0] in refused:
    sys.exit("Failed to connect to bus: No medium found")
"""
    )
    program.chmod(0o755)
    (tmp_path / "fail").write_text("is-active")

    def asked() -> list[str]:
        path = tmp_path / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return asked


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def made(**parts: Any) -> systemd.Service:
    given = {"name": "edgeship", "description": "x", "program": sys.executable, "arguments": [], "memory_bytes": 10**9}
    return systemd.Service(**{"grace_s": 10.0, **given, **parts})


class TestUnit:
    @pytest.mark.parametrize("version", [None, 252])
    def test_systemd_has_nothing_to_say_about_it(self, tmp_path: Path, version: int | None) -> None:
        if shutil.which("systemd-analyze") is None:
            pytest.skip("no systemd-analyze is installed")
        path = tmp_path / "edgeship.service"
        arguments = [*HOSTILE, "/no where/a%b\"c'\n[Service]\nUser=root"]
        path.write_text(systemd.unit(made(arguments=arguments, description="50 %\nUser=root \\"), version=version))
        environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"}
        command = ["systemd-analyze", "--user", "--man=no", "verify", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
        said = [line for line in done.stderr.splitlines() if "edgeship.service" in line]
        if version is None:  # an older systemd than the newest says which key it does not know
            said = [line for line in said if "Unknown key" not in line]
        assert said == []
        assert done.returncode == 0

    def test_a_line_of_the_unit_is_one_line(self) -> None:
        text = systemd.unit(made(arguments=["a\nUser=root"], description="b\r\nUser=root"))
        assert [line for line in text.splitlines() if line.startswith("User=")] == []
        assert text.isascii()

    def test_what_no_unit_can_hold(self) -> None:
        for text in ("a\0b", "\udcff"):
            with pytest.raises(UsageError):
                systemd.quote(text)
        with pytest.raises(UsageError, match="quotes or control characters"):
            systemd.unit(made(program="/it's/python"))

    def test_no_secret_and_no_dump(self, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        key = new_key(tmp_path / "keys", "me")
        keys = (tmp_path / "keys").read_text().split()[1]
        options = ["--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys")]
        assert main(["service", "install", str(artifact), "--print", *options]) == 0
        text = capsys.readouterr().out
        assert f"--api-key-file={tmp_path / 'keys'}" in text
        assert key not in text
        assert keys not in text
        assert "LimitCORE=0" in text


class TestMemory:
    def test_it_covers_what_the_artifact_needs(self, artifact: Path) -> None:
        def limit(**given: Any) -> int:
            return systemd.memory_limit(Settings(artifacts={"a": artifact}, **given))

        size = sum(file.stat().st_size for file in artifact.iterdir())
        assert limit() > 250e6 + 2 * size
        assert limit(context=100_000) > limit()
        assert limit(prefix_memory_mb=500) == limit(prefix_memory_mb=100) + 500_000_000
        assert limit(memory_mb=2000) == pytest.approx(2500e6)

    def test_a_budget_is_taken_as_it_stands(self, artifact: Path, tmp_path: Path) -> None:
        def limit(*names: str, **given: Any) -> int:
            artifacts = dict.fromkeys(names, tmp_path / "copy")
            return systemd.memory_limit(Settings(artifacts=artifacts, prefix_memory_mb=0, **given))

        shutil.copytree(artifact, tmp_path / "copy")
        manifest = json.loads((tmp_path / "copy/edgeship.json").read_text())
        manifest["budgets"]["ram_mb"] = 750
        (tmp_path / "copy/edgeship.json").write_text(json.dumps(manifest))
        assert limit("a", parallel=1) == 1_250_000_000
        assert limit("a", parallel=3) - limit("a", parallel=2) == limit("a", parallel=2) - 1_250_000_000 > 0
        assert limit("a", "b") > 2_000_000_000
        assert limit("a", "b", memory_mb=1000, parallel=1) == 1_250_000_000


class TestInstall:
    def test_install_again_and_uninstall(
        self, artifact: Path, home: Path, systemctl: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        unit, port = home / "edgeship.service", str(free_port())
        assert main(["service", "install", str(artifact), "--port", port]) == 0
        assert "journalctl --user --unit edgeship" in capsys.readouterr().out
        assert systemctl()[-3:] == ["daemon-reload", "enable --quiet edgeship.service", "restart edgeship.service"]
        assert unit.read_text().startswith(systemd.MARK)
        assert "RestartSec=15\n" in unit.read_text(), "an older systemd knows no steps"
        assert [each.name for each in home.iterdir()] == ["edgeship.service"]
        assert main(["service", "install", str(artifact), "--port", port, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["changed"] is False
        assert systemctl()[-1] == "start edgeship.service", "what runs is not disturbed"
        assert main(["service", "uninstall"]) == 0
        assert "disable --now --quiet edgeship.service" in systemctl()
        assert not unit.exists()
        capsys.readouterr()
        assert main(["service", "uninstall", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["removed"] is False

    def test_print_touches_nothing(self, artifact: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["service", "install", f"q w={artifact}", "--print", "--json", "--memory-mb", "500"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["unit"] == str(home / "edgeship.service")
        assert f'"q w={artifact}"' in found["text"]
        assert not home.exists()

    def test_no_systemd(self, artifact: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["service", "install", str(artifact)]) == 10
        assert "no systemctl" in capsys.readouterr().err
        assert not home.exists()

    def test_systemd_that_does_not_answer(
        self, artifact: Path, home: Path, systemctl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "fail").write_text("show")
        assert main(["service", "install", str(artifact), "--json"]) == 17
        found = capsys.readouterr()
        assert "Failed to connect to bus" in json.loads(found.out)["error"]["message"]
        assert "enable-linger" in found.err
        assert not home.exists()

    def test_a_service_that_does_not_start(
        self, artifact: Path, home: Path, systemctl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "fail").write_text("is-active restart")
        assert main(["service", "install", str(artifact), "--port", str(free_port())]) == 17
        assert "journalctl --user --unit edgeship" in capsys.readouterr().err

    def test_a_port_that_is_taken(
        self, artifact: Path, home: Path, systemctl: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert main(["service", "install", str(artifact), "--port", str(port)]) == 9
        assert not home.exists()

    def test_a_unit_of_someone_else_is_left_alone(
        self, artifact: Path, home: Path, systemctl: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        home.mkdir(parents=True)
        (home / "mine.service").write_text("[Service]\nExecStart=/bin/true\n")
        for words in (["install", str(artifact), "--port", str(free_port())], ["uninstall"], ["status"]):
            assert main(["service", *words, "--name", "mine"]) == 2
        assert "left alone" in capsys.readouterr().err
        assert (home / "mine.service").read_text() == "[Service]\nExecStart=/bin/true\n"

    def test_a_place_that_cannot_be_written(self, artifact: Path, home: Path, systemctl: Any) -> None:
        home.parent.mkdir(parents=True)
        home.write_text("a file where the folder should be")
        assert main(["service", "install", str(artifact), "--port", str(free_port())]) == 17

    @pytest.mark.parametrize(
        ("words", "code"),
        [
            (["install"], 2),
            (["install", "no/such"], 8),
            (["install", "ARTIFACT", "--host", "0.0.0.0"], 2),
            (["install", "ARTIFACT", "--port", "0"], 2),
            (["install", "ARTIFACT", "--name", "../x"], 2),
            (["install", "ARTIFACT", "--name", "a b"], 2),
            (["remove"], 2),
            ([], 2),
            (["status"], 17),
        ],
    )
    def test_what_cannot_be(self, artifact: Path, home: Path, systemctl: Any, words: list[str], code: int) -> None:
        given = [str(artifact) if word == "ARTIFACT" else word for word in words]
        assert main(["service", *given]) == code
        assert not home.exists()

    def test_every_option_of_serve_reaches_the_service(self, artifact: Path, tmp_path: Path) -> None:
        parser = build_parser()
        plain = vars(parser.parse_args(["service", "install", str(artifact)]))
        words: list[str] = []
        for option in plain["server_options"]:
            words.append(option.option_strings[-1])
            if option.nargs != 0:
                words.append(
                    "7"
                    if option.type in (int, float)
                    else f"{tmp_path}/x=1"
                    if option.dest == "lora"
                    else str(tmp_path)
                )
        args = parser.parse_args(["service", "install", str(artifact), *words])
        again = vars(parser.parse_args(["serve", *install._options(args), "--", str(artifact)]))
        given = {option.dest: getattr(args, option.dest) for option in plain["server_options"]}
        assert len(given) > 15
        assert {name: again[name] for name in given} == given
        assert all(value != plain[name] for name, value in given.items())


class TestSignsOfLife:
    def hear(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        return ear

    def test_while_the_engine_is_not_stuck(
        self, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("edgeship_runtime.server.app._WATCH_S", 0.01)
        heard: list[bytes] = []

        def listen(ear: socket.socket) -> list[bytes]:
            while True:
                try:
                    heard.append(ear.recv(100))
                except BlockingIOError:
                    return heard

        async def live(server: Any) -> None:
            async with server._lifespan(None):
                await asyncio.sleep(0.2)
                assert b"READY=1" in listen(ear)
                assert b"WATCHDOG=1" in heard
                monkeypatch.setattr(type(server.service.scheduler), "stuck", property(lambda _: True))
                await asyncio.sleep(0.1)
                listen(ear)
                heard.clear()
                await asyncio.sleep(0.2)
                assert listen(ear) == []
                monkeypatch.undo()
                monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            assert b"STOPPING=1" in listen(ear)  # other servers of this process may be heard, too

        with self.hear(tmp_path, monkeypatch) as ear:
            asyncio.run(live(build(Settings(artifacts={"toy": artifact}), log=Log(lambda _: None))))

    def test_nobody_listens(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for address in ("", "relative", str(tmp_path / "gone"), "@no-such-name"):
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            assert notify("READY=1") is False


MANAGER = Path(__file__).with_name("user_manager.sh")
PROGRAM = """
import json, pathlib, subprocess, sys, time, urllib.request
def run(*words, code=0):
    done = subprocess.run([sys.executable, "-m", "edgeship_runtime", "service", *words], capture_output=True, text=True)
    assert done.returncode == code, (words, done)
    return done.stdout
def read(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.load(answer)
def ask(*words):
    return subprocess.run(["systemctl", "--user", *words], check=True, capture_output=True, text=True).stdout.strip()
artifacts, port = json.loads(sys.argv[1]), sys.argv[2]
run("install", *artifacts, "--port", port)
facts = json.loads(run("status", "--json"))
assert facts["runs"] and facts["enabled"] == "enabled" and facts["memory_max_bytes"] > 250_000_000, facts
names = [each["id"] for each in read("/v1/models")["data"]]
assert names == [each.partition("=")[0] for each in artifacts], names
assert read("/health")["status"] != "unhealthy"
ask("kill", "--kill-whom=main", "--signal=KILL", "edgeship")
for _ in range(100):
    state = ask("show", "--property=SubState", "--value", "edgeship")
    if state == "auto-restart":
        break
    time.sleep(0.05)
assert state == "auto-restart", state
run("status", code=17)
folder = pathlib.Path(facts["unit"] + ".d")
folder.mkdir()
(folder / "short.conf").write_text("[Service]\\nWatchdogSec=4\\nTimeoutAbortSec=1\\nRestartSec=60\\n")
ask("daemon-reload")
ask("restart", "edgeship")
assert read("/health")["status"] != "unhealthy"
time.sleep(5)
assert ask("show", "--property=SubState", "--value", "edgeship") == "running", "it gives signs of life"
ask("kill", "--kill-whom=main", "--signal=STOP", "edgeship")
for _ in range(200):
    if ask("show", "--property=SubState", "--value", "edgeship") == "auto-restart":
        break
    time.sleep(0.05)
assert ask("show", "--property=Result", "--value", "edgeship") == "watchdog"
ask("restart", "edgeship")
assert read("/health")["status"] != "unhealthy"
ask("stop", "edgeship")
assert ask("show", "--property=Result", "--value", "edgeship") == "success", "an end that was asked for is no failure"
run("uninstall")
run("status", code=17)
print("all is well")
"""


def test_a_user_manager_runs_it(artifact: Path, tmp_path: Path) -> None:
    """The real systemd: hostile paths arrive, a killed server comes back, a stopped one has not failed."""
    if os.geteuid() or not Path("/lib/systemd/systemd").exists() or shutil.which("dbus-daemon") is None:
        pytest.skip("a user manager of the test's own needs root, systemd and dbus")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    folders = [f'it\'s "a" $HOME %h\\{chr(10)}folder', "plain"]
    for folder in folders:
        shutil.copytree(artifact, tmp_path / folder)
    names = ["50 %n ${HOME} 'ü'", "plain"]
    artifacts = [f"{name}={tmp_path / folder}" for name, folder in zip(names, folders, strict=True)]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), json.dumps(artifacts), str(free_port())]
    done = subprocess.run(
        ["unshare", "--mount", "bash", str(MANAGER), str(tmp_path), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if (tmp_path / "state").read_text().strip() not in ("running", "degraded"):
        pytest.skip(f"no user manager starts here: {(tmp_path / 'manager.log').read_text()[-300:]}")
    assert done.stdout.strip() == "all is well", done.stderr + (tmp_path / "manager.log").read_text()[-2000:]
