"""Every byte of the data file belongs to one tensor, and the graph points at exactly those."""

from __future__ import annotations

import collections
import itertools
from pathlib import Path
from typing import Any

import onnx
import pytest

from checkpoints import write_checkpoint
from edgeship.checkpoint.checkpoint import read_config
from edgeship.footprint import PAGE
from edgeship.formats.onnx.graph import make_model, operators
from edgeship.formats.onnx.layout import LINE, Layout, lay_out
from edgeship.plan import Plan, make_plan
from exports import FLOAT32, recipe

SCHEMES: dict[str, dict[str, Any]] = {
    "int4": {},
    "float32": FLOAT32,
    "head apart": {"embeddings": "float16", "head": "int4"},
}


def drawn(tmp_path: Path, model_type: str, scheme: dict[str, Any], tied: bool) -> tuple[Plan, Layout]:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model_type, tied=tied, hidden=128, ff=4096)
    plan = make_plan(recipe(scheme=scheme), read_config(checkpoint))
    return plan, lay_out(plan)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_regions_are_aligned_and_do_not_overlap(tmp_path: Path, model_type: str, scheme: str, tied: bool) -> None:
    plan, layout = drawn(tmp_path, model_type, SCHEMES[scheme], tied)
    end = 0
    for region in layout.regions.values():
        assert region.offset >= end, region
        assert region.offset % (PAGE if region.nbytes >= PAGE else LINE) == 0, region
        end = region.offset + region.nbytes
    assert end == layout.size
    stored = sum(r.nbytes for r in layout.regions.values())
    assert stored == plan.footprints["onnx"].size_bytes, "the plan promises what the file takes, but for alignment"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_places_fill_their_regions(tmp_path: Path, scheme: str) -> None:
    plan, layout = drawn(tmp_path, "qwen2", SCHEMES[scheme], tied=True)
    spans = []
    for place in layout.places:
        spans.append((place.offset, place.offset + place.rows * place.row_bytes))
        if place.scale_row_bytes:
            spans.append((place.scale_offset, place.scale_offset + place.rows * place.scale_row_bytes))
    spans += [(r.offset, r.offset + r.nbytes) for r in (layout.cos, layout.sin)]
    spans.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert sum(b - a for a, b in spans) == sum(r.nbytes for r in layout.regions.values())
    assert sorted(p.role.key for p in layout.places) == sorted(t.role.key for t in plan.stored())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_the_graph_is_valid_and_its_initializers_lie_in_the_file(tmp_path: Path, model_type: str, scheme: str) -> None:
    plan, layout = drawn(tmp_path, model_type, SCHEMES[scheme], tied=True)
    model = make_model(plan, layout, "model.onnx.data")
    (tmp_path / "model.onnx.data").write_bytes(b"")
    used = {i for node in model.graph.node for i in node.input if i}
    for tensor in model.graph.initializer:
        assert tensor.name in used, f"{tensor.name} is stored and never read"
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            at = {e.key: e.value for e in tensor.external_data}
            assert int(at["offset"]) + int(at["length"]) <= layout.size
    names = [o for node in model.graph.node for o in node.output if o]
    assert len(names) == len(set(names))
    assert used <= {*names, *(t.name for t in model.graph.initializer), *(i.name for i in model.graph.input)}


def test_a_tied_table_is_stored_once_and_read_twice(tmp_path: Path) -> None:
    plan, layout = drawn(tmp_path, "qwen2", {}, tied=True)
    model = make_model(plan, layout, "model.onnx.data")
    offsets = collections.Counter(
        e.value for t in model.graph.initializer for e in t.external_data if e.key == "offset"
    )
    assert offsets[str(layout.regions["embed.weight"].offset)] == 2
    assert "head.weight" not in layout.regions


def test_the_decode_path_is_fused(tmp_path: Path) -> None:
    plan, layout = drawn(tmp_path, "qwen2", {}, tied=True)
    model = make_model(plan, layout, "model.onnx.data")
    count = collections.Counter(node.op_type for node in model.graph.node)
    layers = plan.decoder.layers
    assert count["GroupQueryAttention"] == layers
    assert count["MatMulNBits"] == 5 * layers + 1  # packed q, k and v; o; gate; up; down; and the head
    assert count["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert "com.microsoft.GatherBlockQuantized" in operators(model)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            assert {a.name: a.i for a in node.attribute}["accuracy_level"] == 4  # the others are slow (see graph.py)
