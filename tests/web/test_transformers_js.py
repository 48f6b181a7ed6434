"""The model folder of a bundle in transformers.js, in Node and in Chromium: the tokens of the Python runtime."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgeship_runtime import load
from edgeship_runtime.chat import load_template
from edgeship_runtime.manifest import read_manifest
from phone import CHROMIUM, MINUTES

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]

SOURCE = Path(__file__).parent / "npm"
INSTALLED = Path(__file__).resolve().parents[2] / ".cache" / "transformers-js"
INSTALL = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=60000"]
QUESTIONS = ["What is the opposite of hot?", "What sound does a cow make?", "What colour is the sky?"]
REQUESTS = [{"messages": [{"role": "user", "content": text}], "tokens": 16} for text in QUESTIONS]


@pytest.fixture(scope="session")
def modules() -> Path:
    """`node_modules` of the locked versions, installed once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    lock = (SOURCE / "package-lock.json").read_text()
    mark = INSTALLED / ".installed"
    if not mark.is_file() or mark.read_text() != lock:
        shutil.rmtree(INSTALLED, ignore_errors=True)
        INSTALLED.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(SOURCE / name, INSTALLED / name)
        done = subprocess.run(INSTALL, cwd=INSTALLED, capture_output=True, text=True, timeout=500, check=False)
        if done.returncode:
            pytest.skip(f"npm reaches no registry: {' '.join(done.stderr.split())[-300:]}")
        mark.write_text(lock)
    for path in SOURCE.glob("generate.*"):
        shutil.copyfile(path, INSTALLED / path.name)
    return INSTALLED / "node_modules"


@pytest.fixture(scope="module")
def wanted(artifact: Path) -> list[dict[str, Any]]:
    """Text, prompt and greedy tokens by the Python runtime."""
    directory = artifact / "onnx"
    template = load_template(directory, read_manifest(directory))
    assert template is not None
    answers = []
    with load(directory, threads=1) as model:
        ends = model.manifest.model.eos_token_ids
        for request in REQUESTS:
            text = template.render(request["messages"])
            options = model.options(temperature=0.0, repetition_penalty=1.0, max_tokens=request["tokens"])
            ids = [token for piece in model.stream(request["messages"], options) for token in piece.token_ids]
            prompt = list(model.encode(request["messages"]))
            answers.append({"text": text, "prompt": prompt, "ids": [each for each in ids if each not in ends]})
    return answers


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]], artifact: Path) -> None:
    """Equal but for the token that ends an answer, which the runtime does not give out."""
    ends = read_manifest(artifact / "onnx").model.eos_token_ids
    without = [one | {"ids": [each for each in one["ids"] if each not in ends]} for one in found]
    assert without == wanted


def test_in_node(modules: Path, sites: dict[str, Path], wanted: list[dict[str, Any]], artifact: Path) -> None:
    command = ["node", "generate.mjs", str(sites["onnx"]), "model", "q4", json.dumps(REQUESTS)]
    done = subprocess.run(command, cwd=modules.parent, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    same(json.loads(done.stdout), wanted, artifact)


def test_one_copy_of_the_weights(sites: dict[str, Path], artifact: Path) -> None:
    weights = (artifact / "onnx/model.onnx.data").stat().st_size
    assert [p.name for p in sites["onnx"].rglob("*") if p.stat().st_size == weights] == ["model_q4.onnx_data"]


@pytest.fixture
def served(modules: Path, sites: dict[str, Path], tmp_path: Path) -> Iterator[str]:
    (tmp_path / "site").symlink_to(sites["onnx"])
    (tmp_path / "npm").symlink_to(modules)
    shutil.copyfile(SOURCE / "generate.html", tmp_path / "index.html")
    handler = partial(_Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


def test_in_chromium(playwright: Any, served: str, wanted: list[dict[str, Any]], artifact: Path) -> None:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    try:
        page = browser.new_page()
        outside: list[str] = []
        page.on("request", lambda r: None if r.url.startswith((served, "blob:", "data:")) else outside.append(r.url))
        page.goto(served)
        page.wait_for_function("window.ask !== undefined", timeout=2 * MINUTES)
        same(page.evaluate("([all, dtype]) => window.ask(all, dtype)", [REQUESTS, "q4"]), wanted, artifact)
        assert outside == []
    finally:
        browser.close()
