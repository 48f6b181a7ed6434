"""Patterns of module names, as PEFT writes them, from strangers: what could take for ever is refused unmatched.

A bound on time is one on the ways to match: `re` tries them all. Names are those of the model's own weights, short.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable

LENGTH_LIMIT = 200  # characters
WAYS_LIMIT = 8**4  # four wildcards; under 5 ms on a name of 32 characters
TOTAL_LIMIT = 8 * WAYS_LIMIT
LEAST = 16  # ways that a plain name counts for, so that the number of patterns is bounded too


def compile_all(patterns: Iterable[str]) -> list[re.Pattern[str]]:
    """The patterns as PEFT matches them: at the end of a name, whole or behind a dot.

    Raises ValueError, with the pattern, at one that is no regular expression or could take for ever.
    """
    out, total = [], 0
    for pattern in patterns:
        total += max(LEAST, ways(pattern))
        if len(pattern) > LENGTH_LIMIT or ways(pattern) > WAYS_LIMIT or re.search(r"\)[*+?{]", pattern):
            raise ValueError(pattern, "expected a simpler pattern, this could take for ever")
        if total > TOTAL_LIMIT:
            raise ValueError(pattern, "expected fewer patterns, these could take for ever")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a later Python reads otherwise
                out.append(re.compile(rf"(.*\.)?({pattern})$"))
        except (re.error, OverflowError) as e:
            raise ValueError(pattern, f"not a regular expression: {e}") from None
    return out


def ways(pattern: str) -> int:
    """About how many ways there are to match a short name: eight per repeat, and the alternatives of each group."""
    plain = re.sub(r"\\.|\[\^?\]?[^]]*\]", "x", pattern).replace("(?:", "(")
    total = math.prod(8 for _ in re.findall(r"[*+?{]", plain))
    groups = [1]
    for sign in plain:
        if sign == "(":
            groups.append(1)
        elif sign == "|":
            groups[-1] += 1
        elif sign == ")" and len(groups) > 1:
            total *= groups.pop()
    return math.prod(groups, start=total)
