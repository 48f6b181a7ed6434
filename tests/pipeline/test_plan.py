"""Plans: encodings, bytes and memory against sums worked out here by hand, and every conflict."""

from __future__ import annotations

import contextlib
import json
import re
from math import prod
from pathlib import Path
from typing import Any

import pytest

import planned
from edgeship import catalog
from edgeship.encodings import ENCODINGS
from edgeship.errors import ArchitectureError, EdgeshipError, PlanError
from edgeship.plan import make_plan, plan_checkpoint, read_plan
from planned import recipe

CONFIG = planned.CONFIG | {"hidden_size": 128, "intermediate_size": 256}
BODY = 2 * (128 * 128 + 2 * 64 * 128 + 128 * 128 + 3 * 128 * 256)
FLOAT = 2 * (128 + 128 + 64 + 64 + 128) + 128  # two norms and the biases of q, k and v, per layer; the last norm
TABLE = 1000 * 128


def test_parts_and_sizes_of_a_tied_model() -> None:
    p = make_plan(recipe(), CONFIG)
    made = p.footprints["onnx"]
    body, shared, floats = made.parts
    assert (body.part, body.encoding, body.tensors, body.weights) == ("body", "int4-32", 14, BODY)
    assert body.nbytes == BODY // 2 + BODY // 32 * 4
    assert (shared.part, shared.encoding, shared.weights) == ("embeddings + head", "int8-32", TABLE)
    assert shared.nbytes == TABLE + TABLE // 32 * 4
    assert (floats.part, floats.weights, floats.nbytes) == ("float", FLOAT, FLOAT * 4)
    assert p.parameters == BODY + TABLE + FLOAT
    assert made.overhead == 2 * 512 * 16 * 4  # rotary tables
    assert made.size_bytes == BODY * 5 // 8 + TABLE * 9 // 8 + FLOAT * 4 + made.overhead
    assert made.bits_per_weight == pytest.approx((BODY * 5 + TABLE * 9 + FLOAT * 32) / p.parameters)
    assert (p.formats, list(p.footprints), p.bits_per_weight) == (("onnx",), ["onnx"], made.bits_per_weight)
    assert p.part_encodings == {"body": "int4-32", "embeddings": "int8-32", "head": "int8-32"}
    assert body.bits_per_weight == 5
    assert p.conflicts == p.notes == ()
    assert p.head is p.tensors[0]
    assert list(p.stored()) == list(p.tensors)


def test_tensors_follow_the_roles() -> None:
    p = make_plan(recipe(), CONFIG)
    assert tuple(t.role for t in p.tensors) == p.decoder.roles()
    by_part = {t.role.part: t.encoding for t in p.tensors}
    assert by_part == {
        "embeddings": ENCODINGS["int8-32"],
        "body": ENCODINGS["int4-32"],
        "float": ENCODINGS["float32"],
    }


def test_a_tied_head_of_another_type_is_stored_apart_and_said() -> None:
    p = make_plan(recipe(scheme={"embeddings": "int4"}), CONFIG)
    assert not p.shared_head
    assert (p.head.role.key, p.head.role.tensor) == ("head.weight", "model.embed_tokens.weight")
    assert p.head.encoding.name == "int8-32"
    assert [t.role.key for t in p.stored()][-1] == "head.weight"
    assert [s.part for s in p.footprints["onnx"].parts] == ["body", "embeddings", "head", "float"]
    assert p.parameters == BODY + TABLE + FLOAT  # of the checkpoint: the table counts once
    assert "stored twice" in p.notes[0]
    assert "144 KB" in p.notes[0]


def test_an_untied_head_has_its_own_role() -> None:
    p = make_plan(recipe(), CONFIG | {"tie_word_embeddings": False})
    assert not p.shared_head
    assert p.head is p.tensors[-1]
    assert p.parameters == BODY + 2 * TABLE + FLOAT
    assert p.notes == ()


@pytest.mark.parametrize(
    ("context", "positions", "rows"), [(256, 512, 512), (512, 512, 512), (40_000, 131_072, 40_000)]
)
def test_rows_of_the_rotary_tables(context: int, positions: int, rows: int) -> None:
    p = make_plan(recipe(context=context), CONFIG | {"max_position_embeddings": positions})
    assert p.rope_positions == rows
    assert p.conflicts == ()
    assert bool(p.notes) == (rows < positions)


