"""What the tests of validation share: a small bundle, an empty board, and no waiting before a step is tried again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeship.ship import course
from tiny_bundle import write_bundle


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
