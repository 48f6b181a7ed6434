"""The app's own tests: parsers, sampling, the verdict; token ids and templates on the tiny model's acceptance files."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeship.ship.web_app import App
from qwen_files import TOKENIZER

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]

SOURCES = Path(__file__).resolve().parents[2] / "runtime" / "web"
INSTALL = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]


def test_units(app: App, artifact: Path, tmp_path: Path) -> None:
    """`app` is asked for, so that this is skipped where npm cannot build it."""
    folder = tmp_path / "web"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    artifacts = ":".join(str(artifact / form) for form in ("onnx", "gguf"))
    given = {**os.environ, "EDGESHIP_ARTIFACTS": artifacts, "EDGESHIP_VECTORS": str(TOKENIZER)}
    for command in (INSTALL, ["npx", "--no-install", "vitest", "run"]):
        done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-3000:]}{done.stderr[-2000:]}"
