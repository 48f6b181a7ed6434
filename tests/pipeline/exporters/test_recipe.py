"""Recipes of other exporters: their own fields, and those that only our exporter reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgeship.errors import PlanError, RecipeError, UsageError
from edgeship.exporter import READ_BY
from edgeship.plan import read_plan
from edgeship.recipe import Recipe, with_algorithm
from edgeship.recipe_file import read_recipe

SOURCE = "source: {repo: me/my-model}\n"


def recipe(tmp_path: Path, text: str) -> Recipe:
    file = tmp_path / "mine.yaml"
    file.write_text(SOURCE + text)
    return read_recipe(file)


def test_the_exporter_is_ours_unless_said(tmp_path: Path) -> None:
    found = recipe(tmp_path, "")
    assert found.exporter == "native"
    assert not {"exporter", "optimum", "olive"} & set(found.resolved())


def test_optimum_and_what_the_manifest_says_of_it(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a\n")
    options = "optimum: {quantization: static, calibration: texts.txt, pooling: cls}"
    found = recipe(tmp_path, f"exporter: optimum\n{options}\naccept: {{cosine: 0.9}}")
    assert found.optimum is not None
    assert found.optimum.calibration == str(tmp_path / "texts.txt")
    resolved = found.resolved()
    assert resolved["optimum"]["calibration"] == "texts.txt"
    assert resolved["optimum"]["task"] == "feature-extraction"
    assert resolved["accept"] == {"size_mb": None, "cosine": 0.9}
    assert set(resolved) == READ_BY["optimum"]
    assert "path" not in resolved["source"]


def test_olive_has_passes_of_its_own_accord(tmp_path: Path) -> None:
    resolved = recipe(tmp_path, "exporter: olive\ncontext: 512").resolved()
    assert [each["type"] for each in resolved["olive"]["passes"]] == ["ModelBuilder"]
    assert set(resolved) == READ_BY["olive"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exporter: optimun", "did you mean 'optimum'"),
        ("optimum: {}", "'optimum' goes with exporter: optimum, found native"),
        ("exporter: olive\noptimum: {}", "'optimum' goes with exporter: optimum, found olive"),
        ("exporter: optimum\nscheme: {body: int8}", "'scheme' goes with exporter: native, found optimum"),
        ("exporter: optimum\ncontext: 64", "'context' goes with exporter: native"),
        ("exporter: olive\nimatrix: a.gguf", "'imatrix' goes with exporter: native"),
        ("exporter: olive\nformats: [gguf]", "'formats' goes with exporter: native"),
        ("exporter: olive\naccept: {cosine: 0.9}", "'cosine' does not go with exporter: olive"),
        ("exporter: optimum\naccept: {top1: 0.9}", "'top1' does not go with exporter: optimum"),
        ("accept: {cosine: 0.9}", "'cosine' does not go with exporter: native"),
        ("exporter: optimum\noptimum: {tsk: a}", "did you mean 'task'"),
        ("exporter: optimum\noptimum: {quantization: static}", "needs texts"),
        ("exporter: optimum\noptimum: {calibration: a.txt}", "'calibration' has no effect with quantization: dynamic"),
        ("exporter: optimum\noptimum: {quantization: none, per_channel: true}", "'per_channel' has no effect"),
        (
            "exporter: optimum\noptimum: {task: text-classification, pooling: mean}",
            "'pooling' has no effect with task: text-classification",
        ),
        ("exporter: olive\nolive: {passes: []}", "olive.passes"),
        ("exporter: olive\nolive: {passes: [{bits: 4}]}", r"passes\[0\]: expected a `type`"),
        ("exporter: olive\nolive: {passes: [ModelBuilder]}", "a mapping"),
    ],
)
def test_bad_options_are_refused_in_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        recipe(tmp_path, text)
    assert "mine.yaml:" in caught.value.message


def test_only_our_own_can_be_planned_for_devices(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="expected a recipe of our own exporter"):
        read_plan(recipe(tmp_path, "exporter: olive"))


@pytest.mark.parametrize("exporter", ["optimum", "olive"])
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("scheme: {}", "scheme"),
        ("scheme: {body: int4, embeddings: int8}", "scheme"),
        ("formats: [onnx]", "formats"),
        ("logits: last", "logits"),
        ("accept: {tokens: 2048}", "tokens"),
        ("accept: {repair: false}", "repair"),
    ],
)
def test_what_has_no_effect_is_refused_as_its_default_too(tmp_path: Path, exporter: str, text: str, key: str) -> None:
    with pytest.raises(RecipeError, match=f"'{key}' (goes with exporter: native|does not go with)"):
        recipe(tmp_path, f"exporter: {exporter}\n{text}")


@pytest.mark.parametrize("exporter", ["optimum", "olive"])
def test_what_the_base_says_by_default_is_not_said_here(tmp_path: Path, exporter: str) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"{SOURCE}scheme: {{body: int4}}\nformats: [onnx]\naccept: {{size_mb: 9, tokens: 2048}}\n")
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: base\nexporter: {exporter}\n")
    assert read_recipe(file).accept.size_mb == 9
    for text, key in (("scheme: {head: int8}", "scheme"), ("accept: {tokens: 2048}", "tokens")):
        file.write_text(f"extends: base\nexporter: {exporter}\n{text}\n")
        with pytest.raises(RecipeError, match=f"'{key}' (goes with exporter: native|does not go with)"):
            read_recipe(file)
    base.write_text(f"{SOURCE}scheme: {{body: int8}}\n")
    file.write_text(f"extends: base\nexporter: {exporter}\n")
    with pytest.raises(RecipeError, match="'scheme' goes with exporter: native"):
        read_recipe(file)


@pytest.mark.parametrize("exporter", ["native", "optimum", "olive"])
def test_what_a_manifest_says_is_a_recipe_again(tmp_path: Path, exporter: str) -> None:
    found = recipe(tmp_path, "" if exporter == "native" else f"exporter: {exporter}")
    said = {key: value for key, value in found.resolved().items() if key != "name"}
    said.pop("source")  # which `recipe` writes
    assert recipe(tmp_path, yaml.safe_dump(said)).resolved() == found.resolved()


@pytest.mark.parametrize("exporter", ["optimum", "olive"])
@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_no_algorithm_of_ours_is_theirs(tmp_path: Path, exporter: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"--algorithm {name}: .* found exporter: {exporter}"):
        with_algorithm(recipe(tmp_path, f"exporter: {exporter}"), name)
