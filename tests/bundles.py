"""Small bundles for tests, whole but for the runtime in them, which only plays its part in an installation."""

from __future__ import annotations

import ensurepip
import json
import platform
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from edgeship.ship import installer, wheels
from edgeship.ship.wheel_files import write_wheel
from edgeship_runtime.manifest import collect_files

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
# Debian's and Fedora's Pythons keep the wheel in a directory of their own.
_WHEELS = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
PIP = next(Path(_WHEELS).glob("pip-*.whl"))


@cache
def registry_problem() -> str:
    """Why wheels cannot be fetched here; empty where they can."""
    arguments = ["download", "--no-deps", "--dest", tempfile.gettempdir(), "flatbuffers==0"]  # there is no such version
    said = wheels._pip(arguments).stderr
    known = "from versions: " in said and "from versions: none" not in said
    return "" if known else "the registry cannot be reached"


# Does what the artifact's file `verdict` says.
_VERIFY = """\
import os, pathlib, signal, socket, sys, time

if sys.argv[1:] == ["doctor"]:
    print("machine      a board")
    if DOCTOR:
        print("error: onnxruntime 1.0 crashes (SIGILL): nothing can run with it\\nwarning: hot")
    sys.exit(16 if DOCTOR else 0)
command, artifact = sys.argv[1:]
assert command == "verify"
says = (pathlib.Path(artifact) / "verdict").read_text().split()
if says[0] == "die":
    os.kill(os.getpid(), signal.SIGILL)
if says[0] == "wait":
    pathlib.Path(says[1]).touch()
    time.sleep(60)
if says[0] == "alone":
    try:
        socket.create_connection(("192.0.2.1", 9), 0.2)
    except OSError as error:
        says = ["0"] if error.errno == 101 else ["3"]  # ENETUNREACH
sys.exit(int(says[0]))
"""


def write_fake_wheel(folder: Path, name: str, files: dict[str, str], *, version: str = "1.0", tag: str = "") -> Path:
    """A wheel with the given modules."""
    tag = tag or "py3-none-any"
    info = f"{name}-{version}.dist-info"
    texts = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    path = folder / f"{name}-{version}-{tag}.whl"
    write_wheel(path, {key: value.encode() for key, value in texts.items()})
    return path


def write_bundle(folder: Path, *, verdict: str = "0", model: bool = True, ill: bool = False, **facts: Any) -> Path:
    """A bundle for this machine in `folder`; `facts` as in `installer.Facts`.

    Its runtime answers `verdict`, its doctor says no if `ill`.
    """
    (folder / "wheels").mkdir(parents=True)
    write_fake_wheel(
        folder / "wheels",
        "edgeship_runtime",
        {"edgeship_runtime/__init__.py": "", "edgeship_runtime/__main__.py": _VERIFY.replace("DOCTOR", repr(ill))},
    )
    shutil.copy(PIP, folder / "wheels")
    found = wheels.read_wheels(folder / "wheels")
    (folder / "requirements.txt").write_text(wheels.requirements(found))
    if model:
        (folder / "artifact").mkdir()
        (folder / "artifact/verdict").write_text(verdict)
    written = replace(_facts(model), **facts)
    # What is checked without a model is the engine's package, and there is none here.
    script = installer.install_script(written).replace("check='import jinja2", "check='pass # ")
    (folder / "install.sh").write_text(script)
    seal(folder)
    return folder


def _facts(model: bool) -> installer.Facts:
    return installer.Facts(
        name="toy",
        digest="0123456789ab",
        device="here",
        os="macos" if sys.platform == "darwin" else "linux",
        arch={"arm64": "aarch64"}.get(platform.machine(), platform.machine()),
        pythons=(PYTHON,),
        glibc="",
        engine="ort",
        needs_mb=1,
        pip=PIP.name,
        artifact=model,
    )


def seal(folder: Path) -> None:
    """Write bundle.json of what the folder holds."""
    files = {name: {"size": e.size, "sha256": e.sha256} for name, e in collect_files(folder, ["bundle.json"]).items()}
    (folder / "bundle.json").write_text(json.dumps({"files": files}))
