"""A short run of `tests/bench/load.py`, which `make bench-serve` runs for five minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import ROOT
from toy_gguf import FORMS


@pytest.mark.parametrize("form", FORMS)
def test_every_stream_has_the_right_text_and_memory_stays(tiny: Path, form: str) -> None:
    command = [sys.executable, str(ROOT / "tests/bench/load.py"), str(tiny), "--format", form]
    options = ["--clients", "12", "--duration", "5", "--questions", "12", "--option=--threads=1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["streams"] >= 12
    assert report["beyond_the_queue"]["429"] > 0
