"""Bundles for phones: what lies in one, validation by its runner over adb, and its install.sh in Termux and without."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adb_standin import SERIAL, Server, server
from bundles import PYTHON, registry_problem
from edgeship import catalog, cli
from edgeship.errors import DependencyError, HostError, PlanError, UsageError
from edgeship.progress import Silent as Quiet
from edgeship.ship import android_runner, wheels
from edgeship.ship.bundle import make_bundle
from edgeship.ship.contents import read_contents
from edgeship.ship.course import Options
from edgeship.ship.making import Bundle
from edgeship.ship.native_course import Native
from edgeship.ship.nfc_tables import nfc_tables
from edgeship.ship.teller import Silent
from edgeship.ship.transports.adb import AdbTransport
from edgeship.ship.wheels import collect_pure, read_wheels
from encoders import write_encoder
from exports import export_tiny
from phone_bundles import BENCH, DOCTOR, PHONE, VERIFY, make_phone_bundle, write_runner
from tiny_bundle import QUICK

STEPS = ["probe", "space", "push", "prepare", "doctor", "verify", "bench", "fetch"]
UNAME = "#!/bin/sh\ncase $1 in -m) echo aarch64 ;; -o) echo Android ;; *) echo Linux ;; esac\n"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("artifacts"), "gguf")


@pytest.fixture
def make(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    return lambda **options: make_phone_bundle(artifact, tmp_path / "made", monkeypatch, **options)


@pytest.fixture
def tools(tmp_path: Path) -> str:
    """A PATH on which this machine calls itself an Android phone."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/uname").write_text(UNAME)
    (tmp_path / "tools/uname").chmod(0o755)
    return f"{tmp_path}/tools:/usr/bin:/bin"


