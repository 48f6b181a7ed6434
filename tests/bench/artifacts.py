"""Benches of one artifact after the other: their command line, and what was found of each, as lines or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from process import machine

Choice = tuple[int, str]
"""The default of an option, and what it counts."""


def options(description: str | None, *, tokens: Choice, repeats: Choice) -> argparse.ArgumentParser:
    """A parser of ARTIFACT... [--tokens N] [--repeats N] [--threads N] [--json]."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="+", type=Path)
    for name, (default, counted) in (("--tokens", tokens), ("--repeats", repeats)):
        parser.add_argument(name, type=int, default=default, help=f"{counted} (%(default)s)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    return parser


def tell(reports: Sequence[dict[str, Any]], lines: Callable[[dict[str, Any]], Iterable[str]], *, as_json: bool) -> None:
    """Print the machine and every artifact's report."""
    if as_json:
        print(json.dumps({"machine": machine(), "artifacts": reports}, indent=1))
        return
    print(machine())
    for report in reports:
        print(*lines(report), sep="\n")
