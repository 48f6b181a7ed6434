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


def bare(source: str) -> str:
    """The program of a module, without its texts that stand alone and without places in the file."""
    tree = ast.parse(source)
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
    assert slim.startswith('"""Module."""\nx="# no comment"\n\n')
    assert "Public." not in slim
    assert '"""All there is."""' in slim
    assert "\n def _private(self):\n" in slim
    documented = hook.slim(source, documented=True)
    assert all(text in documented for text in ("Public.", "About x.", "About y."))
    assert "Private." not in documented
    assert sys.version_info >= (3, 11)


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
    assert slim.startswith('"""Module: its first line."""\n\n\n\nif True:\n text=f"')
    assert "\n    two  = lines\n" in slim
    assert "\n1.5+-2\n" in slim
    ran: dict[str, dict[str, object]] = {"source": {}, "slim": {}}
    exec(source, ran["source"])
    exec(slim, ran["slim"])
    assert ran["slim"]["text"] == ran["source"]["text"]
    assert ran["slim"]["long"] == -0.5
    assert hook.slim(source, documented=True).startswith('"""Module: its first line.\n\nWhat')
