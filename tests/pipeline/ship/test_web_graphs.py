"""The graphs that sites add, beside the one they are made from, by onnxruntime on this processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import DTypeLike, NDArray

from edgeship.ship.half_graph import half_graph
from edgeship.ship.tiled_graph import tiled_graph
from exports import export_tiny
from tolerances import HALF_RMS_STD, TILED_LOGITS
from toy_artifact import write_toy

IDS = list(range(5, 45))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with both graphs in one folder."""
    return with_half(export_tiny(tmp_path_factory.mktemp("artifacts"), "onnx") / "onnx")


def with_half(directory: Path) -> Path:
    (directory / "half.onnx").write_bytes(half_graph((directory / "model.onnx").read_bytes()))
    return directory


def data_of(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and length in the data file of every weight."""
    found = {}
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        data = {each.key: each.value for each in tensor.external_data}
        if data:
            assert data["location"] == "model.onnx.data"
            found[tensor.name] = int(data["offset"]), int(data["length"])
    return found


def types(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {each.name: each.type for each in (*session.get_inputs(), *session.get_outputs())}


def run(path: Path, dtype: DTypeLike) -> tuple[NDArray[np.float32], list[NDArray[np.generic]]]:
    """Logits [vocab] after IDS, given in two runs, and the cache after them."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    past = [each for each in session.get_inputs() if each.name.startswith("past")]
    cache: list[NDArray[np.generic]] = [np.zeros((1, each.shape[1], 0, each.shape[3]), dtype) for each in past]
    logits, done = np.zeros(0, np.float32), 0
    for part in (IDS[:30], IDS[30:]):
        done += len(part)
        given = {"input_ids": np.array([part], np.int64), "attention_mask": np.ones((1, done), np.int64)}
        found = session.run(names, given | {each.name: value for each, value in zip(past, cache, strict=True)})
        by_name = dict(zip(names, found, strict=True))
        logits = by_name["logits"][0, -1]
        cache = [by_name[each.name.replace("past_key_values", "present")] for each in past]
    return logits, cache


# for GPUs with 16-bit floats


def test_logits(tiny: Path) -> None:
    wanted, whole = run(tiny / "model.onnx", np.float32)
    found, cache = run(tiny / "half.onnx", np.float16)
    assert (found.dtype, wanted.dtype) == (np.float32, np.float32)
    assert found.argmax() == wanted.argmax()
    difference = np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std()
    assert 0 < difference < HALF_RMS_STD
    assert {each.dtype for each in cache} == {np.dtype(np.float16)}
    assert [each.shape for each in cache] == [each.shape for each in whole]


def test_what_goes_in_and_out(tiny: Path) -> None:
    before, after = types(tiny / "model.onnx"), types(tiny / "half.onnx")
    assert list(after) == list(before)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.startswith(("past", "present"))}
    assert {after[name] for name in changed} == {"tensor(float16)"}


def test_the_weights_are_the_same_bytes(tiny: Path) -> None:
    before, after = (onnx.load(tiny / name, load_external_data=False).graph for name in ("model.onnx", "half.onnx"))
    assert list(before.initializer) == list(after.initializer)


def test_casts_of_weights_are_done_when_it_is_loaded(tiny: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(tiny / "half.onnx", options, providers=["CPUExecutionProvider"])
    weights = {each.name for each in onnx.load(tiny / "half.onnx", load_external_data=False).graph.initializer}
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    assert [node.name for node in graph.node if node.op_type == "Cast" and node.input[0] in weights] == []


@pytest.mark.parametrize("half", [False, True])
def test_an_artifact_of_another_make(tmp_path: Path, half: bool) -> None:
    """Also one whose floats have 16 bits already."""
    toy = write_toy(tmp_path / "toy", half=half)
    directory = with_half(toy.directory)
    found, cache = run(directory / "half.onnx", np.float16)
    wanted = toy.logits(IDS)[-1]
    assert np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std() < HALF_RMS_STD
    assert {each.dtype for each in cache} == {np.dtype(np.float16)}


# in tiles, for WebAssembly


@pytest.mark.parametrize("tile", [1, 20_000, 100_000])
def test_tiles_give_the_same_logits(tiny: Path, tile: int) -> None:
    """Each row of the weights gives one output, whatever lies beside it."""
    (tiny / "tiled.onnx").write_bytes(tiled_graph((tiny / "model.onnx").read_bytes(), tile))
    assert types(tiny / "tiled.onnx") == types(tiny / "model.onnx")
    wanted, found = run(tiny / "model.onnx", np.float32), run(tiny / "tiled.onnx", np.float32)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=TILED_LOGITS)
    for one, other in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TILED_LOGITS)


def test_tiles_are_small_and_cover_the_weights(tiny: Path) -> None:
    (tiny / "tiled.onnx").write_bytes(tiled_graph((tiny / "model.onnx").read_bytes(), 20_000))
    graph = onnx.load(tiny / "tiled.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    for node in products:
        sizes = {each.name: each.i for each in node.attribute}
        assert sizes["N"] * sizes["K"] * 4 <= max(20_000, 16 * sizes["K"] * 4)
    assert len(products) > len([node for node in graph.node if node.op_type == "Concat"]) > 20
    pieces = data_of(tiny / "tiled.onnx")
    for name, (offset, length) in data_of(tiny / "model.onnx").items():
        parts = sorted(place for piece, place in pieces.items() if piece.removeprefix(f"{name}.").isdigit())
        parts = parts or [pieces[name]]
        assert (parts[0][0], sum(size for _, size in parts)) == (offset, length), name
        assert [start + size for start, size in parts[:-1]] == [start for start, _ in parts[1:]], name


def test_what_is_small_enough_stays_whole(tiny: Path, tmp_path: Path) -> None:
    raw = (tiny / "model.onnx").read_bytes()
    assert onnx.load_model_from_string(tiled_graph(raw, 1 << 30)) == onnx.load_model_from_string(raw)
    toy = (write_toy(tmp_path / "toy").directory / "model.onnx").read_bytes()
    assert onnx.load_model_from_string(tiled_graph(toy, 1)) == onnx.load_model_from_string(toy)
