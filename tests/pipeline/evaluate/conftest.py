"""A text to measure on."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints import CORPUS


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(CORPUS) * 20, encoding="utf-8")
    return file
