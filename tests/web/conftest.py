"""What the tests in a browser need: Chromium, Playwright, and the app that npm builds; they skip without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeship import catalog
from edgeship.errors import EdgeshipError
from edgeship.progress import Silent
from edgeship.ship.web_app import App, find_app
from edgeship.ship.web_bundle import make_web_bundle
from exports import export_tiny

ENGINES = {"onnx": "ort", "gguf": "llamacpp"}


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    from phone import CHROMIUM

    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with api.sync_playwright() as found:
        yield found


@pytest.fixture(scope="session")
def app() -> App:
    try:
        return find_app(None, Silent())
    except EdgeshipError as error:
        pytest.skip(f"the app cannot be built: {error.message}")


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in both formats."""
    return export_tiny(tmp_path_factory.mktemp("artifacts"), "onnx", "gguf")


@pytest.fixture(scope="session")
def sites(artifact: Path, app: App, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of it for each format."""
    device, out = catalog.find_device("phone-web"), tmp_path_factory.mktemp("bundles")
    return {
        form: make_web_bundle(artifact, device, engine, out, app=app.path, kind=None, progress=Silent()).path
        for form, engine in ENGINES.items()
    }
