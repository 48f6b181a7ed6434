"""The whole path to a phone: Android's shell and tools in a root of their own behind adb, and the runner under qemu."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from adb_standin import SERIAL, Device, server
from bundles import registry_problem
from edgeship import cli
from edgeship.ship import android_runner
from phones import CPUS, TMP, make_phone, need_qemu, programs

pytestmark = pytest.mark.device

ASK = ["--repeats", "1", "--prompt-tokens", "8", "--decode-tokens", "4", "--json"]


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shell(tmp_path: Path, cpu: str, built: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A shell on the phone; bundles made meanwhile hold a runner that works there."""
    found = SimpleNamespace(files=programs(tmp_path / "programs", built, cpu))
    monkeypatch.setattr(android_runner, "find_runner", lambda cache=None: found)
    monkeypatch.chdir(tmp_path)
    return make_phone(tmp_path / "phone", cpu)


@pytest.fixture(params=["standin", "real"])
def host(
    request: pytest.FixtureRequest, tmp_path: Path, shell: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The phone behind a stand-in of adb's server, and behind adb's own."""
    if request.param == "standin":
        with server(tmp_path, shell) as adb:
            monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(adb.port))
            yield SERIAL
        return
    program = shutil.which("adb")
    if program is None:
        pytest.skip("adb is not here (Debian: apt install adb)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
    environment = os.environ | {"HOME": str(tmp_path), "ADB_MDNS": "0"}
    device = Device(tmp_path, shell)
    try:
        for words in (["start-server"], ["connect", device.serial], ["-s", device.serial, "wait-for-device"]):
            subprocess.run([program, *words], env=environment, capture_output=True, timeout=30, check=True)
        yield device.serial
    finally:
        subprocess.run([program, "kill-server"], env=environment, capture_output=True, timeout=30, check=False)
        device.close()


def test_validate(artifact: Path, host: str, cpu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["validate", str(artifact), "--device", "android-flagship", "--transport", "adb", "--host", host, *ASK]
    capsys.readouterr()
    assert cli.run(asked) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    report = result["report"]
    assert report["verdict"] == "pass", report["checks"]
    assert report["board"]["model"] == "Stand-in 9"
    assert cpu in report["board"]["emulated"]
    assert report["agreement"]["equal"] == report["agreement"]["positions"]
    kernels = next(check["found"] for check in report["checks"] if check["name"] == "kernels")
    assert kernels == ("neon" if cpu == "cortex-a72" else "dotprod")
    there = tmp_path / "phone" / TMP / "edgeship/.bundles/tiny-int4"
    assert len(list(there.glob("*/runner/edgeship-runner"))) == 1
    bundle = "dist/bundles/tiny-int4-android-flagship-llamacpp"
    assert cli.run([bundle if word == str(artifact) else word for word in asked]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert next(s["said"] for s in result["report"]["steps"] if s["name"] == "push").startswith("0 files, 0 B sent")


def test_install_without_termux(artifact: Path, shell: list[str], tmp_path: Path) -> None:
    assert cli.run(["bundle", str(artifact), "--device", "android-flagship", "--archive", "none", "--out", "out"]) == 0
    (bundle,) = (tmp_path / "out").glob("*/")
    shutil.copytree(bundle, tmp_path / "phone" / TMP / "bundle")

    def ask(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*shell, command], capture_output=True, text=True, timeout=120, check=False)

    done = ask(f"sh /{TMP}/bundle/install.sh")
    assert done.returncode == 0, done.stderr
    assert "verdict      pass" in done.stdout
    assert "pkg install python python-numpy" in done.stdout
    current = f"/{TMP}/edgeship/tiny-int4/current"
    said = ask(f'{current}/runner/edgeship-runner generate {current}/artifact --text "The sky is" --decode-tokens 4')
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip()
    assert ask(f"sh /{TMP}/bundle/install.sh --uninstall").returncode == 0
    assert ask(f"ls {current}").returncode != 0


def test_termux_with_the_real_wheels(
    artifact: Path, built: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Termux as far as it can be had here: its paths, numpy and llama.cpp as its own packages, no wheel for glibc."""
    if problem := registry_problem():
        pytest.skip(problem)
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    import numpy

    tools, usr, packages, home = (tmp_path / name for name in ("tools", "com.termux/files/usr", "packages", "home"))
    for folder in (tools, usr / "bin", packages, home):
        folder.mkdir(parents=True)
    for module in (numpy, llama_cpp):
        source = Path(str(module.__file__)).parent
        (packages / source.name).symlink_to(source)
        for beside in source.parent.glob(f"{source.name}*"):
            if beside != source and not (packages / beside.name).exists():
                (packages / beside.name).symlink_to(beside)
    (packages / "_manylinux.py").write_text("def manylinux_compatible(*_): return False\n")
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    base = sys.base_prefix + "/bin/python3"
    make = f'{base} "$@" && echo {packages} > "$last/lib/{python}/site-packages/termux.pth"; exit'
    texts = {
        usr / "bin/python3": f'for last; do :; done\ncase "$*" in *"-m venv"*) {make} ;; esac\nshift\n'
        f'PYTHONPATH={packages} exec {base} "$@"\n',
        tools / "uname": "case $1 in -m) echo aarch64 ;; -o) echo Android ;; *) echo Linux ;; esac\n",
        tmp_path / "edgeship-runner": f'exec {need_qemu()} -cpu cortex-a72 "$0.arm" "$@"\n',
    }
    for path, text in texts.items():
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
    files = built | {"edgeship-runner": tmp_path / "edgeship-runner", "edgeship-runner.arm": built["edgeship-runner"]}
    monkeypatch.setattr(android_runner, "find_runner", lambda cache=None: SimpleNamespace(files=files))
    out = tmp_path / "out"
    assert (
        cli.run(["bundle", str(artifact), "--device", "android-flagship", "--archive", "none", "--out", str(out)]) == 0
    )
    environment = {"PATH": f"{usr}/bin:{tools}:/usr/bin:/bin", "HOME": str(home), "PREFIX": str(usr)}
    (bundle,) = out.glob("*/")
    command = ["sh", str(bundle / "install.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert 'edgeship-runtime" run' in done.stdout, done.stdout
    current = home / "edgeship/tiny-int4/current"
    asked = [
        str(current / "venv/bin/edgeship-runtime"),
        "verify",
        str(current / "artifact"),
        "--json",
        "--threads",
        "1",
    ]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert json.loads(done.stdout)["verdict"] == "pass", done.stderr
    assert json.loads(done.stdout)["templates"]["equal"] == 23, "Jinja works without compiled code"
