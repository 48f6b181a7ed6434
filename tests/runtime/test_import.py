"""What importing the runtime brings, and what it says when an optional package is missing."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edgeship_runtime
from toy_artifact import write_toy

RUNTIME = Path(__file__).parents[2] / "runtime"


def python(program: str, *arguments: str, path: Path | None = None) -> str:
    environment = {"PYTHONPATH": f"{path}:{RUNTIME}" if path else str(RUNTIME), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_but_the_standard_library_and_numpy() -> None:
    program = "import sys; before = set(sys.modules); import edgeship_runtime; print(*(set(sys.modules) - before))"
    roots = {name.partition(".")[0] for name in python(program).split()}
    assert roots - set(sys.stdlib_module_names) <= {"edgeship_runtime", "numpy"}


def test_load_and_its_modules_import_no_optional_package_until_it_is_used() -> None:
    program = (
        "import sys, edgeship_runtime; edgeship_runtime.load; edgeship_runtime.GenerationOptions; print(*sys.modules)"
    )
    loaded = {name.partition(".")[0] for name in python(program).split()}
    assert not loaded & {"onnxruntime", "tokenizers", "jinja2"}


def test_a_command_that_does_nothing_imports_nothing_heavy() -> None:
    program = "import sys; from edgeship_runtime.cli import main; assert main(['--version']) == 0; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python(program).split()}
    assert not loaded & {"numpy", "onnxruntime", "tokenizers", "jinja2"}


def test_public_names() -> None:
    for name in edgeship_runtime.__all__:
        assert getattr(edgeship_runtime, name) is not None
        assert name in dir(edgeship_runtime)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgeship_runtime.nothing


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(tmp_path: Path, package: str) -> None:
    toy = write_toy(tmp_path / "onnx")
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / f"{package}.py").write_text("raise ImportError('hidden by the test')")
    program = """
import sys, json
import edgeship_runtime
from edgeship_runtime.errors import EdgeshipRuntimeError
try:
    edgeship_runtime.load(sys.argv[1])
except EdgeshipRuntimeError as error:
    print(json.dumps([error.kind, error.exit_code, error.message, error.hint]))
"""
    kind, code, message, hint = json.loads(python(program, str(toy.directory), path=tmp_path / "hide"))
    assert (kind, code) == ("dependency", 10)
    assert repr(package) in message
    assert hint == "pip install 'edgeship-runtime[ort]'"


def test_without_jinja2_raw_text_works_and_messages_say_what_is_missing(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "onnx")
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "jinja2.py").write_text("raise ImportError('hidden by the test')")
    program = """
import sys
import edgeship_runtime
model = edgeship_runtime.load(sys.argv[1], threads=1)
model.generate("raw", max_tokens=2)
try:
    model.generate([{"role": "user", "content": "hi"}])
except edgeship_runtime.errors.DependencyError as error:
    print(error)
"""
    assert "pip install 'edgeship-runtime[ort]'" in python(program, str(toy.directory), path=tmp_path / "hide")


def test_the_wheel_is_small_and_holds_the_package_alone(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="building a wheel offline needs hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=RUNTIME, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    packed = {member.filename: member.compress_size for member in archive.infolist()}
    assert {name.partition("/")[0] for name in packed} == {
        "edgeship_runtime",
        f"edgeship_runtime-{edgeship_runtime.__version__}.dist-info",
    }
    assert wheel.stat().st_size < 200_000
    core = {
        name: size
        for name, size in packed.items()
        if name.startswith("edgeship_runtime/") and name.split("/")[1] not in ("server", "talk")
    }
    assert sum(core.values()) < 100_000, "what runs and verifies an artifact, without conversations and the server"
    archive.extractall(tmp_path / "installed")
    program = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
for path in sorted(root.rglob("*.py")):
    name = path.relative_to(root).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    if not name.endswith("__main__"):
        assert importlib.import_module(name).__file__ == str(path)
"""
    python(program, str(tmp_path / "installed"))
