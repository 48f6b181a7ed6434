"""Exports for tests, through the real `build.export`: a recipe from keywords, and the embedded tiny model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeship import build, catalog
from edgeship.progress import Progress, Silent
from edgeship.recipe import Recipe, with_algorithm


class Listener(Silent):
    """Keeps what the user is told, and counts the bytes of progress."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.advanced = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, n: int, name: str) -> None:
        self.advanced += n


FLOAT32 = {"body": "float32", "embeddings": "float32", "head": "float32"}


def recipe(name: str = "case", **fields: Any) -> Recipe:
    """A recipe with a local source; `fields` as in a recipe's YAML."""
    source = {"host": "local", "repo": "tests/tiny", "path": "unused"}
    return Recipe.model_validate({"name": name, "source": source, "context": 128, **fields})


def built(
    recipe: Recipe,
    out: Path,
    formats: Sequence[str] = ("onnx",),
    *,
    checkpoint: Path | None = None,
    max_ram: int = 1 << 30,
    force: bool = False,
    fidelity: bool = True,
    progress: Progress | None = None,
) -> Path:
    """Export a recipe, its own source unless another is given; returns the directory of all formats."""
    heard = progress or Silent()
    return build.export(
        recipe,
        checkpoint=checkpoint,
        out=out,
        formats=formats,
        max_ram=max_ram,
        force=force,
        fidelity=fidelity,
        progress=heard,
    ).artifact


def export(checkpoint: Path, out: Path, **fields: Any) -> Path:
    """Export `checkpoint` and return the ONNX artifact's directory."""
    return built(recipe(**fields), out, checkpoint=checkpoint) / "onnx"


def export_tiny(out: Path, *formats: str) -> Path:
    """Export the embedded tiny model, rounded to nearest: a second; returns the directory of all formats."""
    return built(with_algorithm(catalog.find("tiny-int4"), "rtn"), out, formats)


def every_format(checkpoint: Path, out: Path, **fields: Any) -> Path:
    """Export a checkpoint by a recipe of these `fields` to all its formats; returns the directory of these."""
    made = recipe(**fields)
    return built(made, out, made.formats, checkpoint=checkpoint)


def contents(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file, by its path."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
