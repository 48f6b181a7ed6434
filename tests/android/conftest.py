"""The real runner, built by `make runner-android`, and an artifact for it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeship.ship import android_runner
from exports import export_tiny
from phones import need_qemu


@dataclass(frozen=True)
class Done:
    """What a command of the runner left."""

    code: int
    body: dict[str, Any]
    stderr: str

    @property
    def error(self) -> dict[str, Any]:
        """The error it answered with; fails where it did not."""
        found: dict[str, Any] = self.body["error"]
        assert found["exit_code"] == self.code
        return found


Run = Callable[..., Done]


@pytest.fixture(scope="session")
def built() -> dict[str, Path]:
    """The files of the runner."""
    found = android_runner.find_runner()
    if found is None:
        pytest.skip("the runner is not built: make runner-android")
    return found.files


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in GGUF."""
    return export_tiny(tmp_path_factory.mktemp("artifacts"), "gguf") / "gguf"


@pytest.fixture(scope="session")
def run(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command of the runner; `cpu` as qemu names it, `program` one of the builds. Libraries are nowhere."""
    nowhere = tmp_path_factory.mktemp("nowhere")

    def ask(*words: object, cpu: str = "cortex-a72", program: str = "edgeship-runner") -> Done:
        command = [need_qemu(), "-cpu", cpu, "-L", str(nowhere), str(built[program]), *map(str, words), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        return Done(done.returncode, json.loads(done.stdout), done.stderr)

    return ask