def test_rows_that_do_not_divide_into_groups_are_a_conflict() -> None:
    p = make_plan(recipe(), CONFIG | {"intermediate_size": 172})
    (conflict,) = p.conflicts
    assert conflict == (
        "model.layers.0.mlp.down_proj.weight [128, 172] and 1 more: rows of 172 do not divide into groups of 32; "
        "use float16 for body"
    )
    with pytest.raises(PlanError, match=r"case cannot be exported; nothing was written\.\n  - model\.layers\.0"):
        p.require()
    assert make_plan(recipe(scheme={"body": "float16"}), CONFIG | {"intermediate_size": 172}).conflicts == ()


def test_a_conflict_names_the_group_sizes_that_fit() -> None:
    p = make_plan(recipe(scheme={"group_size": 128}), CONFIG | {"hidden_size": 192, "head_dim": 32})
    assert [c.partition("use ")[2] for c in p.conflicts] == [
        "group_size 32 or 64, or float16 for embeddings and head",
        "group_size 32 or 64, or float16 for body",
    ]
    assert any("exist in ONNX only" in n for n in p.notes)


def test_a_context_longer_than_the_model_is_a_conflict() -> None:
    (conflict,) = make_plan(recipe(context=1024), CONFIG).conflicts
    assert conflict == (
        "context: 1024 is more than the 512 positions that qwen2 was made for; lower it, or set rope_scaling (YaRN)"
    )


def test_a_size_limit_is_a_conflict_before_anything_is_written() -> None:
    (conflict,) = make_plan(recipe(accept={"size_mb": 0.1}), CONFIG).conflicts
    assert re.match(r"accept\.size_mb: expected at most 0\.1 MB, found 0\.\d+ MB for the onnx file alone; ", conflict)
    assert make_plan(recipe(accept={"size_mb": 1}), CONFIG).conflicts == ()


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"rope_scaling": None},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 10000.0}, "rope_scaling": {"type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 2}, "original_max_position_embeddings": 64},
    ],
)
def test_yarn_extends_the_positions(written: dict[str, Any]) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    p = make_plan(recipe(context=2048, rope_scaling=scaling), CONFIG | written)
    assert p.conflicts == ()
    assert (p.decoder.max_positions, p.rope_positions, p.decoder.rope.theta) == (2048, 2048, 10000.0)
    assert p.decoder.rope.scaling == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert any("YaRN scales every position" in n for n in p.notes)


def test_the_checkpoint_must_be_the_model_that_the_recipe_describes() -> None:
    mine = recipe(model=CONFIG)
    assert plan_checkpoint(mine, CONFIG | {"torch_dtype": "bfloat16"}).parameters == BODY + TABLE + FLOAT
    other = CONFIG | {"hidden_size": 256, "tie_word_embeddings": False, "rope_theta": 1e6}
    with pytest.raises(PlanError) as caught:
        plan_checkpoint(mine, other, "there/config.json")
    for said in (
        "there/config.json is not the model that case describes",
        "hidden_size: the recipe says 128, the checkpoint 256",
        "tie_word_embeddings: the recipe says true, the checkpoint false",
        "rope_theta: the recipe says 10000.0, the checkpoint 1000000.0",
        "model: null",
    ):
        assert said in str(caught.value)


