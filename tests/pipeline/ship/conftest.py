"""What tests here share: an artifact, a board and a bundle for it, no waiting before a step is tried again, a site."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from acceptance_files import write_acceptance
from edgeship import catalog
from edgeship.progress import Silent
from edgeship.ship import course
from edgeship.ship.report import Report
from edgeship.ship.validate import keep_report
from edgeship.ship.web_bundle import make_web_bundle
from edgeship.ship.web_server import web_app
from edgeship.ship.web_site import Site, read_site
from edgeship_runtime.bench import measure
from edgeship_runtime.verify import verify
from tiny_bundle import write_bundle
from toy_artifact import write_toy
from web_apps import AGENT, write_app


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "toy", weights=os.urandom(200_000))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "RETRY_AFTER", (0.05, 0.05, 0.05))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model with its acceptance, in a directory of all its formats, of which there is one."""
    return write_acceptance(write_toy(tmp_path_factory.mktemp("artifacts") / "toy/onnx")).parent


@pytest.fixture(scope="module")
def web_bundle(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    phone = catalog.find_device("phone-web")
    app = write_app(root / "app")
    return make_web_bundle(artifact, phone, None, root / "out", app=app, kind=None, progress=Silent()).path


@pytest.fixture
def site(web_bundle: Path) -> Site:
    return read_site(web_bundle)


@pytest.fixture
def ask(site: Site, tmp_path: Path) -> Callable[..., httpx.Response]:
    """Send requests, to one application."""

    def keep(report: Report) -> str:
        path = keep_report(report.host, report, tmp_path / "reports").path
        assert path is not None
        return path.name

    app = web_app(site, keep, certificate=b"---")

    def asked(method: str, url: str, **options: Any) -> httpx.Response:
        async def work() -> httpx.Response:
            transport = httpx.ASGITransport(app, client=("192.168.1.20", 5))
            async with httpx.AsyncClient(transport=transport, base_url="http://phone.test") as client:
                return await client.request(method, url, **options)

        return asyncio.run(work())

    return asked


@pytest.fixture(scope="module")
def told(artifact: Path, web_bundle: Path) -> dict[str, Any]:
    """What a page sends: the verdict and measurement are those of the runtime, which has their form."""
    sealed = artifact / "onnx"
    manifest = json.loads((sealed / "edgeship.json").read_bytes())
    return {
        "schema": 1,
        "device": "phone-web",
        "name": manifest["name"],
        "engine": "onnx",
        "digest": json.loads((web_bundle / "site.json").read_bytes())["digest"],
        "browser": {
            "user_agent": AGENT,
            "platform": "Android",
            "cores": 8,
            "memory_gb": 8,
            "isolated": True,
            "backend": "wasm",
            "threads": 2,
            "adapter": None,
        },
        "verify": json.loads(json.dumps(verify(sealed).to_json())),
        "bench": measure(sealed, prompt_tokens=8, decode_tokens=4, repeats=1, threads=1).to_json(),
    }
