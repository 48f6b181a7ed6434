"""Emulated boards for the tests of this directory, and what is put on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from device.board import Board, running
from device.machine import booted
from device.machine import missing as missing_for_machine
from device.models import MODELS
from device.rootfs import missing


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints a line at once: minutes without a word look like a hang, and what was measured is worth reading."""
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def line(text: str) -> None:
        if reporter and capture:
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(f"  {text}")

    return line


@pytest.fixture(scope="session", params=MODELS)
def board(request: pytest.FixtureRequest, say: Callable[[str], None]) -> Iterator[Board]:
    """A running board, of each model in turn."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with running(MODELS[request.param], say) as started:
        yield started


@pytest.fixture(scope="session")
def machine(say: Callable[[str], None]) -> Iterator[Board]:
    """A whole machine with 16 KiB pages and 2 GB, whose clock never heard of the time."""
    reason = missing_for_machine()
    if reason:
        pytest.skip(reason)
    with booted(say, clock=datetime(2016, 5, 1, 12)) as started:
        yield started


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's artifact: directories onnx and gguf."""
    out = tmp_path_factory.mktemp("artifacts")
    command, tiny = Path(sys.executable).with_name("edgeship"), ["tiny-int4", "--algorithm", "rtn"]
    done = subprocess.run([command, "export", *tiny, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / "tiny-int4"
