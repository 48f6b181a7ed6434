"""The code that runtime/APPS.md shows: type-checked, and where its engine is here, run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from edgeship_runtime.facts import ModelFacts
from edgeship_runtime.manifest import read_manifest
from exports import export_tiny

PAGE = Path(__file__).parents[2] / "runtime/APPS.md"
STUBS = Path(__file__).parent / "stubs"
MAIN = """
public final class Main {
    public static void main(String[] words) {
        try (Llama llama = new Llama(words[0], 64, 1)) {
            int[] tokens = llama.tokenize(words[1].getBytes(java.nio.charset.StandardCharsets.UTF_8));
            for (int i = 0; i < 8; i++) {
                tokens = new int[] {llama.next(tokens)};
                System.out.println("token=" + tokens[0] + " " + llama.piece(tokens[0]).length);
            }
            System.out.println("full=" + llama.next(new int[600]));
        }
    }
}
"""


def shown(name: str) -> str:
    """The code of a file on the page."""
    found = re.search(rf"```(?:java|cpp)\n// {re.escape(name)}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, name
    return found[1]


def compile_java(folder: Path, sources: dict[str, str], *extra: Path) -> None:
    javac = shutil.which("javac")
    if javac is None:
        pytest.skip("javac is not here (Debian: apt install openjdk-17-jdk-headless)")
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = [*(folder / name for name in sources), *extra]
    command = [javac, "-Xlint:all", "-Werror", "--release", "8", "-Xlint:-options", "-d", str(folder), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_onnx_on_android_type_checks(tmp_path: Path) -> None:
    compile_java(tmp_path, {"Decoder.java": shown("Decoder.java")}, *STUBS.glob("*.java"))


def test_gguf_on_a_desktop_jvm(tmp_path: Path) -> None:
    """The shown JNI with llama-cpp-python's own libraries: the tokens are the Python runtime's."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    import edgeship_runtime
    from edgeship.ship.llamacpp_wheel import VERSION, cache_directory

    compile_java(tmp_path, {"Llama.java": shown("Llama.java"), "Main.java": MAIN})
    source = cache_directory() / f"llama_cpp_python-{VERSION}.tar.gz"
    home = Path(str(shutil.which("javac"))).resolve().parents[1]
    if not source.is_file() or not (home / "include/jni.h").is_file() or shutil.which("g++") is None:
        pytest.skip("llama.cpp's source (make runner-android), jni.h or g++ is not here")
    libraries = Path(llama_cpp.__file__).parent / "lib"
    with tarfile.open(source) as archive:
        headers = [m for m in archive if re.search(r"vendor/llama.cpp/(ggml/)?include/[^/]+\.h$", m.name)]
        archive.extractall(tmp_path / "source", members=headers, filter="data")
    llama = tmp_path / f"source/llama_cpp_python-{VERSION}/vendor/llama.cpp"
    (tmp_path / "llama_jni.cpp").write_text(shown("llama_jni.cpp"))
    folders = [llama / "include", llama / "ggml/include", home / "include", home / "include/linux"]
    command = ["g++", "-std=c++17", "-Wall", "-Werror", "-shared", "-fPIC", *(f"-I{each}" for each in folders)]
    command += ["-o", str(tmp_path / "libedgeship_llama.so"), str(tmp_path / "llama_jni.cpp")]
    command += [f"-L{libraries}", "-lllama", f"-Wl,-rpath,{libraries}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    artifact = export_tiny(tmp_path / "made", "gguf") / "gguf"
    prompt = "What is the opposite of hot?"
    java = ["java", f"-Djava.library.path={tmp_path}", "-cp", str(tmp_path), "Main"]
    done = subprocess.run(
        [*java, str(artifact / "tiny-Q4_0.gguf"), prompt], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with edgeship_runtime.load(artifact, engine="llamacpp", threads=1) as model:
        new, tokens = model.encode(prompt), []
        for _ in range(8):
            tokens.append(int(model.engine.evaluate(new).argmax()))
            new = tokens[-1:]
    assert [int(n) for n in re.findall(r"token=(-?\d+)", done.stdout)] == tokens
    assert "full=-1" in done.stdout, "a full context is no crash"


def test_fields_are_those_of_the_manifest(tmp_path: Path) -> None:
    from edgeship import cli

    assert cli.run(["export", "tiny-int4", "--format", "onnx", "--out", str(tmp_path), "--json"]) == 0
    folder = tmp_path / "tiny-int4/onnx"
    top = json.loads((folder / "edgeship.json").read_text())
    named = re.findall(r"^\| (`[a-z_.`, ]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    fields = [name for row in named for name in re.findall(r"`([a-z_.]+)`", row)]
    known = [name for name in fields if name.partition(".")[0] in top]
    assert len(known) > 12
    for name in known:
        value = top
        for part in name.split("."):
            assert part in value, name
            value = value[part]
    facts = read_manifest(folder).model
    assert isinstance(facts, ModelFacts)
    import onnx

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    shapes = {
        each.name: [d.dim_value for d in each.type.tensor_type.shape.dim] for each in (*graph.input, *graph.output)
    }
    assert {"input_ids", "attention_mask", "logits"} <= shapes.keys()
    last = facts.layers - 1
    assert shapes[f"past_key_values.{last}.value"][1::2] == [facts.kv_heads, facts.head_dim]
    assert f"present.{last}.key" in shapes
    assert len(shapes) == 3 + 4 * facts.layers
