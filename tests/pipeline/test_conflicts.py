"""Conflicts and notes: formats, mixes and importance matrices that do not go together, and what is said of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import planned
from edgeship import catalog
from edgeship.plan import Plan, make_plan, read_plan
from edgeship.recipe import Recipe, with_algorithm
from edgeship.recipe_file import read_recipe
from planned import recipe

CONFIG = planned.CONFIG | {"num_hidden_layers": 4}


def plan(formats: list[str], scheme: dict[str, Any], config: dict[str, Any] | None = None, **fields: Any) -> Plan:
    return make_plan(recipe(formats=formats, scheme=scheme, **fields), CONFIG | (config or {}))


def test_onnx_has_no_types_of_ggml() -> None:
    p = plan(["onnx", "gguf"], {"body": "q4_k", "embeddings": "bfloat16"})
    assert p.conflicts == (
        "formats: onnx has no bfloat16 (embeddings); use int4, int8, float16 or float32, or formats: [gguf]",
        "formats: onnx has no q4_k (body); use int4, int8, float16 or float32, or formats: [gguf]",
    )
    assert list(p.footprints) == ["gguf"]
    (conflict,) = plan(["onnx"], {"mix": "Q6_K"}).conflicts
    assert conflict == (
        "formats: onnx has no q6_k (body and embeddings and head); name types instead of the mix Q6_K, "
        "or formats: [gguf]"
    )


def test_a_mix_of_the_shared_grid_goes_into_both_formats() -> None:
    for mix in ("Q8_0", "F16", "F32"):
        assert plan(["onnx", "gguf"], {"mix": mix}).conflicts == ()


def test_gguf_stores_groups_of_32_only() -> None:
    p = plan(["onnx", "gguf"], {"group_size": 128})
    assert p.conflicts == (
        "formats: gguf has no int8-128 (embeddings and head); set group_size 32, or formats: [onnx]",
        "formats: gguf has no int4-128 (body); set group_size 32, or formats: [onnx]",
    )
    assert list(p.footprints) == ["onnx"]


def test_what_no_format_of_the_recipe_holds_has_no_size() -> None:
    p = plan(["onnx", "gguf"], {"body": "q4_k", "embeddings": "int8", "head": "int8", "group_size": 64})
    assert len(p.conflicts) == 2
    assert p.footprints == {}
    assert p.to_json()["formats"] == {}


def test_rows_that_no_group_of_both_formats_divides() -> None:
    odd = {"intermediate_size": 544}  # 17 groups of 32
    (conflict,) = plan(["onnx"], {"group_size": 64}, odd).conflicts
    assert conflict.endswith("do not divide into groups of 64; use group_size 32, or float16 for body")
    said = plan(["gguf"], {"body": "q4_k"}, odd).conflicts
    assert said == (
        "model.layers.0.mlp.down_proj.weight [256, 544] and 3 more: rows of 544 do not divide into groups of 256; "
        "use q5_0 or float16 for body",
    )
    (conflict,) = plan(["gguf"], {"body": "q6_k"}, {"intermediate_size": 172}).conflicts
    assert conflict.endswith("use float16 for body")


def test_a_mix_says_where_it_takes_another_type() -> None:
    p = read_plan(catalog.find("qwen2.5-0.5b-q4_k_m"))
    assert p.conflicts == ()
    assert p.notes == (
        "rows of 896 do not divide into blocks of 256: 13 tensors (embed, attn.v) are int8-32 instead of q6_k, "
        "as llama-quantize chooses",
        "rows of 896 do not divide into blocks of 256: 132 tensors (attn.q, attn.k, attn.o, mlp.gate, mlp.up, attn.v) "
        "are q5_0 instead of q4_k, as llama-quantize chooses",
    )
    (note,) = plan(["gguf"], {"mix": "Q4_1"}, {"intermediate_size": 80, "num_hidden_layers": 1}).notes
    assert note == "rows of 80 do not divide into blocks of 32: mlp.down is float16 instead of q4_1, " + (
        "as llama-quantize chooses"
    )


def test_a_mix_without_a_substitute_is_a_conflict() -> None:
    (conflict,) = plan(["gguf"], {"mix": "Q1_0"}, {"intermediate_size": 544}).conflicts
    assert "rows of 544 do not divide into groups of 128; use float16 for body" in conflict


@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        ({"mix": "IQ2_XS"}, ["iq2_xs (body)"]),
        ({"mix": "IQ3_XXS"}, ["iq2_s (body)", "iq3_xxs (body)"]),
        ({"mix": "Q2_K_S"}, ["q2_k (body)"]),
        ({"mix": "Q2_K"}, []),
        ({"mix": "IQ4_XS"}, []),
        ({"body": "q4_k", "embeddings": "iq1_s", "head": "iq1_s"}, ["iq1_s (embeddings and head)"]),
    ],
)
def test_types_that_want_an_importance_matrix(scheme: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    said = plan(["gguf"], scheme).conflicts
    assert [c.partition(" is garbage without an importance matrix")[0] for c in said] == names
    (tmp_path / "im.gguf").touch()
    assert plan(["gguf"], scheme, imatrix=str(tmp_path / "im.gguf")).conflicts == ()


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_is_looked_up_only_has_no_importance_from_text(tied: bool) -> None:
    scheme = {"body": "q4_k", "embeddings": "iq2_xs", "head": "iq2_xs"}
    said = plan(["gguf"], scheme, {"tie_word_embeddings": tied}, calibration={}).conflicts
    assert len(said) == (0 if tied else 1)
    assert all("scheme.embeddings: iq2_xs is garbage" in each for each in said)


def test_embeddings_of_a_mix_need_none() -> None:
    p = plan(["gguf"], {"mix": "Q2_K_S"}, {"tie_word_embeddings": False})
    assert p.tensors[0].encoding.name == "q2_k"
    assert {t.role.part for t in p.needing_importance} == {"body"}


def test_an_importance_matrix_that_nothing_uses(tmp_path: Path) -> None:
    (tmp_path / "im.gguf").touch()
    given = {"imatrix": str(tmp_path / "im.gguf")}
    assert plan(["onnx", "gguf"], {"body": "int4"}, **given).conflicts == ()
    assert plan(["gguf"], {"mix": "Q8_0"}, **given).conflicts == (
        "imatrix: none of the recipe's types makes use of one; remove it",
    )
    (conflict,) = plan(["onnx"], {"body": "int4", "group_size": 64}, **given).conflicts
    assert conflict.startswith("imatrix: int4-64 (body) is rounded to nearest and would ignore it")
    assert plan(["gguf"], {"mix": "Q4_K_M"}, imatrix="/nowhere/im.gguf").conflicts == (
        "imatrix: no such file: /nowhere/im.gguf",
    )


@pytest.mark.parametrize("scheme", [{"mix": "Q8_0"}, {"mix": "BF16"}])
def test_calibration_text_that_nothing_uses(scheme: dict[str, Any]) -> None:
    (conflict,) = plan(["gguf"], scheme, calibration={"sequence": 32}).conflicts
    assert conflict.startswith("calibration: none of the recipe's types makes use of it; remove it")
    assert plan(["gguf"], {"mix": "Q4_K_M"}, calibration={"sequence": 32}).conflicts == ()
    assert plan(["gguf"], {"algorithm": "gptq", "body": "int8"}, calibration={"sequence": 32}).conflicts == ()


def test_each_format_stays_under_the_limit() -> None:
    size = plan(["onnx", "gguf"], {}).footprints
    between = (size["onnx"].size_bytes + size["gguf"].size_bytes) / 2e6
    (conflict,) = plan(["onnx", "gguf"], {}, accept={"size_mb": between}).conflicts
    assert re.match(r"accept\.size_mb: expected at most [\d.]+ MB, found [\d.]+ MB for the onnx file alone", conflict)


def test_notes_of_onnx_are_not_said_of_gguf() -> None:
    long = {"max_position_embeddings": 100_000}
    assert plan(["gguf"], {"body": "float16"}, long).notes == ()
    assert len(plan(["onnx"], {"body": "float16"}, long).notes) == 2
    assert plan(["onnx", "gguf"], {}, long).notes[0].startswith("the ONNX artifact runs with a context of up to 32768")
    assert any("exist in ONNX only" in n for n in plan(["onnx"], {"group_size": 64}).notes)


FILE = """\
extends: base
formats: [onnx]
scheme:
  body: int4
  algorithm: rtn
