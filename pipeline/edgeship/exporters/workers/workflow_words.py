"""What the checks of a workflow found, and how they say it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from pydantic import ValidationError

LONGEST = 300
BRANCH = re.compile(r"(str|int|float|bool|list|dict|\w+-enum|is-instance|function-\w+|lax-or-strict)(\[.*)?$")
SEARCHED = ("SearchParameter", "PassParamDefault", "SpecialParamValue")
PINNED = ("huggingface_hub", "numpy", "onnxruntime", "torch", "transformers")


@dataclass
class Findings:
    """What is wrong with a workflow, and what could be installed to have it."""

    problems: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    # Of the checkpoint, where it is there already: tokens, positions, and weights in the rows of its matrices.
    vocabulary: int | None = None
    positions: int | None = None
    rows: tuple[int, ...] = ()

    def part(self) -> Findings:
        """Of one thing in the workflow, whose problems get its name."""
        return replace(self, problems=[])

    def lack(self, *requirements: str) -> str:
        """Note that packages are missing, and say so."""
        self.wanted += requirements
        names = ", ".join(Requirement(each).name for each in requirements)
        return f"it needs {names}, which the environment does not hold"

    @property
    def command(self) -> str:
        """Installs what is wanted beside the versions that are there; the environment stays the one that it was."""
        there = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in PINNED]
        wanted = [f"'{each}'" if set(each) & set("<>[ ") else each for each in dict.fromkeys(self.wanted)]
        return f"{sys.executable} -m pip install {' '.join([*wanted, *there])}"


def unknown(what: str, name: Any, known: Iterable[str]) -> str:
    """`no WHAT 'name'`, with the nearest of the known ones, or all of them."""
    names = {each.lower(): each for each in sorted(known)}
    near = get_close_matches(str(name)[:100].lower(), names, 1, 0.6)
    if near:
        return f"no {what} {name!r}; did you mean {names[near[0]]!r}?"
    return f"no {what} {name!r}; known: {', '.join(names.values()) or 'none'}"


def spoken(error: Exception) -> list[str]:
    """What is wrong, of an error of Olive's or its libraries': a text for each thing, on one line."""
    if isinstance(error, ValidationError):
        found = [(e["loc"], e["msg"]) for e in error.errors()]
        # Any option may be one of these, to be searched for; that is no help to who gave a wrong value.
        plain = [each for each in found if not any(name in str(each[0]) for name in SEARCHED)]
        return [f"{_place(where)}: {said}".removeprefix(": ") for where, said in plain or found]
    cause = f": {error.__cause__}" if error.__cause__ else ""
    text = " ".join(f"{error}{cause}".split())[:LONGEST]
    if isinstance(error, KeyError):
        return [f"there is no {text}"]
    return [text or f"it fails, and says nothing but {type(error).__name__}"]


def _place(where: tuple[Any, ...]) -> str:
    """The way to a value, without the names that pydantic gives the branches of a union."""
    return ".".join(str(each) for each in where if isinstance(each, int) or not BRANCH.match(each))