class TestBundle:
    def test_what_lies_in_it(self, make: Callable[..., Bundle]) -> None:
        made = make()
        names = {name.partition("/")[0] for name in made.files}
        assert names == {"README.md", "artifact", "install.sh", "requirements.txt", "runner", "wheels"}
        assert made.engine == "llamacpp"
        assert {"runner/edgeship-runner", "artifact"} <= made.sizes.keys()
        contents = read_contents(made.path)
        assert (contents.system, contents.arch) == ("android", "aarch64")
        assert os.access(made.path / "runner/edgeship-runner", os.X_OK)
        assert "--transport adb" in (made.path / "README.md").read_text()
        assert "@" not in (made.path / "README.md").read_text()

    def test_without_the_runner(self, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(android_runner, "find_runner", lambda: None)
        with pytest.raises(DependencyError, match="was not built yet") as caught:
            make_bundle(artifact, PHONE, None, tmp_path, progress=Quiet())
        assert "edgeship runner-android" in caught.value.hint

    def test_engines_and_processors_that_cannot_be(self, artifact: Path, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match="onnxruntime has no wheels that load there"):
            make_bundle(artifact, PHONE, "ort", tmp_path, progress=Quiet())
        with pytest.raises(PlanError, match="for aarch64"):
            make_bundle(artifact, PHONE.model_copy(update={"arch": "x86_64"}), None, tmp_path, progress=Quiet())

    def test_a_model_that_generates_no_text(self, tmp_path: Path) -> None:
        encoder, _ = write_encoder(tmp_path / "encoder" / "onnx", "feature-extraction")
        with pytest.raises(PlanError, match="a model for feature-extraction; the runner for phones"):
            make_bundle(encoder.parent, PHONE, None, tmp_path, progress=Quiet())

    def test_wheels_hold_no_compiled_code(self, tmp_path: Path) -> None:
        if problem := registry_problem():
            pytest.skip(problem)
        collect_pure(PHONE, tmp_path, keep=None, progress=Quiet())
        found = {wheel.name: wheel for wheel in read_wheels(tmp_path)}
        assert found.keys() == {"edgeship-runtime", "jinja2", "markupsafe", "pip", "typing-extensions"}
        assert {wheel.platform for wheel in found.values()} == {"any"}
        program = (
            "import markupsafe, jinja2; print(jinja2.Template('{{ x|e }}').render(x='<'), markupsafe._escape_inner)"
        )
        path = os.pathsep.join(str(found[name].path) for name in ("markupsafe", "jinja2"))
        done = subprocess.run(
            [sys.executable, "-S", "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.stdout.startswith("&lt;"), done.stderr
        assert "function _escape_inner" in done.stdout, "Python's, and not the compiled one"


class TestValidation:
    @pytest.fixture
    def adb(self, home: Path, tools: str) -> Iterator[Server]:
        with server(home, PATH=tools) as running:
            yield running

    def course(self, adb: Server, made: Bundle, **options: Any) -> Native:
        transport = AdbTransport("adb", None, adb.address, native=True)
        given = Options(**{"device": PHONE, **QUICK, **options})
        return Native(transport, read_contents(made.path), given, Silent(), threading.Event())

    def test_pushed_verified_and_measured(self, adb: Server, home: Path, make: Callable[..., Bundle]) -> None:
        made = make()
        report = self.course(adb, made).run()
        assert report is not None
        assert report.verdict == "pass", report.checks
        assert [step.name for step in report.steps] == STEPS
        assert (report.board.cpu, report.board.python, report.decode) == ("Phone", "", 12.0)
        judged = {check.name: check.passed for check in report.checks}
        assert judged["tokens"] is True
        assert judged["templates"] is None, "the runner renders none"
        (there,) = (home / "edgeship/.bundles/tiny-int4").iterdir()
        assert not (there / "wheels").exists(), "they are for a Python, and none is used"
        assert os.access(there / "runner/edgeship-runner", os.X_OK)
        assert not (home / "edgeship/.lock").is_symlink()

    def test_again_only_what_changed(self, adb: Server, home: Path, make: Callable[..., Bundle]) -> None:
        made = make()
        self.course(adb, made).run()
        again = self.course(adb, made).run()
        assert again is not None
        assert next(s.said for s in again.steps if s.name == "push").startswith("0 files, 0 B sent")
        write_runner(made.path / "runner/edgeship-runner", bench=BENCH | {"decode_tokens_per_s": 13.0})
        _reseal(made.path, "runner/edgeship-runner")
        other = self.course(adb, made, prune=True).run()
        assert other is not None
        said = next(s.said for s in other.steps if s.name == "push")
        assert "2 taken from an earlier version" in said, "weights and tokenizer are there"
        assert len(list((home / "edgeship/.bundles/tiny-int4").iterdir())) == 1, "the older one is pruned"

    def test_refused_by_verify(self, adb: Server, make: Callable[..., Bundle]) -> None:
        wrong = VERIFY | {"verdict": "fail", "tokens": {"cases": 3, "equal": 2}, "failures": ["tokens: x: differ"]}
        report = self.course(adb, make(verify=wrong, code=14)).run()
        assert report is not None
        assert report.verdict == "fail"
        assert report.samples == (), "what did not verify is not measured"

    def test_unfit(self, adb: Server, make: Callable[..., Bundle]) -> None:
        finding = {"level": "error", "what": "needs 9 GB of memory", "hint": "use a smaller model"}
        course = self.course(adb, make(doctor=DOCTOR | {"findings": [finding]}, unfit=16))
        with pytest.raises(HostError, match="step doctor: needs 9 GB") as caught:
            course.run()
        assert caught.value.hint == "use a smaller model"

    def test_a_place_without_programs(self, adb: Server, make: Callable[..., Bundle]) -> None:
        made = make()
        (made.path / "runner/edgeship-runner").write_text("#!/nothing\n")
        _reseal(made.path, "runner/edgeship-runner")
        with pytest.raises(HostError, match="step prepare: the runner does not start there") as caught:
            self.course(adb, made).run()
        assert "noexec" in caught.value.hint

    def test_a_board_that_is_no_phone(self, home: Path, make: Callable[..., Bundle]) -> None:
        with server(home, PATH="/usr/bin:/bin") as adb:
            made = make()
            course = self.course(adb, made)
            if os.uname().machine == "aarch64":
                pytest.skip("this machine is of the phone's architecture")
            with pytest.raises(HostError, match="expected a board of aarch64"):
                course.run()

    def test_command(
        self,
        adb: Server,
        make: Callable[..., Bundle],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        made = make()
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb.port))
        monkeypatch.chdir(tmp_path)
        asked = ["validate", str(made.path), "--device", "android-flagship", "--transport", "adb"]
        assert cli.run([*asked, "--host", SERIAL, "--repeats", "1", "--json"]) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert (result["host"], result["report"]["verdict"]) == (f"adb:{SERIAL}", "pass")
        assert f"host:transport:{SERIAL}" in adb.requests
        assert cli.run([*asked, "--dry-run"]) == 0
        assert "edgeship-runner verify" in capsys.readouterr().out

    def test_the_runtime_in_termux_instead(self, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
        asked = ["validate", str(artifact), "--device", "android-flagship", "--transport", "adb", "--installed"]
        assert cli.run([*asked, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "python3 -I -m edgeship_runtime verify" in said
        assert "edgeship-runner" not in said.replace("*edgeship-runner*", "")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--transport", "usb"], "expected one of local, ssh, adb"),
            (["--transport", "local", "--host", "pi"], "has no --host"),
            (["--host", "adb:x", "--installed", "--device", "raspberry-pi-5-8gb"], "--installed is for Android"),
        ],
    )
    def test_refused_options(
        self, artifact: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        device = [] if "--device" in options else ["--device", "android-flagship"]
        assert cli.run(["validate", str(artifact), *device, *options]) == UsageError.exit_code
        assert said in capsys.readouterr().err


def _reseal(bundle: Path, name: str) -> None:
    """Let bundle.json say what a file is now, under another digest."""
    from edgeship_runtime.files import describe_file

    body = json.loads((bundle / "bundle.json").read_text())
    entry = describe_file(bundle / name)
    body["files"][name] = {"size": entry.size, "sha256": entry.sha256}
    body["digest"] = entry.sha256
    (bundle / "bundle.json").write_text(json.dumps(body))


class TestInstall:
    """install.sh, in a stand-in of Termux: its PREFIX, its Python, and a pip that takes no wheels for glibc."""

    def run(self, made: Bundle, home: Path, tools: str, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": tools, "HOME": str(home), **more}
        command = ["sh", str(made.path / "install.sh"), *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    @pytest.fixture
    def termux(self, tmp_path: Path, tools: str) -> dict[str, str]:
        """Termux's folders, and a Python whose packages are numpy and PEP 600's word that nothing of glibc fits."""
        usr, packages = tmp_path / "com.termux/files/usr", tmp_path / "packages"
        (usr / "bin").mkdir(parents=True)
        (packages / "numpy").mkdir(parents=True)
        (packages / "numpy/__init__.py").touch()
        (packages / "_manylinux.py").write_text("def manylinux_compatible(*_): return False\n")
        (usr / "bin/python3").write_text(
            f"""#!/bin/sh
for last; do :; done
case "$*" in *"-m venv"*)
  {sys.executable} "$@" && echo {packages} > "$last/lib/python{PYTHON}/site-packages/termux.pth"; exit ;;
esac
shift
PYTHONPATH={packages} exec {sys.executable} "$@"
"""
        )
        (usr / "bin/python3").chmod(0o755)
        return {"PREFIX": str(usr), "PATH": f"{usr}/bin:{tools}", "TERMUX_VERSION": "0.118"}

    def test_in_termux(self, make: Callable[..., Bundle], home: Path, tools: str, termux: dict[str, str]) -> None:
        made = make()
        done = self.run(made, home, tools, **termux)
        assert done.returncode == 0, done.stderr
        current = home / "edgeship/tiny-int4/current"
        assert (current / "venv/bin/python").exists()
        assert (current / ".edgeship-installed").read_text().strip() == made.digest[:12]
        assert "no engine yet" in done.stdout, "it says what is missing"
        assert "pkg install clang" in done.stdout
        again = self.run(made, home, tools, **termux)
        assert again.returncode == 0, again.stderr

    def test_wheels_for_glibc_do_not_load_there(
        self, make: Callable[..., Bundle], home: Path, tools: str, termux: dict[str, str]
    ) -> None:
        done = self.run(make(extra="cp311-cp311-manylinux_2_28_aarch64"), home, tools, **termux)
        assert done.returncode == 0, "the runner is there all the same"
        assert "edgeship-runtime was not added: its installation failed" in done.stdout
        assert "markupsafe" in done.stderr
        assert not (home / "edgeship/tiny-int4/current/venv").exists()

    def test_without_python(self, make: Callable[..., Bundle], home: Path, tools: str) -> None:
        # A PATH of a few tools, none of them Python.
        for name in ("sh", "dirname", "cat", "rm", "rmdir", "mkdir", "cp", "chmod", "mv", "ln", "sync", "sha256sum"):
            Path(tools.partition(":")[0], name).symlink_to(str(shutil.which(name)))
        done = self.run(make(), home, tools.partition(":")[0])
        assert done.returncode == 0, done.stderr
        assert "pkg install python python-numpy" in done.stdout
        assert (home / "edgeship/tiny-int4/current/runner/edgeship-runner").exists()

    @pytest.mark.parametrize(("name", "where"), [("runner/edgeship-runner", "runner"), ("wheels/PIP", "pip")])
    def test_damaged(self, make: Callable[..., Bundle], home: Path, tools: str, name: str, where: str) -> None:
        made = make()
        path = next((made.path / "wheels").glob("pip-*")) if "PIP" in name else made.path / name
        with path.open("ab") as file:
            file.write(b"#")
        done = self.run(made, home, tools, "--no-python")
        assert done.returncode == 8
        assert where in done.stderr
        assert not (home / "edgeship").exists()

    def test_what_does_not_verify_is_not_installed(self, make: Callable[..., Bundle], home: Path, tools: str) -> None:
        done = self.run(make(code=14), home, tools, "--no-python")
        assert done.returncode == 14
        assert "Nothing was installed" in done.stderr
        assert not (home / "edgeship/tiny-int4").exists()

    def test_elsewhere_and_away(self, make: Callable[..., Bundle], home: Path, tools: str, tmp_path: Path) -> None:
        made = make()
        place = tmp_path / "a place/v1"
        assert self.run(made, home, tools, "--no-python", "--prefix", str(place)).returncode == 0
        assert (tmp_path / "a place/current").resolve() == place
        gone = self.run(made, home, tools, "--uninstall", "--prefix", str(place))
        assert gone.returncode == 0
        assert not (tmp_path / "a place").exists()

    def test_other_machines(self, make: Callable[..., Bundle], home: Path, tools: str) -> None:
        uname = Path(tools.partition(":")[0], "uname")
        uname.write_text('#!/bin/sh\n[ "$1" = -m ] && echo x86_64 || echo Linux\n')
        done = self.run(make(), home, tools)
        assert done.returncode == 20
        assert "this is Linux on x86_64" in done.stderr

    def test_a_bundle_for_boards_says_what_to_do(self, home: Path, tools: str, tmp_path: Path) -> None:
        from bundles import write_bundle

        bundle = write_bundle(tmp_path / "board", os="linux", arch="aarch64")
        environment = {"PATH": tools, "HOME": str(home), "TERMUX_VERSION": "0.118"}
        done = subprocess.run(["sh", str(bundle / "install.sh")], env=environment, capture_output=True, text=True)
        assert done.returncode == 20
        assert "this is Android" in done.stderr
        assert "--device android-flagship" in done.stderr

    def test_shellcheck(self, make: Callable[..., Bundle]) -> None:
        if not shutil.which("shellcheck"):
            pytest.skip("shellcheck is not installed")
        command = ["shellcheck", "--shell=sh", str(make().path / "install.sh")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_runner_is_found_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert android_runner.find_runner(tmp_path) is None
    folder = android_runner._folder(tmp_path)
    folder.mkdir()
    (folder / android_runner.LICENSES).touch()
    found = android_runner.find_runner(tmp_path)
    assert found is not None
    assert set(found.files) == {*android_runner.VARIANTS, android_runner.LICENSES}
    monkeypatch.setattr(android_runner, "ZIG", "0.0.0")
    assert android_runner.find_runner(tmp_path) is None, "another compiler makes another runner"


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="building the runner needs cmake"):
        android_runner.make_runner(cache=tmp_path / "cache", progress=Quiet())


def test_devices_that_are_phones() -> None:
    phones = [name for name in catalog.device_names() if catalog.find_device(name).os == "android"]
    assert phones == ["android-flagship", "android-mid-range"]
    for name in phones:
        assert catalog.find_device(name).engines == ("llamacpp",)
        assert wheels.platform_tags(catalog.find_device(name)) == ()


def test_unicode_s_tables() -> None:
    """Sorted as they are searched, and without the pairs that Unicode excludes from composition."""
    arrays = re.split(r"static const \w+ (\w+)\[\] = ", nfc_tables())
    rows = {
        name: [tuple(map(int, row.split(","))) for row in re.findall(r"\{([\d, ]+)\}", text)]
        for name, text in zip(arrays[1::2], arrays[2::2], strict=True)
    }
    assert rows.keys() == {"CLASSES", "PARTS", "PAIRS"}
    for name, found in rows.items():
        assert found == sorted(set(found)), name
    assert (0x65, 0x301, 0xE9) in rows["PAIRS"]
    assert (0x958, 0x915, 0x93C) in rows["PARTS"]
    assert not [row for row in rows["PAIRS"] if row[2] == 0x958], "it stays apart"
    assert (0x212B, 0xC5, 0) in rows["PARTS"], "a character that is another's double"
