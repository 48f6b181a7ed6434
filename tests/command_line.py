"""Running `edgeship-runtime` in tests: what a command left behind, and commands as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeship_runtime.engines.llamacpp import LlamaEngine
from edgeship_runtime.engines.ort import OrtEngine

ROOT = Path(__file__).resolve().parents[1]


class Ended:
    """What a command left: exit code, standard output and standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        return json.loads(self.out)


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime"), "PYTHONUNBUFFERED": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    return subprocess.Popen([sys.executable, "-m", "edgeship_runtime", *arguments], **(streams | options))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, runs: int) -> None:
    """Press Ctrl-C, as Python sees it, once the engine has run so many times."""
    left = [runs]
    for kind in (OrtEngine, LlamaEngine):

        def interrupted(self: Any, tokens: Any, evaluate: Callable[..., Any] = kind.evaluate) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return evaluate(self, tokens)

        monkeypatch.setattr(kind, "evaluate", interrupted)
