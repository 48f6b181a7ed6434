"""From a file to a `Recipe`: YAML with all its errors at once, each with its line; paths as seen from the file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeship import olive_paths, yaml_source
from edgeship.errors import RecipeError
from edgeship.exporter import Olive
from edgeship.fields import explain, follows, found
from edgeship.recipe import Recipe, Scheme
from edgeship.yaml_model import NAME, Kind, extended, load
from edgeship.yaml_source import Document, KeyPath, Places, Problem

BUILTIN = "builtin"
"""The `source.path` that stands for the tiny checkpoint inside this package."""

KEYS = ("extends", *(f for f in Recipe.model_fields if f != "name"))
"""The top-level keys of a recipe's file."""


def read_recipe(path: Path, catalogue: Mapping[str, Path] | None = None) -> Recipe:
    """The recipe in a YAML file; `catalogue` is where `extends: name` looks, after the file's own directory.

    A local `source.path` comes back absolute. Raises RecipeError with every problem of the file and its line.
    """
    document = load(path, KIND)
    if not re.fullmatch(NAME, path.stem):
        text = f"the recipe is called {found(path.stem)} after its file; expected letters, digits, '.', '_' and '-'"
        document.problems.append(Problem(document.start, text))
    problems = list(document.problems)
    recipe = None
    if document.data is not None:
        document, whole = extended(document, path, catalogue or {}, problems, KIND)
        recipe = _validated(document, path.stem, problems)
        if not whole:  # what the base might hold is not missing
            problems = [p for p in problems if not p.text.startswith("missing key")]
    if problems or recipe is None:
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(
            f"{path}: {count}; nothing was done.\n{yaml_source.show(problems)}",
            hint="the fields of a recipe: README.md, or `edgeship schema` for an editor that completes them",
        )
    return recipe


PARTS = ("body", "embeddings", "head")

ALTERNATIVES: dict[KeyPath, dict[str, Collection[str]]] = {
    ("scheme",): {
        "mix": Scheme.model_fields.keys() - {"mix"},
        "mixed": ("mix", *PARTS),
        **dict.fromkeys(PARTS, ("mix", "mixed")),
    },
    ("scheme", "mixed"): {"bits_per_weight": ("budget_mb",), "budget_mb": ("bits_per_weight",)},
    ("calibration",): {"text": ("chats",), "chats": ("text",)},
}
"""What says the same thing otherwise: laid over a base by `extends`, the one replaces the others."""

KIND = Kind("recipe", RecipeError, "edgeship recipes", Recipe, ALTERNATIVES)


def _validated(document: Document, name: str, problems: list[Problem]) -> Recipe | None:
    assert document.data is not None
    data = {k: v for k, v in document.data.items() if k != "extends"}
    if "name" in data:
        text = "unknown key 'name'; a recipe is called after its file"
        problems.append(Problem(document.place(("name",), key=True), text))
    safe = name if re.fullmatch(NAME, name) else "recipe"  # the unsafe name is a problem already
    try:
        recipe = Recipe.model_validate(data | {"name": safe}, context=_inherited(document))
    except ValidationError as e:
        for error in e.errors(include_url=False):
            if follows(error):
                continue
            path = (*error["loc"], *(k for k in [error.get("ctx", {}).get("key")] if k))
            place = document.place(path, key=error["type"] in ("extra_forbidden", "path_not_local"))
            problems.append(Problem(place, explain(Recipe, dict(error), KEYS)))
        return None
    return _located(recipe, document, problems)


def _inherited(document: Document) -> dict[str, list[str]]:
    """What the file itself does not say, as `Recipe` takes it: keys of the whole, and of `accept`."""
    paths = [path for path, place in document.keys.items() if place.source is not document.source]
    return {
        "recipe": [str(path[0]) for path in paths if len(path) == 1],
        "accept": [str(path[1]) for path in paths if len(path) == 2 and path[0] == "accept"],
    }


def _located(recipe: Recipe, document: Document, problems: list[Problem]) -> Recipe:
    """The recipe with its local paths made absolute, relative to the file that says each."""
    changes: dict[str, Any] = {}
    if recipe.source.path == BUILTIN:
        changes["source"] = str(Path(__file__).parent / "tiny" / "checkpoint")
    elif recipe.source.path is not None:
        changes["source"] = _absolute(recipe.source.path, "a directory", ("source", "path"), document, problems)
    if "source" in changes:
        changes["source"] = recipe.source.model_copy(update={"path": changes["source"]})
    for key in ("text", "chats"):
        given = getattr(recipe.calibration, key, None)
        if recipe.calibration is not None and given is not None:
            file = _absolute(given, "a file", ("calibration", key), document, problems)
            changes["calibration"] = recipe.calibration.model_copy(update={key: file})
    if recipe.imatrix is not None:
        changes["imatrix"] = _absolute(recipe.imatrix, "a file", ("imatrix",), document, problems)
    if recipe.optimum is not None and recipe.optimum.calibration is not None:
        texts = _absolute(recipe.optimum.calibration, "a file", ("optimum", "calibration"), document, problems)
        changes["optimum"] = recipe.optimum.model_copy(update={"calibration": texts})
    if recipe.olive is not None:
        changes["olive"] = _located_olive(recipe.olive, document, problems)
    if recipe.accept.text is not None:
        text = _absolute(recipe.accept.text, "a file", ("accept", "text"), document, problems)
        changes["accept"] = recipe.accept.model_copy(update={"text": text})
    if recipe.adapters:
        changes["adapters"] = tuple(
            _absolute(path, "a directory", ("adapters", i), document, problems)
            for i, path in enumerate(recipe.adapters)
        )
    return recipe.model_copy(update=changes).placed(Places(document.keys))


def _located_olive(olive: Olive, document: Document, problems: list[Problem]) -> Olive:
    """A workflow with the paths of its data sets and scripts made absolute."""

    def change(key: str, place: int) -> olive_paths.Change:
        return lambda path: _absolute(path, "a path", ("olive", key, place), document, problems)

    passes = [olive_paths.of_pass(each, change("passes", i)) for i, each in enumerate(olive.passes)]
    data = [olive_paths.of_data(each, change("data_configs", i)) for i, each in enumerate(olive.data_configs)]
    return olive.model_copy(update={"passes": tuple(passes), "data_configs": tuple(data)})


def _absolute(value: str, what: str, path: KeyPath, document: Document, problems: list[Problem]) -> str:
    place = document.place(path)
    try:
        return str((Path(place.source.name).parent / Path(value).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as e:
        problems.append(Problem(place, f"{'.'.join(map(str, path))}: expected {what}, but {e}"))
        return value
