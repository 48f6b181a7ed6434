"""Leaves comments and blanks out of the wheel, and of what is no public API docstrings and the types of functions.

Boards have small disks and slow links. Lines stay where they are, so a traceback of an installed wheel points into the
repository's files.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "edgeship_runtime"
PUBLIC = ("__init__.py", "answer.py", "errors.py", "model.py", "sampling.py")
"""Modules whose docstrings `help()` is asked for, and whose types a checker."""


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
    for first, last, rest in _docstrings(ast.parse(source), documented):
        lines[first - 1 : last] = [f"{rest}\n"] + ["\n"] * (last - first)
    return _tight(_untyped("".join(lines), documented))


TYPING = ("collections.abc", "numpy.typing", "types", "typing")
"""Modules of names for types; of what is imported from them only what the rest of a module uses is left."""


def _untyped(source: str, documented: bool) -> str:
    """`source` without types that nothing evaluates: of functions and variables, of classes' fields none.

    Of private functions alone if `documented`.
    """
    lines = [line.encode() for line in source.splitlines(keepends=True)]  # columns of a tree are bytes

    def cut(first: int, start: int, last: int, end: int) -> None:
        """Blanks from column `start` of line `first` to column `end` of line `last`."""
        for row in range(first - 1, last):
            text = lines[row].rstrip(b"\n")
            a, b = start if row == first - 1 else 0, end if row == last - 1 else len(text)
            lines[row] = (text[:a] + b" " * (b - a) + text[b:]).rstrip() + b"\n"

    def visit(node: ast.AST, typed: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            typed = documented and (not node.name.startswith("_") or node.name.startswith("__"))
            if not typed:
                _cut_function(node, lines, cut)
        if isinstance(node, ast.AnnAssign) and node.value and not typed and node.lineno == node.annotation.end_lineno:
            cut(node.lineno, node.target.end_col_offset or 0, node.lineno, _end(node.annotation))
        for child in ast.iter_child_nodes(node):
            visit(child, typed or isinstance(node, ast.ClassDef))

    visit(ast.parse(source), documented)
    bare = b"".join(lines).decode()
    return bare if documented else _imported(bare)


def _cut_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[bytes], cut: Callable[[int, int, int, int], None]
) -> None:
    given = node.args
    for each in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
        if each and each.annotation:
            kind = each.annotation
            cut(each.lineno, each.col_offset + len(each.arg.encode()), kind.end_lineno or 0, _end(kind))
    kind = node.returns
    if kind and kind.lineno == kind.end_lineno:  # over several lines the statement would end after the first
        cut(kind.lineno, lines[kind.lineno - 1].rindex(b"->", 0, kind.col_offset), kind.lineno, _end(kind))


def _end(node: ast.expr) -> int:
    return node.end_col_offset or 0


def _imported(source: str) -> str:
    """`source` without imports for types alone, whose uses are gone."""
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    fields = any(isinstance(node, ast.AnnAssign) for node in ast.walk(tree))  # which may name what comes after them
    for node in ast.walk(tree):
        names = ""
        if isinstance(node, ast.ImportFrom) and node.module in TYPING:
            names = ", ".join(each.name for each in node.names if each.name in used and each.name != "TYPE_CHECKING")
        elif not (_for_checkers(node) or (_of_the_future(node) and not fields)):
            continue
        assert isinstance(node, ast.stmt)
        first, last = node.lineno, node.end_lineno or 0
        kept = f"from {getattr(node, 'module', '')} import {names}" if names else ""
        lines[first - 1 : last] = [f"{kept}\n"] + ["\n"] * (last - first)
    return "".join(lines)


def _for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _of_the_future(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


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


def _docstrings(node: ast.AST, documented: bool) -> list[tuple[int, int, str]]:
    """First and last lines of texts that stand alone, and what is left of them: where a body is no more, a number."""
    found = []
    body = getattr(node, "body", [])
    for child in body if isinstance(body, list) else []:
        text = child.value if isinstance(child, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str) and not documented:
            rest = "" if len(body) > 1 or isinstance(node, ast.Module) else " " * child.col_offset + "0"
            found.append((child.lineno, child.end_lineno or child.lineno, rest))
        name = getattr(child, "name", "")
        found += _docstrings(child, documented and not name.startswith("_"))
    return found
