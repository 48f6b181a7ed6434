"""Finds recipes: a path to a file, or a name in the catalogue (the repository's `recipes/`, or data in the wheel)."""

from __future__ import annotations

import re
from pathlib import Path

from edgeship.errors import RecipeError
from edgeship.fields import did_you_mean, found
from edgeship.recipe import NAME, Recipe, read_recipe

_PACKAGE = Path(__file__).parent


def directory() -> Path:
    """Where the catalogue lies: `_recipes` inside an installed wheel, else `recipes/` of the repository."""
    packaged = _PACKAGE / "_recipes"
    return packaged if packaged.is_dir() else _PACKAGE.parents[1] / "recipes"


def paths() -> dict[str, Path]:
    """The catalogue's files by name, in the order of their names."""
    return {p.stem: p for p in sorted(directory().glob("*.yaml"))}


def names() -> list[str]:
    """The names in the catalogue, sorted."""
    return list(paths())


def find(name_or_path: str) -> Recipe:
    """The recipe of a name in the catalogue, or in a file (anything with a `/` or ending in .yaml is a path).

    Raises RecipeError where there is none, or where it is not valid.
    """
    catalogue = paths()
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return read_recipe(Path(name_or_path), catalogue)
    if name_or_path in catalogue:
        return read_recipe(catalogue[name_or_path], catalogue)
    hint = "`edgeship recipes` lists the catalogue; for a file of your own give its path, ending in .yaml"
    if re.fullmatch(NAME, name_or_path) and Path(f"{name_or_path}.yaml").is_file():
        hint = f"for the file in this directory: {name_or_path}.yaml"
    raise RecipeError(f"no recipe is called {found(name_or_path)}{did_you_mean(name_or_path, names())}.", hint=hint)
