"""Tiny checkpoints for tests that change nothing of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three layers."""
    return write_checkpoint(tmp_path_factory.mktemp("small"), layers=3)
