"""Leaves comments and blanks out of the wheel, and docstrings but a module's first line and those of the public API.

Boards have small disks and slow links. Lines stay where they are, so a traceback of an installed wheel points into the
repository's files.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "edgeship_runtime"
PUBLIC = ("__init__.py", "answer.py", "errors.py", "model.py", "sampling.py")
"""Modules whose docstrings `help()` is asked for."""


class SlimWheel(BuildHookInterface):
    """Puts slimmed copies in the place of the package's modules."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the copies, for a wheel that is no editable install."""
        if version == "editable":
            return
        self._folder = TemporaryDirectory()
        root = Path(self.root)
        for path in sorted((root / PACKAGE).rglob("*.py")):
            copy = Path(self._folder.name) / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(slim(path.read_text(encoding="utf-8"), documented=path.name in PUBLIC), encoding="utf-8")
            build_data["force_include"][str(copy)] = path.relative_to(root).as_posix()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copies."""
        if version != "editable":
            self._folder.cleanup()


def slim(source: str, *, documented: bool) -> str:
    """`source` with comments, docstrings and blanks emptied; `documented` keeps the docstrings of public names."""
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    for first, last in _docstrings(ast.parse(source), documented):
        opening = lines[0].rstrip() + '"""\n' if first == 1 else "\n"
        lines[first - 1 : last] = [opening] + ["\n"] * (last - first)
    return _tight("".join(lines))


def _tight(source: str) -> str:
    """`source` without the blanks that its program does not need: around operators, and all but one of an indent."""
    lines = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    cuts: list[tuple[int, int, int, str]] = []  # line, first and last column, what stands there instead
    level = inside = 0
    before: tokenize.TokenInfo | None = None  # None: the next token begins a statement
    for token in tokens:
        level += (token.type == tokenize.INDENT) - (token.type == tokenize.DEDENT)
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL):
            continue
        row, column = token.start
        if before is None:
            cuts.append((row, 0, column, " " * level))
        elif before.end[0] < row:
            cuts.append((row, 0, column, ""))
        elif tokenize.OP in (before.type, token.type) and not inside:
            cuts.append((row, before.end[1], column, ""))
        # Since Python 3.12 what an f-string holds is tokens too, whose blanks can be text.
        name = tokenize.tok_name[token.type]
        inside += name.endswith("STRING_START") - name.endswith("STRING_END")
        before = None if token.type == tokenize.NEWLINE else token
    for row, first, last, text in reversed(cuts):
        if row <= len(lines):
            lines[row - 1] = lines[row - 1][:first] + text + lines[row - 1][last:]
    return "".join(lines)


def _docstrings(node: ast.AST, documented: bool) -> list[tuple[int, int]]:
    """First and last lines of texts that stand alone in bodies of several statements; a module's own if it is long."""
    found = []
    body = getattr(node, "body", [])
    for place, child in enumerate(body if isinstance(body, list) else []):
        text = child.value if isinstance(child, ast.Expr) else None
        lonely = isinstance(text, ast.Constant) and isinstance(text.value, str) and len(body) > 1
        short = child.lineno == child.end_lineno and not place and isinstance(node, ast.Module)
        if lonely and not documented and not short:
            found.append((child.lineno, child.end_lineno or child.lineno))
        name = getattr(child, "name", "")
        found += _docstrings(child, documented and not name.startswith("_"))
    return found