def test_the_same_value_written_otherwise_agrees() -> None:
    config = {k: v for k, v in CONFIG.items() if k != "rope_theta"}
    config |= {"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}}
    untied = {"model": CONFIG | {"tie_word_embeddings": False, "rope_scaling": None}}
    del config["tie_word_embeddings"]
    assert not plan_checkpoint(recipe(**untied), config).decoder.tied
    inner = {"rope_parameters": {"rope_theta": 5000, "rope_type": "default"}}
    with pytest.raises(PlanError, match=r"rope_theta: the recipe says 10000\.0, the checkpoint 5000"):
        plan_checkpoint(recipe(model=CONFIG), CONFIG | inner)
    with pytest.raises(PlanError, match="num_hidden_layers: the recipe says 1, the checkpoint true"):
        plan_checkpoint(recipe(model={"num_hidden_layers": 1}), config | {"num_hidden_layers": True})


def test_a_plan_without_a_checkpoint_reads_the_recipe_and_names_it() -> None:
    assert read_plan(recipe(model=CONFIG)).parameters == BODY + TABLE + FLOAT
    with pytest.raises(ArchitectureError, match="recipe case: model: hidden_act"):
        read_plan(recipe(model=CONFIG | {"hidden_act": "gelu"}))


def test_a_plan_of_a_local_source_reads_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    local = {"host": "local", "repo": "a/b", "path": str(tmp_path)}
    assert read_plan(recipe(source=local)).parameters == BODY + TABLE + FLOAT
    assert read_plan(recipe(), tmp_path).parameters == BODY + TABLE + FLOAT


def test_absurd_layer_counts_are_refused_at_once() -> None:
    with pytest.raises(PlanError, match="expected at most 1024, found 1000000000"):
        make_plan(recipe(), CONFIG | {"num_hidden_layers": 10**9})


@pytest.mark.parametrize("key", [k for k in CONFIG if k != "tie_word_embeddings"])
@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 0, True, 10**17, 1e308])
def test_wrong_fields_of_model_are_errors_of_edgeship(key: str, value: Any) -> None:
    with contextlib.suppress(EdgeshipError):  # nothing else may come
        read_plan(recipe(model=CONFIG | {key: value}))


@pytest.mark.parametrize("name", ["qwen2.5-0.5b-int4", "qwen3-8b-int8", "qwen3-4b-q4_k_m"])
def test_the_json_form_adds_up(name: str) -> None:
    p = read_plan(catalog.find(name))
    said = json.loads(json.dumps(p.to_json()))
    assert list(said["formats"]) == list(p.formats)
    for form, made in said["formats"].items():
        assert sum(part["bytes"] for part in made["parts"]) + made["overhead_bytes"] == made["size_bytes"]
        assert made["size_bytes"] == p.footprints[form].size_bytes
        ram = made["ram_bytes"]
        assert sum(v for k, v in ram.items() if k not in ("total", "kv_per_token")) == ram["total"]
        assert sum(part["tensors"] for part in made["parts"]) == len(list(p.stored()))
    assert said["architecture"]["model_type"] == p.decoder.model_type
    assert said["recipe"]["name"] == name
    assert sum(prod(t.role.shape) for t in p.tensors) == said["parameters"]


# mixes and ggml's types


def test_a_mix_chooses_by_tensor() -> None:
    p = make_plan(recipe(scheme={"mix": "Q4_K_M"}, formats=["gguf"]), CONFIG | {"hidden_size": 256, "head_dim": 64})
    by_key = {t.role.key: t for t in p.tensors}
    assert by_key["layers.0.attn.q.weight"].encoding.name == "q4_k"
    assert by_key["layers.1.mlp.down.weight"].encoding.name == "q6_k"
    assert by_key["layers.1.attn_norm.weight"].encoding.name == "float32"
    assert all(t.wanted is None for t in p.tensors)
    assert p.shared_head
    assert p.head.encoding.name == "q6_k"
    assert p.part_encodings == {"body": "q4_k, q6_k", "embeddings": "q6_k", "head": "q6_k"}
    assert p.conflicts == p.notes == ()
    assert list(p.footprints) == ["gguf"]


def test_types_of_ggml_by_part() -> None:
    scheme = {"body": "q5_1", "embeddings": "q8_0", "head": "bfloat16"}
    p = make_plan(recipe(scheme=scheme, formats=["gguf"]), CONFIG | {"tie_word_embeddings": False})
    assert p.part_encodings == {"body": "q5_1", "embeddings": "int8-32", "head": "bfloat16"}
    assert p.conflicts == ()


def test_one_recipe_has_the_same_tensors_in_both_formats() -> None:
    one, both = (make_plan(recipe(formats=f), CONFIG) for f in (["gguf"], ["onnx", "gguf"]))
    assert one.tensors == both.tensors
    assert one.footprints["gguf"] == both.footprints["gguf"]
    assert list(both.footprints) == ["onnx", "gguf"]
