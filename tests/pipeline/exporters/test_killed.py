"""An export through another exporter that is really killed: its worker ends, and nothing is left that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from checkpoints import write_safetensors
from edgeship import exporters
from edgeship.progress import Silent
from edgeship.recipe_file import read_recipe
from encoders import SIZE, WORDS, modules, write_files, write_words
from exporter_standin import stand_in
from tolerances import CUT_SHORT_SECONDS


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """`edgeship export`, its worker busy; `worker` and `child` of it are in the file `pids`."""
    stand_in(tmp_path / "environments", "optimum", monkeypatch, keep=str(tmp_path / "pids"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    write_checkpoint(tmp_path / "checkpoint")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("source: {repo: me/mine}\nexporter: optimum\n")
    command = [sys.executable, "-m", "edgeship.cli", "export", str(recipe)]
    places = ["--checkpoint", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, *places], preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().count(" ") == 1)
    yield process
    process.kill()
    process.wait()


def write_checkpoint(directory: Path) -> None:
    directory.mkdir()
    write_words(directory)
    write_safetensors(directory / "model.safetensors", {"embeddings.position_ids": ("I64", np.arange(4))})
    sizes = {"vocab_size": len(WORDS), "hidden_size": SIZE, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 64, **sizes}
    write_files(directory, {"config.json": config, "tokenizer_config.json": {"model_max_length": 48}, **modules()})


def until(holds: object) -> None:
    assert callable(holds)
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < CUT_SHORT_SECONDS
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_worker_ends_with_it(
    running: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(lives(pid) for pid in pids)
    os.kill(running.pid, number)
    code = running.wait(CUT_SHORT_SECONDS)
    until(lambda: not any(lives(pid) for pid in pids))
    assert not list((tmp_path / "scratch").iterdir())
    if number != signal.SIGKILL:
        assert code == 128 + number
        assert not (tmp_path / "out").exists()
        return
    assert code == -number
    left = {path.name for path in (tmp_path / "out" / "mine").iterdir()}
    assert left == {".onnx.partial", ".onnx.journal", ".onnx.scratch"}
    stand_in(tmp_path / "environments", "optimum", monkeypatch)
    recipe = read_recipe(tmp_path / "mine.yaml")
    exporters.export(recipe, checkpoint=tmp_path / "checkpoint", out=tmp_path / "out", force=False, progress=Silent())
    assert {path.name for path in (tmp_path / "out" / "mine").iterdir()} == {"onnx"}
