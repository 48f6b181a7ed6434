"""Wrong input of every kind through the real commands: one screen, a hint, an exit code, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import narrow, random_weights, write_checkpoint, write_safetensors, write_weights
from commands import assert_refused, run
from exports import export

pytestmark = pytest.mark.e2e

USAGE, RECIPE, PLAN, SOURCE, CHECKPOINT, ARCHITECTURE, ARTIFACT = 2, 3, 4, 5, 6, 7, 8
CONTEXT = 11

VALID = """\
source:
  host: local
  repo: me/model
  path: {path}
scheme: {body: int4, embeddings: int8, head: int8}
context: 64
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("good"), layers=1)


@pytest.fixture(scope="module")
def artifact(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(good, tmp_path_factory.mktemp("artifact"))


def everything(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*"))


# Recipes: the text of the file, and what the message must say.

RECIPES: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "unknown key": (VALID + "contxt: 3\n", ("bad.yaml:7", "contxt", "context")),
    "wrong type": (VALID.replace("context: 64", "context: many"), ("bad.yaml:6", "context")),
    "unknown scheme": (VALID.replace("body: int4", "body: int3"), ("bad.yaml:5", "int3", "int4")),
    "group size": (VALID.replace("head: int8", "head: int8, group_size: 48"), ("48", "32")),
    "no source": ("context: 64\n", ("source",)),
    "duplicate key": (VALID + "context: 65\n", ("context",)),
    "not a mapping": ("- a\n- b\n", ("mapping",)),
    "empty": ("", ()),
    "not UTF-8": (b"source: \xff\xfe\n", ("UTF-8",)),
    "tabs": ("source:\n\trepo: a/b\n", ("bad.yaml:2",)),
    "alias bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nsource: *c\n", ()),
    "extends nothing": ("extends: qwen2.5-1.5b-int5\n", ("qwen2.5-1.5b-int",)),
    "extends itself": ("extends: ./bad.yaml\n", ()),
    "context below zero": (VALID.replace("context: 64", "context: -1"), ("context",)),
    "not a number": (VALID + "sampling: {temperature: .nan}\n", ("temperature",)),
    "local without a path": ("source: {host: local, repo: a/b}\n", ("path",)),
    "two errors": (VALID.replace("body: int4", "body: int3") + "contxt: 3\n", ("bad.yaml:5", "bad.yaml:7")),
}


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("command", ["plan", "export"])
def test_recipes(tmp_path: Path, good: Path, case: str, command: str) -> None:
    text, says = RECIPES[case]
    recipe = tmp_path / "bad.yaml"
    recipe.write_bytes(text if isinstance(text, bytes) else text.replace("{path}", str(good)).encode())
    out = ["--out", tmp_path / "out"] if command == "export" else []
    assert_refused(run("edgeship", command, recipe, *out), RECIPE, *says)
    assert everything(tmp_path) == ["bad.yaml"]


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    assert_refused(run("edgeship", "plan", "qwen2.5-1.5b-itn4"), RECIPE, "qwen2.5-1.5b-int4")


# Checkpoints: what is done to a good one, the exit code, and what the message must say.

Damage = Callable[[Path], Any]


def edit(name: str, **changes: Any) -> Damage:
    def apply(path: Path) -> None:
        values = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not None}))

    return apply


def text(name: str, content: str) -> Damage:
    return lambda path: (path / name).write_text(content)


def remove(name: str) -> Damage:
    return lambda path: (path / name).unlink()


def weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Damage:
    def apply(path: Path) -> None:
        values = random_weights(json.loads((path / "config.json").read_text()))
        change(values)
        write_weights(path, values)

    return apply


def cut(path: Path) -> None:
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-1000])


def header(blob: bytes) -> Damage:
    return lambda path: (path / "model.safetensors").write_bytes(len(blob).to_bytes(8, "little") + blob)


def missing_shard(path: Path) -> None:
    (path / "model.safetensors").unlink()
    write_weights(path, random_weights(json.loads((path / "config.json").read_text())), shards=3)
    (path / "model-00002-of-00003.safetensors").unlink()


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def eight_bit_floats(path: Path) -> None:
    values = random_weights(json.loads((path / "config.json").read_text()))
    tensors = {n: ("BF16", narrow(w, "BF16")) for n, w in values.items()}
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = ("F8_E4M3", np.zeros(values[name].shape, np.uint8))
    write_safetensors(path / "model.safetensors", tensors)


NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
CHECKPOINTS: dict[str, tuple[Damage, int, tuple[str, ...]]] = {
    "no config": (remove("config.json"), CHECKPOINT, ("config.json",)),
    "config is not JSON": (text("config.json", "{"), CHECKPOINT, ("config.json",)),
    "config is a list": (text("config.json", "[]"), CHECKPOINT, ("config.json",)),
    "unknown model": (edit("config.json", model_type="mamba"), ARCHITECTURE, ("mamba", "qwen2")),
    "unknown activation": (edit("config.json", hidden_act="gelu"), ARCHITECTURE, ("hidden_act", "silu")),
    "size is text": (edit("config.json", hidden_size="64"), ARCHITECTURE, ("hidden_size",)),
    "size is absent": (edit("config.json", intermediate_size=None), ARCHITECTURE, ("intermediate_size",)),
    "heads do not share": (edit("config.json", num_key_value_heads=3), ARCHITECTURE, ("num_key_value_heads",)),
    "unknown rope": (edit("config.json", rope_scaling={"type": "longrope"}), ARCHITECTURE, ("longrope", "yarn")),
    "sliding window": (edit("config.json", use_sliding_window=True), ARCHITECTURE, ("use_sliding_window",)),
    "truncated weights": (cut, CHECKPOINT, ("model.safetensors",)),
    "no weights": (remove("model.safetensors"), CHECKPOINT, ("safetensors",)),
    "header past the end": (text("model.safetensors", "\xff" * 9), CHECKPOINT, ("model.safetensors",)),
    "header is no JSON": (header(b"[[[["), CHECKPOINT, ("model.safetensors",)),
    "offsets overlap": (
        header(
            json.dumps({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}).encode() + b" " * 8
        ),
        CHECKPOINT,
        ("model.safetensors",),
    ),
    "shard missing": (missing_shard, CHECKPOINT, ("model-00002-of-00003.safetensors",)),
    "tensor missing": (weights(lambda w: w.pop(NORM)), CHECKPOINT, (NORM,)),
    "tensor unused": (weights(lambda w: w.update(extra=w[NORM])), CHECKPOINT, ("extra",)),
    "tensor of another shape": (weights(lambda w: w.update({UP: w[UP][1:]})), CHECKPOINT, (UP,)),
    "8-bit floats": (eight_bit_floats, CHECKPOINT, ("F8_E4M3",)),
    "pickle": (pickled, CHECKPOINT, ("pytorch_model.bin", "safetensors")),
    "not a number": (weights(lambda w: w[UP].__setitem__((0, 0), np.nan)), CHECKPOINT, (UP,)),
    "no tokenizer": (remove("tokenizer.json"), CHECKPOINT, ("tokenizer.json",)),
    "tokenizer is no JSON": (text("tokenizer.json", "{"), CHECKPOINT, ("tokenizer.json",)),
    "tokenizer is not one": (text("tokenizer.json", "{}"), CHECKPOINT, ("tokenizer.json",)),
    "template does not parse": (edit("tokenizer_config.json", chat_template="{% if %}"), CHECKPOINT, ("template",)),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(tmp_path: Path, good: Path, case: str) -> None:
    damage, code, says = CHECKPOINTS[case]
    checkpoint = shutil.copytree(good, tmp_path / "checkpoint")
    damage(checkpoint)
    recipe = tmp_path / "ok.yaml"
    recipe.write_text(VALID.replace("{path}", str(checkpoint)))
    before = everything(tmp_path)
    assert_refused(run("edgeship", "export", recipe, "--out", tmp_path / "out"), code, *says)
    assert [p for p in everything(tmp_path) if p != "out"] == before


def test_weights_that_do_not_divide_into_groups_are_refused_by_the_plan(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", ff=172)
    recipe = tmp_path / "ok.yaml"
    recipe.write_text(VALID.replace("{path}", str(checkpoint)))
    assert_refused(run("edgeship", "export", recipe, "--out", tmp_path / "out"), PLAN, "down", "172")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_the_recipes_model(good: Path, tmp_path: Path) -> None:
    done = run("edgeship", "export", "qwen2.5-0.5b-int4", "--checkpoint", good, "--out", tmp_path)
    assert_refused(done, PLAN, "hidden_size", "896")


# Command lines

PIPELINE_LINES: dict[str, tuple[list[str], int]] = {
    "unknown command": (["exprot"], USAGE),
    "unknown option": (["export", "tiny-int4", "--quick"], USAGE),
    "no recipe": (["export"], USAGE),
    "size without a number": (["export", "tiny-int4", "--max-ram", "lots"], USAGE),
    "size below what any export needs": (["export", "tiny-int4", "--max-ram", "1MB"], PLAN),
    "unknown format": (["export", "tiny-int4", "--format", "tflite"], USAGE),
    "checkpoint that is not there": (["export", "tiny-int4", "--checkpoint", "/nowhere"], CHECKPOINT),
    "offline with nothing cached": (["export", "qwen2.5-0.5b-int4"], SOURCE),
}


@pytest.mark.parametrize("case", PIPELINE_LINES)
def test_pipeline_command_lines(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    arguments, code = PIPELINE_LINES[case]
    out = ["--out", str(tmp_path / "out")] if arguments[0] == "export" else []
    assert_refused(run("edgeship", *arguments, *out), code)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert_refused(run("edgeship", "export", "tiny-int4", "--out", tmp_path / "out"), ARTIFACT, "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_errors_are_json_when_asked(tmp_path: Path) -> None:
    done = run("edgeship", "export", "tiny-nit4", "--out", tmp_path, "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["kind"], error["exit_code"]) == (RECIPE, "recipe", RECIPE)
    assert "tiny-int4" in error["message"] + error["hint"]


# Artifacts


def patch(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


def manifest(**changes: Any) -> Damage:
    return edit("edgeship.json", **changes)


def traversal(path: Path) -> None:
    values = json.loads((path / "edgeship.json").read_text())
    values["files"]["../../outside"] = {"size": 1, "sha256": "0" * 64}
    (path / "edgeship.json").write_text(json.dumps(values))


ARTIFACTS: dict[str, tuple[Damage, str]] = {
    "manifest cut short": (patch("edgeship.json", lambda b: b[:100]), "edgeship.json"),
    "manifest of a later version": (manifest(schema=99), "99"),
    "manifest that leaves the directory": (traversal, "outside"),
    "manifest with an unknown key": (manifest(exec="rm"), "exec"),
    "manifest that is a list": (text("edgeship.json", "[]"), "edgeship.json"),
    "weights missing": (remove("model.onnx.data"), "model.onnx.data"),
    "weights cut short": (patch("model.onnx.data", lambda b: b[:-4096]), "model.onnx.data"),
    "graph missing": (remove("model.onnx"), "model.onnx"),
    "graph of another size": (patch("model.onnx", lambda b: b + b"x"), "model.onnx"),
    "tokenizer missing": (remove("tokenizer.json"), "tokenizer.json"),
}


@pytest.mark.parametrize("case", ARTIFACTS)
def test_damaged_artifacts_do_not_run(tmp_path: Path, artifact: Path, case: str) -> None:
    damage, says = ARTIFACTS[case]
    copy = shutil.copytree(artifact, tmp_path / "onnx")
    damage(copy)
    assert_refused(run("edgeship-runtime", "run", copy, "hello", "--max-tokens", "2"), ARTIFACT, says)


def test_a_changed_byte_fails_verify_by_name(tmp_path: Path, artifact: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "onnx")
    patch("model.onnx.data", lambda b: b[:99] + bytes([b[99] ^ 1]) + b[100:])(copy)
    done = run("edgeship-runtime", "verify", copy, "--json")
    verdict = json.loads(done.stdout)
    assert done.returncode != 0
    assert verdict["verdict"] == "fail"
    assert "model.onnx.data" in json.dumps(verdict)


def test_a_directory_that_holds_no_artifact(tmp_path: Path) -> None:
    for command in ("run", "info", "verify", "bench", "chat"):
        extra = ["hello"] if command == "run" else []
        assert_refused(run("edgeship-runtime", command, tmp_path, *extra), ARTIFACT)
        assert_refused(run("edgeship-runtime", command, tmp_path / "nowhere", *extra), ARTIFACT)


RUNTIME_LINES: dict[str, tuple[list[str], int]] = {
    "no tokens": (["hello", "--max-tokens", "-1"], USAGE),
    "temperature below zero": (["hello", "--temperature", "-1"], USAGE),
    "temperature that is no number": (["hello", "--temperature", "nan"], USAGE),
    "top-p above one": (["hello", "--top-p", "2"], USAGE),
    "context of nothing": (["hello", "--context", "0"], USAGE),
    "context past the model's": (["hello", "--context", "100000000"], USAGE),
    "no prompt at all": ([], USAGE),
    "empty prompt": (["", "--raw"], USAGE),
    "prompt longer than the context": (["x " * 400, "--context", "32"], CONTEXT),
    "unknown option": (["hello", "--fast"], USAGE),
}


@pytest.mark.parametrize("case", RUNTIME_LINES)
def test_runtime_command_lines(artifact: Path, case: str) -> None:
    arguments, code = RUNTIME_LINES[case]
    assert_refused(run("edgeship-runtime", "run", artifact, *arguments), code)
