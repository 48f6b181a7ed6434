"""What a worker says where it fails, by running the real program around one that does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeship.exporters.environment import HERE

WORKERS = {
    "answers": 'def work(request, note):\n    print("noise")\n    note("busy")\n    return {"got": request}\n',
    "refuses": 'from run import RefusedError\ndef work(request, note):\n    raise RefusedError("no", "yes")\n',
    "breaks": 'def work(request, note):\n    raise ValueError("two\\nlines")\n',
    "starves": "def work(request, note):\n    raise MemoryError\n",
    "reads": 'import sys\ndef work(request, note):\n    return {"read": sys.stdin.read()}\n',
    "lacks": "import no_such_package\n",
}


def run(tmp_path: Path, name: str) -> tuple[int, list[dict[str, object]], str]:
    for file, text in WORKERS.items():
        (tmp_path / f"{file}.py").write_text(text)
    program = (HERE / "workers" / "run.py").read_text()
    (tmp_path / "run.py").write_text(program)  # workers lie beside it
    (tmp_path / "request.json").write_text('{"a": 1}')
    command = [sys.executable, "-I", str(tmp_path / "run.py"), name, str(tmp_path / "request.json")]
    held = os.pipe()
    ended = subprocess.run(command, stdin=held[0], capture_output=True, text=True, start_new_session=True)
    for end in held:
        os.close(end)
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


def test_notes_then_the_answer_and_noise_elsewhere(tmp_path: Path) -> None:
    code, told, errors = run(tmp_path, "answers")
    assert (code, told) == (0, [{"note": "busy"}, {"got": {"a": 1}}])
    assert "noise" in errors


@pytest.mark.parametrize(
    ("name", "error", "hint"),
    [
        ("refuses", "no", "yes"),
        ("breaks", "it failed: ValueError: two lines", "EDGESHIP_DEBUG"),
        ("lacks", "it failed: ModuleNotFoundError", "EDGESHIP_DEBUG"),
    ],
)
def test_a_failure_is_a_line(tmp_path: Path, name: str, error: str, hint: str) -> None:
    _, (told,), _ = run(tmp_path, name)
    assert str(told["error"]).startswith(error)
    assert str(told["hint"]).startswith(hint)


def test_where_memory_ends_there_is_no_answer(tmp_path: Path) -> None:
    code, told, errors = run(tmp_path, "starves")
    assert (code, told) == (1, [])
    assert "MemoryError" in errors


def test_libraries_read_nothing_from_the_pipe_that_ends_it(tmp_path: Path) -> None:
    assert run(tmp_path, "reads")[:2] == (0, [{"read": ""}])
