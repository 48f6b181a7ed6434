"""Both formats of one export hold the same numbers, and a single changed byte is found and named."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import exports
from checkpoints import write_checkpoint
from edgeship.diff import diff
from edgeship.errors import ArtifactError, UsageError
from edgeship.progress import Silent

pytest.importorskip("gguf")

INT8 = {"body": "int8", "embeddings": "int8", "head": "int8"}
UNTIED = {"body": "int4", "embeddings": "int8", "head": "int4"}


def export(tmp_path: Path, model_type: str = "qwen2", tied: bool = True, **fields: object) -> Path:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model_type, tied=tied)
    recipe = exports.recipe(formats=["onnx", "gguf"], **fields)
    return exports.built(recipe, tmp_path / "out", ("onnx", "gguf"), checkpoint=checkpoint)


@pytest.mark.parametrize("scheme", [{}, INT8, UNTIED, exports.FLOAT32], ids=["int4", "int8", "mixed", "float32"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_formats_of_one_recipe_are_equal(model_type: str, tied: bool, scheme: dict[str, str], tmp_path: Path) -> None:
    artifact = export(tmp_path, model_type, tied, **({"scheme": scheme} if scheme else {}))
    found = diff(artifact, Silent())
    tensors = onnx.load(str(artifact / "onnx" / "model.onnx"), load_external_data=False).graph.initializer
    layers = {t.name.split(".")[1] for t in tensors if t.name.startswith("layers.")}
    assert len(layers) == 2
    assert found.different == ()
    per_layer = 2 + 7 + {"qwen2": 3, "qwen3": 2, "llama": 0}[model_type]  # norms, products, biases or norms of q and k
    separate_head = not tied or scheme == UNTIED
    assert found.tensors == 2 * per_layer + 2 + separate_head


def test_a_changed_byte_is_found_and_its_tensor_named(tmp_path: Path) -> None:
    artifact = export(tmp_path)
    graph = onnx.load(str(artifact / "onnx" / "model.onnx"), load_external_data=False)
    tensor = next(t for t in graph.graph.initializer if t.name == "layers.1.attn.qkv.weight")
    where = {each.key: each.value for each in tensor.external_data}
    with (artifact / "onnx" / "model.onnx.data").open("r+b") as file:
        file.seek(int(where["offset"]) + int(where["length"]) - 1)  # the last row: of v
        last = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([last ^ 0x10]))
    (found,) = diff(artifact, Silent()).different
    assert (found.name, found.different) == ("blk.1.attn_v.weight", 1)
    assert found.largest > 0


def test_one_format_alone_cannot_be_compared(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    artifact = exports.export(checkpoint, tmp_path / "out").parent
    with pytest.raises(UsageError, match="no gguf/"):
        diff(artifact, Silent())


@pytest.mark.parametrize("name", ["onnx/model.onnx", "onnx/model.onnx.data", "gguf"])
def test_a_cut_file_is_an_error_of_the_artifact(name: str, tmp_path: Path) -> None:
    artifact = export(tmp_path)
    path = artifact / name if name != "gguf" else next((artifact / name).glob("*.gguf"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError):
        diff(artifact, Silent())
