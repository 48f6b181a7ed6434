"""What the wheel's modules lack: comments, blanks and inner docstrings, and nothing else."""

from __future__ import annotations

import ast
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

RUNTIME = Path(__file__).parents[2] / "runtime"
SOURCES = sorted((RUNTIME / "edgeship_runtime").rglob("*.py"))


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    pytest.importorskip("hatchling", reason="the build hook is hatchling's")
    spec = spec_from_file_location("hatch_build", RUNTIME / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TYPING = ("__future__", "collections.abc", "numpy.typing", "types", "typing")


class Untyped(ast.NodeTransformer):
    """Drops what only a type checker reads: types of functions and variables, and the imports for them."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]  # noqa: N815

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.body = [each if isinstance(each, ast.AnnAssign) else self.visit(each) for each in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        return ast.Assign([node.target], node.value, lineno=0) if node.value else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | None:
        return None if node.module in TYPING else node

    def visit_If(self, node: ast.If) -> ast.stmt | None:
        self.generic_visit(node)
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def bare(source: str) -> str:
    """The program of a module, without its texts that stand alone, without types and without places in the file."""
    tree = Untyped().visit(ast.parse(source))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [
                child for child in body if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
            ]
            body[:] = kept or [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(RUNTIME).as_posix())
def test_the_program_and_its_lines_are_the_same(hook: ModuleType, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for documented in (False, True):
        slim = hook.slim(source, documented=documented)
        assert bare(slim) == bare(source)
        places = [(node.lineno, type(node)) for node in ast.walk(ast.parse(slim)) if isinstance(node, ast.FunctionDef)]
        assert places == [
            (node.lineno, type(node)) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)
        ]
        assert len(slim.splitlines()) == len(source.splitlines())


def test_what_is_left_out(hook: ModuleType) -> None:
    source = '''\
"""Module."""
x = "# no comment"  # comment
"""About x."""


class Public:
    """Public."""

    y = 1
    """About y."""

    def _private(self):
        """Private."""
        return f"{self!r}#"  # comment


def only():
    """All there is."""
'''
    slim = hook.slim(source, documented=False)
    assert "comment" not in slim.replace("# no comment", "")
    assert slim.startswith('\nx="# no comment"\n\n')
    assert "Public." not in slim
    assert slim.endswith("\ndef only():\n 0\n")
    assert "\n def _private(self):\n" in slim
    documented = hook.slim(source, documented=True)
    assert all(text in documented for text in ("Public.", "About x.", "About y."))
    assert "Private." not in documented
    assert sys.version_info >= (3, 11)


def test_types_that_nothing_evaluates_go(hook: ModuleType) -> None:
    source = '''\
"""Module."""
from __future__ import annotations
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast
if TYPE_CHECKING:
    from decimal import (
        Decimal,
    )
known: dict[str, int] = {"ü": 1}
class Public(Protocol):
    y: int = 1
    def public(self, é: Mapping[str, Decimal], *rest: int, key: Sequence[
        int] = (), **more: int) -> dict[str, int]:
        out: list[int] = [cast("int", é)]
        return out
def _private(x: Sequence[int] = (1,)) -> list[int]: return x
async def later(x: Decimal) -> Decimal: return x
'''
    slim = hook.slim(source, documented=False)
    assert slim.splitlines() == [
        "",
        "from __future__ import annotations",
        "",
        "from typing import Protocol,cast",
        *[""] * 4,
        'known={"ü":1}',
        "class Public(Protocol):",
        " y:int=1",
        " def public(self,é,*rest,key",
        "=(),**more):",
        '  out=[cast("int",é)]',
        "  return out",
        "def _private(x=(1,)):return x",
        "async def later(x):return x",
    ]
    documented = hook.slim(source, documented=True)
    assert "from collections.abc import Mapping,Sequence" in documented
    assert "def public(self,é:Mapping[str,Decimal]" in documented
    assert "  out:list[int]=[" in documented
    assert "def _private(x=(1,)):return x" in documented


def test_blanks_that_are_text_stay(hook: ModuleType) -> None:
    source = '''\
"""Module: its first line.

What it says beyond that.
"""
if True:
    text = f"{1 + 1 = } { {2: 3} }  # text" + """
    two  = lines
""" \\
        "."
    long = (
        1.5 + -2
    )
'''
    slim = hook.slim(source, documented=False)
    assert slim.startswith('\n\n\n\nif True:\n text=f"')
    assert "\n    two  = lines\n" in slim
    assert "\n1.5+-2\n" in slim
    ran: dict[str, dict[str, object]] = {"source": {}, "slim": {}}
    exec(source, ran["source"])
    exec(slim, ran["slim"])
    assert ran["slim"]["text"] == ran["source"]["text"]
    assert ran["slim"]["long"] == -0.5
    assert hook.slim(source, documented=True).startswith('"""Module: its first line.\n\nWhat')
