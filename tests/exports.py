"""Exports for tests: a recipe from keywords, run through the real `build.export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeship import build
from edgeship.progress import Silent
from edgeship.recipe import Recipe

FLOAT32 = {"body": "float32", "embeddings": "float32", "head": "float32"}


def recipe(name: str = "case", **fields: Any) -> Recipe:
    """A recipe with a local source; `fields` as in a recipe's YAML."""
    source = {"host": "local", "repo": "tests/tiny", "path": "unused"}
    return Recipe.model_validate({"name": name, "source": source, "context": 128, **fields})


def export(checkpoint: Path, out: Path, **fields: Any) -> Path:
    """Export `checkpoint` and return the ONNX artifact's directory."""
    made = build.export(
        recipe(**fields),
        checkpoint=checkpoint,
        out=out,
        formats=("onnx",),
        max_ram=1 << 30,
        force=False,
        progress=Silent(),
    )
    return made.artifact / "onnx"
