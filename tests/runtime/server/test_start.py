"""What `serve` says when it cannot start: before it listens, with the exit code of its kind, and no traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import fields
from pathlib import Path

import pytest

from edgeship_runtime.cli import build_parser, main
from edgeship_runtime.server import options
from edgeship_runtime.server.serve import read_settings
from edgeship_runtime.server.settings import Settings
from toy_artifact import write_toy


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("start") / "toy" / "onnx").directory


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "no artifact to serve"),
        (["no/such"], 8, "no such directory"),
        (["HERE"], 8, "no artifact here"),
        (["ARTIFACT", "ARTIFACT"], 2, "NAME=PATH"),
        (["ARTIFACT", "--port", "99999"], 2, "0 to 65535"),
        (["ARTIFACT", "--port", "http"], 2, "invalid int"),
        (["ARTIFACT", "--host", "0.0.0.0"], 2, "--api-key-file FILE --new-key NAME"),
        (["ARTIFACT", "--host", "::"], 2, "no API key"),
        (["ARTIFACT", "--host", "0.0.0.0", "--api-key-file", "gone"], 2, "cannot be read as API keys"),
        (["ARTIFACT", "--host", "0.0.0.0", "--api-key-file", "EMPTY"], 2, "holds no key"),
        (["ARTIFACT", "--host", "192.0.2.1", "--api-key-file", "KEYS"], 9, "an address of this machine"),
        (["ARTIFACT", "--port", "TAKEN"], 9, "another --port"),
        (["ARTIFACT", "--engine", "foo"], 2, "there is no engine"),
        (["ARTIFACT", "--engine", "llamacpp"], 2, "gguf"),
        (["ARTIFACT", "--threads", "0"], 2, "at least 1"),
        (["ARTIFACT", "--context", "0"], 2, "the model was made for"),
        (["ARTIFACT", "--kv-type", "q8_0"], 2, "is for llama.cpp"),
        (["ARTIFACT", "--no-mmap"], 2, "--no-mmap is for llama.cpp"),
        (["ARTIFACT", "--memory-mb", "-1"], 2, "more than 0"),
        (["ARTIFACT", "--timeout", "nan"], 2, "more than 0 seconds"),
        (["ARTIFACT", "--queue-limit", "0"], 2, "at least 1"),
        (["ARTIFACT", "--prefix-dir", "EMPTY"], 2, "expected a directory"),
        (["ARTIFACT", "--prot", "80"], 2, "unrecognized"),
        (["--new-key", "me"], 2, "--api-key-file FILE"),
        (["--new-key", "two words", "--api-key-file", "NEW"], 2, "letters, digits"),
        (["--new-key", "me", "--api-key-file", "HERE"], 2, "cannot be kept"),
    ],
)
def test_what_cannot_be_served(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str
) -> None:
    from edgeship_runtime.server.keys import new_key

    new_key(tmp_path / "keys", "me")
    (tmp_path / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"ARTIFACT": artifact, "HERE": tmp_path, "EMPTY": tmp_path / "empty", "KEYS": tmp_path / "keys"}
        places |= {"NEW": tmp_path / "new", "TAKEN": taken.getsockname()[1]}
        assert main(["serve", *(str(places.get(word, word)) for word in words)]) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ")
    assert "Traceback" not in error


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client", "onnxruntime"])
def test_a_package_that_is_missing_is_named(artifact: Path, tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('hidden by the test')")
    if package == "onnxruntime":  # which is looked for, not imported
        (tmp_path / f"{package}.py").unlink()
        (tmp_path / "sitecustomize.py").write_text(
            "import importlib.util as u\nfind = u.find_spec\n"
            "u.find_spec = lambda name, *more: None if name == 'onnxruntime' else find(name, *more)\n"
        )
    command = [sys.executable, "-m", "edgeship_runtime", "serve", str(artifact), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.returncode == 10, done.stderr
    assert repr(package.replace("_", "-")) in done.stderr
    extra = "ort" if package == "onnxruntime" else "server"
    assert f"pip install 'edgeship-runtime[{extra}]'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_ends_when_told(artifact: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "edgeship_runtime", "serve", str(artifact), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = server.stderr.readline()
        url = said.split()[3]
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
            assert [each["id"] for each in json.load(answer)["data"]] == ["toy"]
        server.send_signal(number)
        rest = server.stderr.read()
        assert server.wait(20) == 0
    assert said.startswith("serving toy at http://127.0.0.1:")
    assert "Traceback" not in rest
    assert [json.loads(line)["event"] for line in rest.splitlines()][-1] == "ended"


def test_every_limit_is_an_option_and_stands_in_the_readme() -> None:
    limits = {each.name for each in fields(Settings)} - {"artifacts", "host", "port", "keys", "engine_options"}
    limits -= {"context", "threads"}  # of the engine
    assert limits | {"api_key_file"} == {name for rows in options.GROUPS.values() for name, _, _ in rows}
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    plain = Settings(artifacts={})
    for name in limits:
        value = getattr(plain, name)
        shown = "–" if value is None else f"{value:g}" if isinstance(value, float) else value
        assert f"| `{options.flag(name)}` | {shown} | " in readme


def test_what_is_given_becomes_the_settings() -> None:
    words = ["serve", "tiny", "--timeout", "5", "--max-tokens", "7", "--memory-mb", "1.5", "--prefix-dir", "here"]
    found = read_settings(build_parser().parse_args(words))
    wanted = {"timeout_s": 5.0, "max_tokens": 7, "memory_mb": 1.5, "prefix_dir": Path("here"), "queue_limit": 64}
    assert {name: getattr(found, name) for name in wanted} == wanted
