"""Wheels for an arm64 board, fetched and built on this machine."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

from device.rootfs import CACHE, BoardError

REPOSITORY = Path(__file__).parents[2]
CONSTRAINTS = REPOSITORY / "constraints.txt"
# What the ONNX engine imports; tokenizers and onnxruntime declare more than that.
ORT = ("onnxruntime", "numpy", "tokenizers", "jinja2", "markupsafe", "protobuf", "flatbuffers", "packaging")
# pip takes none of them to include another.
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def ort_wheels() -> list[Path]:
    """Pinned wheels of the ONNX engine's packages for Python 3.11 on arm64; downloaded once."""
    key = hashlib.sha256(repr((CONSTRAINTS.read_text(), ORT, PLATFORMS)).encode()).hexdigest()[:12]
    kept = CACHE / f"wheels-{key}"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix="wheels-", dir=CACHE))
        try:
            platforms = [word for tag in PLATFORMS for word in ("--platform", tag)]
            _pip(
                "download", "--no-deps", "--only-binary=:all:", "--python-version=3.11", *platforms,
                "--constraint", str(CONSTRAINTS), "--dest", str(folder / "whole"), *ORT,
            )  # fmt: skip
            (folder / "whole").rename(kept)
        finally:
            shutil.rmtree(folder)
    return sorted(kept.glob("*.whl"))


def runtime_wheel(folder: Path) -> Path:
    """The runtime's wheel of this working tree, built into `folder`."""
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(REPOSITORY / "runtime"))
    (wheel,) = folder.glob("edgeship_runtime-*.whl")
    return wheel


def _pip(command: str, *arguments: str) -> None:
    line = [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BoardError(f"pip {command} failed:\n{done.stderr.strip()}")
