"""What the fields of a frozen model may hold, in words: for messages, and for the generated reference."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_OWN = {"repeated", "one_line", "missing_path", "form"}  # error types whose message says it all


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value of this annotation must be, such as `a whole number from 16 to 1048576`."""
    if isinstance(annotation, FieldInfo):
        return expected(annotation.annotation, annotation.metadata)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [m for a in arguments[1:] for m in (a.metadata if isinstance(a, FieldInfo) else [a])]
        return expected(arguments[0], [*metadata, *inner])
    if origin in (Union, types.UnionType):
        return expected(next(a for a in arguments if a is not type(None)), metadata)
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(str(a) for a in arguments)
    if origin is tuple:
        return f"a list of {expected(arguments[0]).removeprefix('one of ')}"
    if origin is dict:
        return "a mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with the keys {', '.join(annotation.model_fields)}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[annotation]
    return words + _bounds(annotation, metadata)


def _bounds(annotation: Any, metadata: Sequence[Any]) -> str:
    limits = {k: getattr(m, k) for m in metadata for k in ("ge", "gt", "le", "max_length", "pattern") if _has(m, k)}
    if annotation is str:
        if "/" in limits.get("pattern", ""):
            return " of the form owner/name"
        return f" of at most {limits['max_length']} characters" if "max_length" in limits else ""
    low = f" from {limits['ge']:g}" if "ge" in limits else f" above {limits['gt']:g}" if "gt" in limits else ""
    if "le" not in limits:
        return low
    high = f"{limits['le']:.0f}" if limits["le"] == int(limits["le"]) else f"{limits['le']:g}"
    return f"{low} to {high}" if "ge" in limits else f"{low}, at most {high}"


def _has(constraint: Any, key: str) -> bool:
    return getattr(constraint, key, None) is not None


def choices(annotation: Any) -> list[str]:
    """The values an annotation lists, if it lists them."""
    if isinstance(annotation, FieldInfo):
        annotation = annotation.annotation
    if get_origin(annotation) is Literal:
        return [a for a in get_args(annotation) if isinstance(a, str)]
    return [c for a in get_args(annotation) for c in choices(a)]


def submodel(annotation: Any) -> type[BaseModel] | None:
    """The model an annotation names, looking through `| None`."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field of a model and of the models inside it, with its dotted name, in the order written."""
    for name, info in model.model_fields.items():
        yield prefix + name, info
        if inner := submodel(info.annotation):
            yield from walk(inner, f"{prefix}{name}.")


def at(model: type[BaseModel], path: Sequence[str | int]) -> FieldInfo | None:
    """The field a path of keys leads to."""
    info: FieldInfo | None = None
    inner: type[BaseModel] | None = model
    for key in path:
        if isinstance(key, int):
            continue
        info = inner.model_fields.get(key) if inner else None
        inner = submodel(info.annotation) if info else None
    return info


def explain(model: type[BaseModel], error: Mapping[str, Any], keys: Sequence[str]) -> str:
    """One line for a pydantic error: where, what was expected, what was found, and the nearest valid name.

    `keys` are the top-level keys that a file may have.
    """
    path, kind = error["loc"], error["type"]
    where = _dotted(path)
    if kind == "extra_forbidden":
        return _unknown(model, path, keys)
    info = at(model, path)
    if kind == "missing":
        return f"missing key {path[-1]!r}{f' in {_dotted(path[:-1])!r}' if len(path) > 1 else ''}" + (
            f": expected {expected(info)}" if info else ""
        )
    if kind in _OWN or info is None:
        return f"{where}: {error['msg']}" if where else str(error["msg"])
    if error.get("ctx", {}).get("key"):
        return f"{where}.{error['ctx']['key']}: {error['msg']}"
    if kind in ("too_short", "too_long") and isinstance(error["input"], list | tuple) and error["input"]:
        said = error["ctx"]
        limit = f"at least {said['min_length']}" if kind == "too_short" else f"at most {said['max_length']}"
        return f"{where}: expected a list of {limit}, found one of {len(error['input'])}"
    wanted = info.annotation
    if path and isinstance(path[-1], int) and get_args(wanted):
        wanted = get_args(wanted)[0]
    value = error["input"]
    words = expected(wanted, info.metadata if wanted is info.annotation else ())
    hint = did_you_mean(value, choices(wanted)) if isinstance(value, str) else ""
    if words.startswith("text") and isinstance(value, int | float):
        hint = "; put it in quotes"
    elif "number" in words and isinstance(value, str) and value.replace(".", "").isdigit():
        hint = "; remove the quotes"
    return f"{where}: expected {words}, found {found(value)}{hint}"


def follows(error: Mapping[str, Any]) -> bool:
    """Whether an error of pydantic's says nothing new: a list is too short because items of it are wrong."""
    value = error["input"]
    return error["type"] == "too_short" and isinstance(value, list | tuple) and len(value) >= error["ctx"]["min_length"]


def _unknown(model: type[BaseModel], path: Sequence[str | int], keys: Sequence[str]) -> str:
    parent, key = path[:-1], str(path[-1])
    info = at(model, parent)
    inner = submodel(info.annotation) if info else None
    known = list(inner.model_fields) if inner else list(keys)
    homes = [name for name, _ in walk(model) if name.split(".")[-1] == key]
    hint = did_you_mean(key, known)
    if not hint and homes:
        hint = (
            f"; it belongs in {homes[0].rpartition('.')[0]!r}" if "." in homes[0] else "; it belongs at the top level"
        )
    where = f" in {_dotted(parent)!r}" if parent else ""
    return f"unknown key {found(key)}{where}{hint or '; expected one of ' + ', '.join(known)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the known names, or nothing."""
    by_lower = {k.lower(): k for k in known}
    near = get_close_matches(name[:100].lower(), by_lower, 1, 0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def found(value: Any) -> str:
    """A value as messages quote it: short, and on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _dotted(path: Sequence[str | int]) -> str:
    out = ""
    for key in path:
        out += f"[{key}]" if isinstance(key, int) else f".{key}" if out else key
    return out