calibration:
  tokens: 4096
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in CONFIG.items()) + "}"
    (tmp_path / "base.yaml").write_text(f"source: {{repo: a/b}}\ncontext: 1024\nmodel: {model}\n")
    (tmp_path / "mine.yaml").write_text(FILE)
    return tmp_path / "mine.yaml"


def test_each_says_the_line_of_the_file_that_it_is_about(file: Path) -> None:
    calibration, context = read_plan(read_recipe(file)).conflicts
    assert calibration.startswith(
        f"{file}:6:1: calibration: rounding to nearest looks at no text; set scheme.algorithm"
    )
    assert calibration.endswith("\n    6 | calibration:\n      | ^^^^^^^^^^^")
    assert context.startswith(f"{file.with_name('base.yaml')}:2:1: context: 1024 is more than the 512 positions")


def test_the_nearest_line_of_a_key_that_the_file_leaves_out(file: Path) -> None:
    base = file.with_name("base.yaml")
    base.write_text(base.read_text().replace("context: 1024\n", "").replace(": 512,", ": 256,"))
    file.write_text(FILE.replace("rtn", "gptq"))
    calibration, context = read_plan(read_recipe(file)).conflicts
    assert calibration.startswith(f"{file}:6:1: calibration.sequence: 512 is more than the 256 positions")
    assert context.startswith("context: 4096 is more than the 256 positions")


def test_weights_are_the_schemes(file: Path) -> None:
    file.write_text(FILE.replace("algorithm: rtn", "group_size: 128").replace("[onnx]", "[onnx, gguf]"))
    said = [text.partition("\n")[0] for text in read_plan(read_recipe(file)).conflicts]
    assert f"{file}:2:1: formats: gguf has no int4-128 (body); set group_size 32, or formats: [onnx]" in said
    file.write_text(FILE.replace("body: int4", "mix: IQ2_XS").replace("[onnx]", "[gguf]").partition("  algorithm")[0])
    coarse, _ = read_plan(read_recipe(file)).conflicts
    assert coarse.startswith(f"{file}:3:1: iq2_xs (body) is garbage without an importance matrix")


def test_an_algorithm_of_the_command_is_not_shown_in_the_file(file: Path) -> None:
    file.write_text(FILE.replace("body: int4", "body: float16"))
    (said, _) = read_plan(with_algorithm(read_recipe(file), "gptq")).conflicts
    assert said.startswith(f"{file}:3:1: scheme.algorithm: gptq chooses the codes")


def test_a_place_changes_nothing_of_a_recipe(file: Path) -> None:
    read = read_recipe(file)
    assert read == Recipe.model_validate(read.model_dump())
    assert read.model_copy().place("calibration.tokens") == read.place("calibration.tokens") is not None
    assert Recipe.model_validate(read.model_dump()).place("calibration") is None
