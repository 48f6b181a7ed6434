"""The commands `edgeship bundle` and `edgeship validate` as tests of boards give them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from device.board import USER, Board
from device.rootfs import CACHE
from edgeship import catalog
from edgeship.ship.llamacpp_wheel import find_wheel

EDGESHIP = Path(sys.executable).with_name("edgeship")
FORMATS = {"ort": "onnx", "llamacpp": "gguf"}
# Short on purpose: how fast an emulated board is says nothing.
BENCH = ("--prompt-tokens", "16", "--decode-tokens", "4", "--repeats", "1", "--threads", "1")


def answer(*arguments: str | Path) -> dict[str, Any]:
    """What `edgeship ... --json` says."""
    done = subprocess.run([EDGESHIP, *arguments, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def need_engine(engine: str, device: str) -> None:
    """Skip where there is no wheel of the engine for the device: the registry has none of llama.cpp."""
    if engine == "llamacpp" and find_wheel(catalog.find_device(device)) is None:
        pytest.skip(f"llama.cpp's wheel is not built: edgeship wheel-llamacpp --device {device}")


def make_bundle(tiny: Path, device: str, engine: str, out: Path) -> Path:
    """A bundle of the tiny model; downloaded wheels are kept."""
    need_engine(engine, device)
    kept = CACHE / "bundle-wheels"
    kept.mkdir(parents=True, exist_ok=True)
    where = ("--out", out, "--wheels", kept, "--archive", "none")
    made = answer("bundle", tiny / FORMATS[engine], "--device", device, "--engine", engine, *where)
    return Path(str(made["bundle"]))


def validation(bundle: Path, device: str, board: Board, reports: Path) -> list[str | Path]:
    """The arguments that validate a bundle on a board."""
    options = {"IdentityFile": board.key, "IdentitiesOnly": "yes", "UserKnownHostsFile": board.known_hosts}
    given = [word for name, value in options.items() for word in ("--ssh-option", f"{name}={value}")]
    host = f"{USER}@{board.host}:{board.port}"
    return ["validate", bundle, "--device", device, "--host", host, "--reports", reports, *BENCH, *given]
