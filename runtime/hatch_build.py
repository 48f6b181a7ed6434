"""Leaves comments out of the wheel, and docstrings but those of the public API: boards have small disks and slow links.

Lines stay where they are, so a traceback of an installed wheel points into the repository's files.
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
    """`source` with comments and docstrings emptied; `documented` keeps those of public names."""
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    for first, last in _docstrings(ast.parse(source), documented):
        lines[first - 1 : last] = ["\n"] * (last - first + 1)
    return "".join(lines)


def _docstrings(node: ast.AST, documented: bool) -> list[tuple[int, int]]:
    """First and last lines of texts that stand alone in bodies of several statements, but the module's first."""
    found = []
    body = getattr(node, "body", [])
    for place, child in enumerate(body if isinstance(body, list) else []):
        text = child.value if isinstance(child, ast.Expr) else None
        lonely = isinstance(text, ast.Constant) and isinstance(text.value, str) and len(body) > 1
        if lonely and not documented and (place or not isinstance(node, ast.Module)):
            found.append((child.lineno, child.end_lineno or child.lineno))
        name = getattr(child, "name", "")
        found += _docstrings(child, documented and not name.startswith("_"))
    return found
