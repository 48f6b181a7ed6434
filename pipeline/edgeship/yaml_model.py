"""Frozen models that are read from YAML files, one file a thing, each laid over at most one other by `extends`.

Recipes and device profiles are such files; a `Kind` says what a message calls them and which error refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from edgeship import yaml_source
from edgeship.errors import EdgeshipError
from edgeship.fields import did_you_mean, found, submodel
from edgeship.yaml_source import Document, KeyPath, Problem

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What a file may be called: its name becomes a directory, so nothing that a path gives a meaning to."""


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # strict mode takes no list for a tuple


def distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """The tuple, if no value stands in it twice."""
    if len(set(value)) != len(value):
        raise PydanticCustomError("repeated", "expected each value once, found one twice")
    return value


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise PydanticCustomError("one_line", "expected one line of text, found a line break or control character")
    return value


class Frozen(BaseModel):
    """A model that cannot be changed, knows all its keys, and converts no type into another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Line = Annotated[str, Field(max_length=300), AfterValidator(_one_line)]
AsTuple = BeforeValidator(_tuple)
Distinct = AfterValidator(distinct)


@dataclass(frozen=True)
class Kind:
    """What the files are: `noun` in messages, the error that refuses one, the command that lists them, the model."""

    noun: str
    error: type[EdgeshipError]
    listed_by: str
    model: type[BaseModel]
    alternatives: Mapping[KeyPath, Mapping[str, Collection[str]]] = field(default_factory=dict)
    """By the path of a mapping and a key laid over it: the other keys of the base that this one replaces."""


def load(path: Path, kind: Kind) -> Document:
    """The document in a file; raises the kind's error where the path leads to none."""
    if path.suffix not in (".yaml", ".yml"):
        raise kind.error(
            f"{path}: expected the path of a {kind.noun}, ending in .yaml, found one that does not.",
            hint=f"`{kind.listed_by}` lists the catalogue; a {kind.noun} of your own is a YAML file",
        )
    try:
        if not path.is_file():
            what = "a directory" if path.is_dir() else "nothing of that kind" if path.exists() else "no such file"
            raise kind.error(
                f"{path}: expected a {kind.noun} (a YAML file), found {what}.",
                hint=f"`{kind.listed_by}` lists the catalogue; a path to a file ends in .yaml",
            )
        return yaml_source.read(path)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        raise kind.error(f"{path}: cannot be read: {reason}.", hint="check the path and its permissions") from e


def extended(
    document: Document, path: Path, catalogue: Mapping[str, Path], problems: list[Problem], kind: Kind
) -> tuple[Document, bool]:
    """The document laid over the one it extends, and whether that worked; without `extends`, itself.

    `catalogue` is where a name is looked for after the file's own directory. What is wrong goes to `problems`.
    """
    assert document.data is not None
    if "extends" not in document.data:
        return document, True
    value, place = document.data["extends"], document.place(("extends",))

    def refused(text: str) -> tuple[Document, bool]:
        problems.append(Problem(place, f"extends: {text}"))
        return document, False

    if not isinstance(value, str) or not value:
        return refused(f"expected the name or path of a {kind.noun}, found {found(value)}")
    try:
        base_path = _base_path(value, path, catalogue)
        if base_path is None:
            names = {*catalogue, *(p.stem for p in path.parent.glob("*.yaml"))} - {path.stem}
            return refused(f"no {kind.noun} is called {found(value)}{did_you_mean(value, sorted(names))}")
        base = load(base_path, kind)
        if base_path.samefile(path):
            return refused(f"this is the {kind.noun} itself; name another one, or remove the key")
    except (OSError, ValueError, EdgeshipError) as e:
        return refused(e.message if isinstance(e, EdgeshipError) else str(e))
    problems += base.problems
    if base.data is None:
        return document, False
    if "extends" in base.data:
        above = found(base.data["extends"])
        return refused(f"{found(value)} itself extends {above}; one level is allowed: extend {above}")
    return _merged(base, document, kind), True


def _base_path(value: str, path: Path, catalogue: Mapping[str, Path]) -> Path | None:
    if "/" in value or value.endswith((".yaml", ".yml")):
        return path.parent / value
    if not re.fullmatch(NAME, value):
        return None
    beside = path.parent / f"{value}.yaml"
    return beside if beside.is_file() else catalogue.get(value)


def _merged(base: Document, over: Document, kind: Kind) -> Document:
    """`over` laid over `base`: sections key by key; anything else replaces, and null takes back to the default."""
    assert base.data is not None
    assert over.data is not None
    replaced: set[KeyPath] = set()  # paths whose places in the base no longer count
    data = _laid(base.data, {k: v for k, v in over.data.items() if k != "extends"}, (), kind, kind.model, replaced)
    keys, values = (
        {p: place for p, place in places.items() if not any(p[:i] in replaced for i in range(1, len(p) + 1))}
        for places in (base.keys, base.values)
    )
    return Document(over.source, data, keys | over.keys, values | over.values)


def _laid(
    base: Mapping[str, Any],
    over: Mapping[str, Any],
    path: KeyPath,
    kind: Kind,
    model: type[BaseModel] | None,
    replaced: set[KeyPath],
) -> dict[str, Any]:
    """A mapping laid over the base's under the same path; `model` is that of its fields, None where keys are free."""
    rivals = kind.alternatives.get(path, {})
    gone = {rival for key, value in over.items() if value is not None for rival in rivals.get(key, ())}
    data = {k: v for k, v in base.items() if k not in gone}
    for key, value in over.items():
        below, info = data.get(key), model.model_fields.get(key) if model else None
        if isinstance(value, dict) and isinstance(below, dict) and model:
            inner = submodel(info.annotation) if info else None
            data[key] = _laid(below, value, (*path, key), kind, inner, replaced)
            continue
        gone.add(key)
        if value is None and info and not info.is_required():
            data.pop(key, None)
        else:
            data[key] = value
    replaced |= {(*path, key) for key in gone}
    return data
