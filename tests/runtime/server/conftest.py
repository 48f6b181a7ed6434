"""The embedded tiny model, exported once, and a server of it for tests that change nothing; its page in a browser."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import WIDTHS, chromium, opened
from exports import export_tiny
from served import Served, serving
from toy_gguf import FORMS


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the artifact, both formats in it."""
    return export_tiny(tmp_path_factory.mktemp("served"), "onnx", "gguf")


@pytest.fixture(scope="session", params=FORMS)
def served(request: pytest.FixtureRequest, tiny: Path) -> Generator[Served, None, None]:
    """A server of the tiny model on each engine in turn."""
    with serving({"tiny": tiny / str(request.param)}, requests_per_minute=0) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, served: Served) -> Iterator[Any]:
    """The server's page at each width in turn."""
    with opened(browser, served.url, request.param) as found:
        yield found
