"""The two commands as a user runs them, and the rules every failure keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
SCREEN = 40  # lines an error may take


def run(*command: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `edgeship ...` or `edgeship-runtime ...` from the environment that runs the tests."""
    name, *rest = map(str, command)
    environment = {k: v for k, v in os.environ.items() if k != "EDGESHIP_DEBUG"} | {
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
    return subprocess.run(
        [str(BIN / name), *rest], input=stdin, capture_output=True, text=True, env=environment, timeout=120, check=False
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    """One screen that names the matter and hints at what to do, the exit code of its kind, and no traceback."""
    told = done.stderr
    assert "Traceback" not in told + done.stdout, told
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}\n{told}\n{done.stdout}"
    assert told.startswith("error:") or "\nerror:" in told, told  # progress may come first
    assert len(told.splitlines()) <= SCREEN, told
    assert "hint:" in told, told
    for text in says:
        assert text in told, f"expected {text!r} in:\n{told}"


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The one object that `--json` ends with."""
    assert done.returncode == 0, done.stderr
    value: dict[str, object] = json.loads(done.stdout.splitlines()[-1] if done.stdout.count("\n{") else done.stdout)
    return value
