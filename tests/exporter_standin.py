"""Environments of exporters whose Python is a stand-in: it answers as a worker does, or fails as one can."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeship.exporters import packages
from edgeship.exporters.environment import MARKER, Environment

TESTS = Path(__file__).parent

PROGRAM = """\
#!{python}
import json, os, signal, sys
sys.path[:0] = {path}
from exporter_standin import play
play({how!r}, sys.argv[1:])
"""


def stand_in(root: Path, name: str, monkeypatch: pytest.MonkeyPatch, **how: Any) -> Environment:
    """An environment that is ready, and whose worker does what `how` says; its requests lie in `asked.json`."""
    environment = Environment(name, root / name)
    environment.python.parent.mkdir(parents=True, exist_ok=True)
    how["record"] = str(environment.directory / "asked.json")
    text = PROGRAM.format(python=sys.executable, path=[str(TESTS), *sys.path], how=how)
    environment.python.write_text(text, encoding="utf-8")
    environment.python.chmod(0o755)
    (environment.directory / MARKER).write_text(json.dumps({"packages": packages.digest(name)}))
    monkeypatch.setenv("EDGESHIP_EXPORTERS", str(root))
    return environment


def asked(environment: Environment) -> list[dict[str, Any]]:
    """The requests so far, each with its `module`."""
    return [json.loads(line) for line in (environment.directory / "asked.json").read_text().splitlines()]


def play(how: dict[str, Any], arguments: list[str]) -> None:
    """Be the worker."""
    _, program, module, path = arguments
    if "keep" in how:
        _stay(Path(how["keep"]), program, module)
    request = json.loads(Path(path).read_text())
    with Path(how["record"]).open("a") as file:
        file.write(json.dumps(request | {"module": module, "offline": os.environ["HF_HUB_OFFLINE"]}) + "\n")
    print("a library's own words", file=sys.stderr)
    print("no JSON")
    print(json.dumps({"note": "at work"}), flush=True)
    if "sleep" in how:
        time.sleep(how["sleep"])
    if "signal" in how:
        os.kill(os.getpid(), how["signal"])
    if "exit" in how:
        sys.exit(how["exit"])
    if "error" in how:
        print(json.dumps({"error": how["error"], "hint": "do otherwise"}))
    elif module == "encoder":
        print(json.dumps(_encoder(how, request)))
    elif module == "rewriter":
        print(json.dumps(_rewriter(how, request)))
    elif module == "workflow" and "out" in request:
        print(json.dumps(_workflow(how, Path(request["out"]))))
    else:
        print(json.dumps({"made_with": "a stand-in"}))


def _stay(pids: Path, program: str, module: str) -> None:
    """Be the real program, around work that writes its process and one it started into a file, and does not end."""

    def work(request: dict[str, Any], note: Callable[[str], None]) -> None:
        child = subprocess.Popen(["sleep", "60"])
        (Path(request.get("out", ".")) / "half").touch()
        note(f"at work in {os.getcwd()}")
        pids.write_text(f"{os.getpid()} {child.pid}")
        time.sleep(60)

    sys.modules[module] = types.ModuleType(module)
    sys.modules[module].work = work  # type: ignore[attr-defined]
    sys.argv[1:] = [module, sys.argv[-1]]
    runpy.run_path(program, run_name="__main__")


FAR: dict[str, Callable[[Any], Any]] = {
    "mirrored": lambda rows: rows[..., ::-1] + 1,
    "flipped": lambda rows: -rows,
    "far off": lambda rows: rows + 10 * (rows == rows[..., :1]),
    "a tenth": lambda rows: 10 * rows,
    "the same": lambda rows: 0 * rows + range(1, 1 + rows.shape[-1]),
}
"""What the float model answers where the graph answers `rows`."""


def _encoder(how: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from encoders import LABELS, write_graph

    answer = write_graph(Path(request["out"]) / "model.onnx", request["task"], labels=how.get("labels", len(LABELS)))
    made = [answer(ids) for ids in request["cases"]]
    floats = [FAR[how["far"]](rows) for rows in made] if "far" in how else made
    np.savez(Path(request["answers"]) / "made.npz", *made)
    np.savez(Path(request["answers"]) / "float.npz", *floats)
    return {"parameters": 1000, "made_with": "a stand-in"}


def _rewriter(how: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from encoders import write_pair

    logits = write_pair(Path(request["out"]))
    answers = [[request["start"], *range(4, 4 + i % 3)] for i, _ in enumerate(request["cases"])]
    made = [logits(ids, answer) for ids, answer in zip(request["cases"], answers, strict=True)]
    np.savez(Path(request["answers"]) / "made.npz", *made)
    np.savez(Path(request["answers"]) / "float.npz", *[-rows if how.get("far") else rows for rows in made])
    return {"parameters": 1000, "answers": answers, "made_with": "a stand-in"}


def _workflow(how: dict[str, Any], out: Path) -> dict[str, Any]:
    from toy_artifact import write_toy

    write_toy(out, sealed=False)
    for name in how.get("without", ()):
        (out / name).unlink()
    if "rename" in how:
        (out / "model.onnx.data").rename(out / how["rename"])
    return {"made_with": "a stand-in"}
