"""JSON for tests: values of any kind, and an object with one member changed, or with several at random."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st


def values(*, finite: bool = False, letters: int = 8) -> st.SearchStrategy[Any]:
    """Any value; `finite`: as strict JSON has them, without NaN and infinities; `letters`: of a text at most."""
    numbers = st.integers() | st.floats(allow_nan=not finite, allow_infinity=not finite)
    return st.recursive(
        st.none() | st.booleans() | numbers | st.text(max_size=letters),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )


JSON = values()


def changed(valid: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy whose member at a path such as a/b is set; `...` removes it."""
    root = copy.deepcopy(valid)
    *outer, last = path.split("/")
    inner = root
    for key in outer:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return root


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every member inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


def mutate(data: st.DataObject, valid: dict[str, Any]) -> dict[str, Any]:
    """A copy with one to three members set to anything, removed, or added."""
    root = copy.deepcopy(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(root)
        if not found:
            break
        *outer, last = data.draw(st.sampled_from(found))
        inner: Any = root
        for key in outer:
            inner = inner[key]
        action = data.draw(st.sampled_from(("set", "remove", "add")))
        if action == "set":
            inner[last] = data.draw(JSON)
        elif action == "remove":
            del inner[last]
        elif isinstance(inner, dict):
            inner[data.draw(st.text(max_size=12))] = data.draw(JSON)
    return root
