"""llama.cpp's library: how it is found and loaded, and what is said where it is missing, broken or too old."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgeship_runtime
from command_line import ROOT, Ended
from edgeship_runtime.engines import llama_library, llamacpp
from edgeship_runtime.errors import ArtifactError, DependencyError
from edgeship_runtime.manifest import read_manifest
from gguf_bytes import UNRUNNABLE
from toy_artifact import write_toy
from toy_gguf import ToyGguf, needs_llamacpp, write_toy_gguf, write_toy_gguf_artifact

pytestmark = needs_llamacpp


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyGguf:
    return write_toy_gguf(tmp_path_factory.mktemp("toy") / "toy.gguf", head_dim=32)


def run_python(program: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{path}:{ROOT / 'runtime'}"}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


class TestLibrary:
    def test_only_the_declarations_are_imported_and_the_rest_can_follow(self, toy: ToyGguf) -> None:
        program = f"""
import sys, types, os
import edgeship_runtime
with edgeship_runtime.load({str(toy.path)!r}, threads=1) as model:
    model.generate("x", max_tokens=2)
assert "llama_cpp" not in sys.modules and "llama_cpp.llama" not in sys.modules
assert "GOMP_SPINCOUNT" not in os.environ
sys.modules.setdefault("diskcache", types.ModuleType("diskcache"))
import llama_cpp
import llama_cpp.llama_cpp as low
assert llama_cpp.Llama and low.llama_decode is llama_cpp.llama_decode
print("so far", file=sys.stderr)
with edgeship_runtime.load({str(toy.path)!r}, threads=1) as model:
    model.generate("x", max_tokens=2)
"""
        done = run_python(program)
        assert done.stderr.startswith("so far\n"), "from there on the package's own logger speaks"
        assert (done.returncode, done.stdout) == (0, "")

    @pytest.mark.parametrize(
        ("stub", "says"),
        [
            ("raise ImportError('hidden')", "'llama-cpp-python', which is not installed"),
            ("raise RuntimeError('libgomp.so.1: cannot open')", "libgomp.so.1: cannot open"),
            ("llama_log_set = None", "the one installed lacks llama_decode"),
        ],
    )
    def test_a_missing_or_broken_package(self, toy: ToyGguf, tmp_path: Path, stub: str, says: str) -> None:
        (tmp_path / "llama_cpp").mkdir()
        (tmp_path / "llama_cpp" / "__init__.py").write_text("")
        (tmp_path / "llama_cpp" / "llama_cpp.py").write_text(stub)
        program = f"""
import json, edgeship_runtime
from edgeship_runtime.errors import EdgeshipRuntimeError
try:
    edgeship_runtime.load({str(toy.path)!r})
except EdgeshipRuntimeError as error:
    print(json.dumps(error.to_json()))
"""
        error = json.loads(run_python(program, str(tmp_path)).stdout)
        assert (error["kind"], error["exit_code"]) == ("dependency", 10)
        assert says in error["message"]
        assert "pip install 'edgeship-runtime[llamacpp]'" in error["hint"]
        assert "ten minutes" in error["hint"] or "lacks" in says

    def test_the_reason_is_heard_though_another_took_the_log(self, tmp_path: Path) -> None:
        make, reason = UNRUNNABLE["an unknown architecture"]
        path = tmp_path / "model.gguf"
        path.write_bytes(make())
        llama_cpp = llama_library.library()
        other = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(other, None)
        with pytest.raises(ArtifactError, match=reason):
            edgeship_runtime.load(path, threads=1)

    def test_an_older_one_than_the_artifact_needs(self, tmp_path: Path) -> None:
        toy = write_toy_gguf_artifact(tmp_path / "gguf")
        manifest = replace(read_manifest(toy.directory), versions={"llama-cpp-python": ">=99"})
        with pytest.raises(DependencyError, match=r"needs llama-cpp-python >=99"):
            llamacpp.open_engine(toy.directory, manifest, context=8, threads=1)

    def test_an_onnx_artifact_has_no_such_options(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        write_toy(tmp_path / "onnx")
        ended = command("run", tmp_path / "onnx", "x", "--kv-type", "f16")
        assert ended.code == 2
        assert "no option 'kv_type'" in ended.err
