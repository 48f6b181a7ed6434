"""The command `edgeship serve-web`, as a process of its own: until a result, an interrupt, or what it cannot serve."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeship.cli import run
from edgeship.errors import ArtifactError, ResourceError, UsageError

COMMAND = [sys.executable, "-c", "from edgeship.cli import main; main()"]


@contextmanager
def served(bundle: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command's process, and the address that it serves at."""
    given = ["serve-web", str(bundle), "--host", "127.0.0.1", "--port", "0", "--json", *options]
    process = subprocess.Popen([*COMMAND, *given], stdout=subprocess.PIPE, env=os.environ | environment)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("https", [False, True])
def test_the_command_serves_until_a_result(web_bundle: Path, told: dict[str, Any], tmp_path: Path, https: bool) -> None:
    reports, cache = tmp_path / "reports", tmp_path / "cache"
    options = ["--once", "--reports", str(reports), *(["--https"] if https else [])]
    with served(web_bundle, *options, XDG_CACHE_HOME=str(cache)) as (process, url):
        assert url.startswith("https://" if https else "http://")
        trusted: Any = True
        if https:
            trusted = ssl.create_default_context(cafile=str(cache / "edgeship/https/127.0.0.1.crt"))
            pem = httpx.get(f"{url}certificate.crt", verify=trusted).content
            assert pem == (cache / "edgeship/https/127.0.0.1.crt").read_bytes()
        assert httpx.get(url, verify=trusted).status_code == 200
        assert httpx.post(f"{url}results", json=told, verify=trusted).status_code == 201
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["report"]["verdict"] == "pass"


def test_a_failed_result_is_the_exit_code(web_bundle: Path, told: dict[str, Any], tmp_path: Path) -> None:
    with served(web_bundle, "--once", "--reports", str(tmp_path / "reports")) as (process, url):
        failed = told | {"verify": told["verify"] | {"verdict": "fail"}}
        assert httpx.post(f"{url}results", json=failed).status_code == 201
        assert process.wait(30) == 14


def test_an_interrupt_ends_it(web_bundle: Path) -> None:
    with served(web_bundle) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)


def test_what_cannot_be_served(web_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve-web", str(tmp_path)]) == ArtifactError.exit_code
    assert run(["serve-web", str(web_bundle), "--key", "x"]) == UsageError.exit_code
    assert "--key without --certificate" in capsys.readouterr().err
    assert run(["serve-web", str(web_bundle), "--host", "203.0.113.9"]) == ResourceError.exit_code
    assert "cannot be listened at" in capsys.readouterr().err
    (tmp_path / "cert.pem").write_text("no certificate")
    both = ["--certificate", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "cert.pem")]
    assert run(["serve-web", str(web_bundle), "--host", "127.0.0.1", "--port", "0", *both]) == UsageError.exit_code
