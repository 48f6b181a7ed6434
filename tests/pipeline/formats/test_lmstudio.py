"""LM Studio's folder: PUBLISHER/MODEL-GGUF/FILE, never outside the folder that was given."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgeship.errors import ArtifactError
from edgeship.formats.gguf.lmstudio import place


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model-Q4_0.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


def test_the_file_lies_under_publisher_and_model(file: Path, tmp_path: Path) -> None:
    placed = place(file, tmp_path / "models", "Qwen/Qwen2.5-1.5B-Instruct")
    assert placed == tmp_path / "models/Qwen/Qwen2.5-1.5B-Instruct-GGUF/model-Q4_0.gguf"
    assert placed.samefile(file)  # linked: it takes no space twice
    assert place(file, tmp_path / "models", "Qwen/Qwen2.5-1.5B-Instruct") == placed


def test_another_disk_gets_a_copy(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    placed = place(file, tmp_path / "models", "a/b")
    assert placed.read_bytes() == file.read_bytes()
    assert not placed.samefile(file)
    assert [p.name for p in placed.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("repo", ["../../etc/passwd", "/abs/olute", "..", "a/..", "x\ny/z"])
def test_a_hostile_name_stays_inside(repo: str, file: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    placed = place(file, models, repo)
    assert placed.resolve().is_relative_to(models.resolve())
    assert len(placed.relative_to(models).parts) == 3


def test_a_folder_that_cannot_be_made_is_an_error(file: Path, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ArtifactError, match="cannot be placed"):
        place(file, tmp_path / "models", "a/b")
