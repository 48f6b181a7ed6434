"""Recipes laid over others by `extends`: what stays, what is replaced, and where a problem is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeship import catalog
from edgeship.errors import RecipeError
from edgeship.recipe import Recipe
from edgeship.recipe_file import read_recipe

VALID = """\
source: {host: huggingface, repo: Qwen/Qwen2.5-0.5B-Instruct, revision: main}
model: {model_type: qwen2}
scheme: {body: int4, embeddings: int8, head: int8, group_size: 32}
formats: [onnx]
context: 2048
"""


def write(directory: Path, text: str, name: str = "mine.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def problems(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    return str(caught.value)


def over(directory: Path, base: str, text: str) -> Recipe:
    """The recipe of `text` laid over that of `base`."""
    write(directory, f"source: {{repo: a/b}}\n{base}\n", "base.yaml")
    return read_recipe(write(directory, f"extends: base\n{text}\n"))


def test_extends_lays_key_over_key(tmp_path: Path) -> None:
    write(tmp_path, VALID, "base.yaml")
    text = "extends: base\nscheme: {body: int8}\nmodel: null\nsource: {revision: v1}\nformats: [onnx]\n"
    r = read_recipe(write(tmp_path, text))
    assert (r.name, r.scheme.body, r.scheme.embeddings, r.model) == ("mine", "int8", "int8", None)
    assert (r.source.repo, r.source.revision, r.context) == ("Qwen/Qwen2.5-0.5B-Instruct", "v1", 2048)


def test_extends_finds_a_path_a_neighbour_and_the_catalogue(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    base = write(there, "source: {repo: a/b}\ncontext: 32\n", "base.yaml")
    assert read_recipe(write(tmp_path, "extends: there/base.yaml\n")).context == 32
    assert read_recipe(write(there, "extends: base\n")).context == 32
    assert read_recipe(write(tmp_path, "extends: base\n"), {"base": base}).context == 32


def test_a_mix_and_types_by_part_replace_each_other(tmp_path: Path) -> None:
    write(tmp_path, VALID, "base.yaml")
    mixed = read_recipe(write(tmp_path, "extends: base\nscheme: {mix: Q5_K_M}\nformats: [gguf]\n", "mixed.yaml"))
    assert mixed.resolved()["scheme"] == {"mix": "Q5_K_M"}
    assert Recipe.model_validate(mixed.model_dump()) == mixed
    write(tmp_path, "source: {repo: a/b}\nscheme: {mix: Q5_K_M}\n", "base.yaml")
    parts = read_recipe(write(tmp_path, "extends: base\nscheme: {body: q4_k}\n"))
    assert (parts.scheme.mix, parts.scheme.body, parts.scheme.embeddings) == (None, "q4_k", "int8")
    assert parts.resolved()["scheme"] == {
        "body": "q4_k", "embeddings": "int8", "head": "int8", "group_size": 32, "algorithm": "rtn"
    }  # fmt: skip
    other = read_recipe(write(tmp_path, "extends: base\nscheme: {mix: Q6_K}\n"))
    assert other.scheme.mix == "Q6_K"
    assert read_recipe(write(tmp_path, "extends: base\nscheme: {}\n")).scheme.mix == "Q5_K_M"


def test_an_importance_matrix_lies_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    write(tmp_path / "there", "source: {repo: a/b}\nimatrix: made/im.gguf\n", "base.yaml")
    r = read_recipe(write(tmp_path, "extends: there/base.yaml\n"))
    assert r.imatrix == str(tmp_path / "there" / "made" / "im.gguf")
    assert r.resolved()["imatrix"] == "im.gguf"
    assert read_recipe(write(tmp_path, VALID)).resolved()["imatrix"] is None


def test_a_problem_in_the_base_is_told_in_the_base(tmp_path: Path) -> None:
    base = write(tmp_path, "source: {repo: a/b}\nscheme: {body: int5, head: int6}\n", "base.yaml")
    message = problems(write(tmp_path, "extends: base\nscheme: {head: int7}\n"))
    assert f"{base}:2:16: scheme.body: " in message
    assert "mine.yaml:2:16: scheme.head: " in message
    assert "int6" not in message.replace(base.read_text().splitlines()[1], "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("extends: bsae\n", "extends: no recipe is called 'bsae'; did you mean 'base'?"),
        ("extends: mine\n", "this is the recipe itself"),
        ("extends: ./mine.yaml\n", "this is the recipe itself"),
        ("extends: second\n", "'second' itself extends 'base'; one level is allowed: extend 'base'"),
        ("extends: ../nowhere.yaml\n", "expected a recipe (a YAML file), found no such file"),
        ("extends: [base]\n", "expected the name or path of a recipe, found a list"),
        ("extends:\n", "expected the name or path of a recipe, found nothing"),
        ("extends: ''\n", "expected the name or path of a recipe, found ''"),
        ('extends: "a\\0/b.yaml"\n', "extends: "),
        ("extends: broken\n", "broken.yaml:1:9: "),
    ],
)
def test_a_wrong_extends(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, VALID, "base.yaml")
    write(tmp_path, "extends: base\n", "second.yaml")
    write(tmp_path, "source: [\n", "broken.yaml")
    message = problems(write(tmp_path, text))
    assert says in message or (says.startswith("broken") and "broken.yaml:" in message)
    assert "missing key" not in message


PARTS = {"body": "int4", "embeddings": "int8", "head": "int8", "group_size": 32, "algorithm": "rtn"}
BUDGET = {"types": ["int4", "int8"], "bits_per_weight": 5.5, "budget_mb": None, "tokens": 512}


@pytest.mark.parametrize(
    ("base", "text", "scheme"),
    [
        (
            "{mixed: {bits_per_weight: 5.5}, algorithm: gptq}",
            "{algorithm: rtn-search}",
            {"mixed": BUDGET, "group_size": 32, "algorithm": "rtn-search"},
        ),
        (
            "{body: float16, head: int4, group_size: 64, algorithm: gptq}",
            "{mixed: {bits_per_weight: 5.5}}",
            {"mixed": BUDGET, "group_size": 64, "algorithm": "gptq"},
        ),
        (
            "{mixed: {bits_per_weight: 5.5}, group_size: 64, algorithm: gptq}",
            "{head: float16}",
            PARTS | {"head": "float16", "group_size": 64, "algorithm": "gptq"},
        ),
        (
            "{mixed: {bits_per_weight: 5.5, types: [int4, q6_k], tokens: 64}}",
            "{mixed: {budget_mb: 9}}",
            {
                "mixed": {"types": ["int4", "q6_k"], "bits_per_weight": None, "budget_mb": 9, "tokens": 64},
                "group_size": 32,
                "algorithm": "rtn",
            },
        ),
        ("{mixed: {budget_mb: 9}}", "{mixed: {bits_per_weight: 5.5}, algorithm: gptq}", None),
        ("{mix: Q4_K_M}", "{mixed: {bits_per_weight: 5.5}, algorithm: gptq}", None),
        ("{body: int4, group_size: 64, algorithm: gptq}", "{mix: Q4_K_M}", {"mix": "Q4_K_M"}),
        ("{mixed: {bits_per_weight: 5.5}, algorithm: gptq}", "{mix: Q4_K_M}", {"mix": "Q4_K_M"}),
        ("{mix: Q4_K_M}", "{embeddings: int4, algorithm: gptq}", PARTS | {"embeddings": "int4", "algorithm": "gptq"}),
    ],
)
def test_ways_to_choose_types_replace_each_other_and_nothing_else(
    tmp_path: Path, base: str, text: str, scheme: dict[str, Any] | None
) -> None:
    recipe = over(tmp_path, f"scheme: {base}", f"scheme: {text}")
    assert recipe.resolved()["scheme"] == (scheme or {"mixed": BUDGET, "group_size": 32, "algorithm": "gptq"})


def test_a_budget_over_a_recipe_of_the_catalogue_keeps_its_algorithm(tmp_path: Path) -> None:
    text = "extends: tiny-int4\nscheme: {mixed: {bits_per_weight: 5.4}}\n"
    scheme = read_recipe(write(tmp_path, text), catalog.paths()).scheme
    assert (scheme.algorithm, scheme.mixed and scheme.mixed.bits_per_weight) == ("gptq", 5.4)


def test_an_algorithm_over_a_mix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a mix chooses the type of every tensor; remove algorithm, or the mix"):
        over(tmp_path, "scheme: {mix: Q4_K_M}", "scheme: {algorithm: gptq}")


def test_chats_and_text_replace_each_other(tmp_path: Path) -> None:
    calibration = over(tmp_path, "calibration: {text: a.txt, tokens: 128}", "calibration: {chats: b.jsonl}").calibration
    assert calibration
    assert (calibration.text, calibration.chats, calibration.tokens) == (None, str(tmp_path / "b.jsonl"), 128)
    calibration = over(tmp_path, "calibration: {chats: b.jsonl}", "calibration: {text: a.txt}").calibration
    assert calibration
    assert (calibration.text, calibration.chats) == (str(tmp_path / "a.txt"), None)
    with pytest.raises(RecipeError, match="'text' and 'chats' are alternatives"):
        over(tmp_path, "calibration: {tokens: 128}", "calibration: {text: a.txt, chats: b.jsonl}")


@pytest.mark.parametrize(
    ("base", "text", "key"),
    [
        ("context: 32", "context: null", "context"),
        ("formats: [gguf]", "formats: ~", "formats"),
        ("sampling: {temperature: 0}", "sampling:", "sampling"),
        ("sampling: {temperature: 0, top_k: 3}", "sampling: {temperature: null, top_k: null}", "sampling"),
        ("scheme: {mixed: {budget_mb: 3}}", "scheme: {mixed: null}", "scheme"),
        ("scheme: {mix: Q4_K_M}", "scheme: {mix: null}", "scheme"),
        ("calibration: {text: a.txt}", "calibration: null", "calibration"),
        ("adapters: [mine]", "adapters: null", "adapters"),
        ("", "logits: null", "logits"),
    ],
)
def test_null_takes_a_key_of_the_base_back_to_its_default(tmp_path: Path, base: str, text: str, key: str) -> None:
    plain = Recipe.model_validate({"name": "plain", "source": {"repo": "a/b"}})
    assert getattr(over(tmp_path, base, text), key) == getattr(plain, key)


def test_null_inside_sections_of_sections(tmp_path: Path) -> None:
    recipe = over(
        tmp_path,
        "scheme: {mixed: {budget_mb: 3, tokens: 64}}\nmodel: {hidden_size: 64, rope_scaling: {factor: 2}}",
        "scheme: {mixed: {tokens: null}}\nmodel: {rope_scaling: null}",
    )
    assert recipe.scheme.mixed
    assert (recipe.scheme.mixed.budget_mb, recipe.scheme.mixed.tokens) == (3, 512)
    assert recipe.model == {"hidden_size": 64, "rope_scaling": None}  # of config.json, where null says something


def test_an_algorithm_in_place_of_a_mix(tmp_path: Path) -> None:
    scheme = over(tmp_path, "scheme: {mix: Q4_K_M}", "scheme: {mix: null, algorithm: gptq}").scheme
    assert (scheme.mix, scheme.algorithm) == (None, "gptq")


def test_another_exporter_without_what_it_does_not_read(tmp_path: Path) -> None:
    base = "context: 32\nscheme: {body: int8}"
    assert over(tmp_path, base, "exporter: optimum\ncontext: null\nscheme: null").exporter == "optimum"
    with pytest.raises(RecipeError, match="'context' goes with exporter: native"):
        over(tmp_path, base, "exporter: optimum\nscheme: null")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source: null", "source: expected a mapping with the keys host, repo"),
        ("source: {repo: null}", "source.repo: expected text of the form owner/name, found nothing"),
        ("zzz: null", "unknown key 'zzz'"),
    ],
)
def test_null_for_what_has_no_default(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        over(tmp_path, "context: 32", text)
    assert f"mine.yaml:2:{text.find('null') + 1 if 'zzz' not in text else 1}: " in str(caught.value)
    assert says in str(caught.value)
