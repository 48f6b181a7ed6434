"""The commands `edgeship bundle` and `edgeship validate` as tests of boards give them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from device.board import USER, Board
from device.rootfs import CACHE, Say
from edgeship import catalog
from edgeship.ship.llamacpp_wheel import find_wheel

EDGESHIP = Path(sys.executable).with_name("edgeship")
FORMATS = {"ort": "onnx", "llamacpp": "gguf"}
NAME = "tiny-int4"
# Short on purpose: how fast an emulated board is says nothing.
BENCH = ("--prompt-tokens", "16", "--decode-tokens", "4", "--repeats", "1", "--threads", "1")

OnLine = Callable[[str], None]


def answer(*arguments: str | Path) -> dict[str, Any]:
    """What `edgeship ... --json` says."""
    done = subprocess.run([EDGESHIP, *arguments, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def need_engine(engine: str, device: str, say: Say, *, cpu: str = "all") -> None:
    """Build the engine's wheel for the device where the registry has none: once, some ten CPU minutes.

    Skips with the reason where it cannot be built.
    """
    found = find_wheel(catalog.find_device(device)) if engine == "llamacpp" else None
    if engine != "llamacpp" or (found and (cpu == "all" or "-all-" not in found.parent.name)):
        return
    say(f"llama.cpp's wheel for {device}, {cpu}: ten CPU minutes, once")
    command = [EDGESHIP, "wheel-llamacpp", "--device", device, "--cpu", cpu]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"llama.cpp's wheel cannot be built: {' '.join(done.stderr.split())}")


def make_bundle(tiny: Path, device: str, engine: str, out: Path, say: Say) -> Path:
    """A bundle of the tiny model; downloaded wheels are kept."""
    need_engine(engine, device, say)
    kept = CACHE / "bundle-wheels"
    kept.mkdir(parents=True, exist_ok=True)
    where = ("--out", out, "--wheels", kept, "--archive", "none")
    made = answer("bundle", tiny / FORMATS[engine], "--device", device, "--engine", engine, *where)
    return Path(str(made["bundle"]))


def variant(folder: Path, device: str, name: str, **fields: Any) -> str:
    """The path of a profile that is another one but for its name and `fields`: its bundles are other versions."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"extends": device, **fields}))  # JSON is YAML
    return str(path)


def validation(bundle: Path, device: str, board: Board, reports: Path) -> list[str | Path]:
    """The arguments that validate a bundle on a board."""
    options = {"IdentityFile": board.key, "IdentitiesOnly": "yes", "UserKnownHostsFile": board.known_hosts}
    given = [word for name, value in options.items() for word in ("--ssh-option", f"{name}={value}")]
    return ["validate", bundle, "--device", device, "--host", host_of(board), "--reports", reports, *BENCH, *given]


def host_of(board: Board) -> str:
    """The board as `--host` names it."""
    return f"{USER}@{board.host}:{board.port}"


@dataclass(frozen=True)
class Told:
    """How a validation ended: exit code and all it said."""

    code: int
    text: str
    reports: Path

    @property
    def report(self) -> dict[str, Any]:
        """The one report that it wrote."""
        (path,) = self.reports.rglob("*.json")
        value: dict[str, Any] = json.loads(path.read_text())
        return value


def validate(bundle: Path, device: str, board: Board, reports: Path, on_line: OnLine = lambda _: None) -> Told:
    """Validate, `on_line` called with every line as it comes."""
    command = [EDGESHIP, *validation(bundle, device, board, reports)]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout
        for line in running.stdout:
            lines.append(line)
            on_line(line.rstrip("\n"))
    return Told(running.returncode, "".join(lines), reports)


def ended(line: str) -> str | None:
    """The step whose end a line says, if it does."""
    _, _, rest = line.partition(": ")
    step, colon, _ = rest.partition(": ")
    return step if colon and line.endswith(" s)") else None


def standing(board: Board) -> tuple[str, ...]:
    """What is installed: the version in use, its digest, and every name beside it."""
    done = board.run(f"cd edgeship/{NAME} && readlink current && cat current/.edgeship-installed && ls -A")
    return tuple(done.stdout.split())
