"""A bundle of the toy artifact whose installation takes a second: its Python is the one that runs the tests."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from acceptance_files import write_acceptance
from edgeship.device import Device
from edgeship_runtime.manifest import collect_files
from toy_artifact import write_toy

needs_linux = pytest.mark.skipif(platform.system() != "Linux", reason="the toy bundle is for Linux")

ROOT = Path(__file__).resolve().parents[1]
ARCH = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

STEPS = ["probe", "space", "push", "install", "doctor", "verify", "bench", "fetch"]
QUICK: dict[str, Any] = {"repeats": 1, "prompt_tokens": 8, "decode_tokens": 4, "threads": 1}

# The interface of the real install.sh. `venv/bin/python` drops -I, so that the packages of the tests are found.
INSTALL = r"""
set -eu
[ "$1" = --prefix ]
prefix=$2
base=$(dirname -- "$prefix")
if [ "${3-}" = --uninstall ]; then rm -rf -- "$prefix" "$base/current"; exit 0; fi
here=$(cd -- "$(dirname -- "$0")" && pwd)
if [ -f "$prefix/.edgeship-installed" ]; then ln -sfn -- "${prefix##*/}" "$base/current"; exit 0; fi
trap '[ -z "${made-}" ] || rm -rf -- "$prefix"' EXIT
trap 'exit 143' TERM
rm -rf -- "$prefix"
made=yes
mkdir -p -- "$prefix/venv/bin"
cp -R -- "$here/artifact" "$prefix/artifact"
cat > "$prefix/venv/bin/python" <<END
#!/bin/sh
shift
told=\$(dirname -- "\$0")/../doctor.json
[ "\${3-}" = doctor ] && [ -f "\$told" ] && exec cat -- "\$told"
PYTHONPATH=@RUNTIME@ exec @PYTHON@ "\$@"
END
chmod +x "$prefix/venv/bin/python"
if [ -f "$here/wheels/doctor.json" ]; then cp -- "$here/wheels/doctor.json" "$prefix/venv"
else "$prefix/venv/bin/python" -I -m edgeship_runtime verify "$prefix/artifact" || exit 14; fi
printf '%s\n' @DIGEST@ > "$prefix/.edgeship-installed"
made=
ln -sfn -- "${prefix##*/}" "$base/current"
"""


def device(**fields: Any) -> Device:
    """A profile that this machine fits, but for `fields`."""
    values: dict[str, Any] = {
        "name": "test-board",
        "os": "linux",
        "arch": ARCH,
        "python": [PYTHON],
        "cores": [{"kind": "core", "count": 1, "mhz": 1000}],
        "isa": [],
        "page_size": 4096,
        "ram_mb": 8000.0,
        "os_mb": 500.0,
        "bandwidth_gbps": 10.0,
        "storage_mbps": 100.0,
        "engines": ["ort"],
        "engines_reason": "for tests",
        "encodings": ["int4"],
        "wheel_tags": [],
        "budgets": {"ram_share": 0.5, "min_decode": 0.01},
        "sources": {},
    }
    return Device.model_validate(values | fields)


@functools.cache
def doctor() -> str:
    """What the doctor says of this machine."""
    asked = [sys.executable, "-m", "edgeship_runtime", "doctor", "--json"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout


def write_bundle(
    folder: Path,
    *,
    digest: str = "0123456789ab",
    install: str = INSTALL,
    weights: bytes = b"",
    whole: bool = False,
    **members: Any,
) -> Path:
    """Write the bundle; `weights`: a large file beside the wheels, `members` laid over bundle.json.

    Unless it is `whole` the installation does not verify, and the doctor is asked once for all tests.
    """
    write_acceptance(write_toy(folder / "artifact"))
    (folder / "wheels").mkdir()
    with zipfile.ZipFile(folder / "wheels/edgeship_runtime-0.1.0-py3-none-any.whl", "w") as wheel:
        for path in sorted((ROOT / "runtime/edgeship_runtime").rglob("*.py")) if whole else ():
            wheel.write(path, path.relative_to(ROOT / "runtime"))
        if not whole:
            wheel.writestr("edgeship_runtime/__init__.py", "")
            wheel.writestr("edgeship_runtime/__main__.py", f"print({doctor()!r})")
    if not whole:
        (folder / "wheels/doctor.json").write_text(doctor())
    if weights:
        (folder / "wheels/weights.bin").write_bytes(weights)
    values = {"RUNTIME": str(ROOT / "runtime"), "PYTHON": sys.executable, "DIGEST": digest}
    for key, value in values.items():
        install = install.replace(f"@{key}@", shlex.quote(value))
    (folder / "install.sh").write_text(install)
    body = {
        "schema": 1,
        "name": "toy",
        "device": "test-board",
        "engine": "ort",
        "digest": digest + hashlib.sha256(digest.encode()).hexdigest()[12:],
        "target": {"os": "linux", "arch": ARCH, "python": [PYTHON], "glibc": ""},
        "needs_mb": 1,
        "files": {name: {"size": e.size, "sha256": e.sha256} for name, e in collect_files(folder).items()},
    }
    (folder / "bundle.json").write_text(json.dumps(body | members))
    return folder
