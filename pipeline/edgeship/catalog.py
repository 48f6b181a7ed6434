"""Finds recipes and devices: a path to a file, or a name in the catalogue.

The catalogue is the repository's `recipes/` and `devices/`, or data in the wheel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from edgeship.device import KIND as DEVICE
from edgeship.device import LOCAL, Device, read_device
from edgeship.fields import did_you_mean, found
from edgeship.recipe import Recipe
from edgeship.recipe_file import KIND as RECIPE
from edgeship.recipe_file import read_recipe
from edgeship.yaml_model import NAME, Kind

_PACKAGE = Path(__file__).parent
_T = TypeVar("_T")


def directory(folder: str = "recipes") -> Path:
    """Where a catalogue lies: `_recipes` inside an installed wheel, else `recipes/` of the repository."""
    packaged = _PACKAGE / f"_{folder}"
    return packaged if packaged.is_dir() else _PACKAGE.parents[1] / folder


def paths(folder: str = "recipes") -> dict[str, Path]:
    """The catalogue's files by name, in the order of their names."""
    return {p.stem: p for p in sorted(directory(folder).glob("*.yaml"))}


def names() -> list[str]:
    """The names of recipes in the catalogue, sorted."""
    return list(paths())


def device_names() -> list[str]:
    """The names of devices in the catalogue, sorted; `local`, this machine, is not among them."""
    return list(paths("devices"))


def find(name_or_path: str) -> Recipe:
    """The recipe of a name in the catalogue, or in a file (anything with a `/` or ending in .yaml is a path).

    Raises RecipeError where there is none, or where it is not valid.
    """
    return _find(name_or_path, paths(), read_recipe, RECIPE)


def find_device(name_or_path: str) -> Device:
    """The device of a name in the catalogue, in a file, or `local`: this machine, looked at and measured briefly.

    Raises DeviceError where there is none, or where it is not valid.
    """
    if name_or_path == LOCAL:
        from edgeship.local import detect  # not at the top: it brings numpy

        return detect()
    return _find(name_or_path, paths("devices"), read_device, DEVICE)


def _find(
    name_or_path: str,
    catalogue: dict[str, Path],
    read: Callable[[Path, Mapping[str, Path]], _T],
    kind: Kind,
) -> _T:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return read(Path(name_or_path), catalogue)
    if name_or_path in catalogue:
        return read(catalogue[name_or_path], catalogue)
    hint = f"`{kind.listed_by}` lists the catalogue; for a file of your own give its path, ending in .yaml"
    if re.fullmatch(NAME, name_or_path) and Path(f"{name_or_path}.yaml").is_file():
        hint = f"for the file in this directory: {name_or_path}.yaml"
    near = did_you_mean(name_or_path, list(catalogue))
    raise kind.error(f"no {kind.noun} is called {found(name_or_path)}{near}.", hint=hint)
