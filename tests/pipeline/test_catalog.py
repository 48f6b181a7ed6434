"""The catalogue: every recipe in it is whole, named well, and found by name or path."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship import catalog, yaml_source
from edgeship.calibration_stages import largest, stages
from edgeship.errors import RecipeError
from edgeship.plan import read_plan
from edgeship.schema import recipe_schema

QWEN = [
    *(f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b", "coder-1.5b", "math-1.5b")),
    *(f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b")),
]
PUBLISHED = {  # parameters in billions, from the model cards
    "qwen2.5-0.5b": 0.49,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-3b": 3.09,
    "qwen2.5-7b": 7.61,
    "qwen2.5-coder-1.5b": 1.54,
    "qwen2.5-math-1.5b": 1.54,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.7,
    "qwen3-4b": 4.0,
    "qwen3-8b": 8.2,
}


def test_the_catalogue_is_what_was_promised() -> None:
    grid = {f"{m}-{t}" for m in [*QWEN, "tiny"] for t in ("int4", "int8")}
    assert catalog.names() == sorted(grid | {f"{m}-q4_k_m" for m in QWEN})


@pytest.mark.parametrize("name", catalog.names())
def test_a_recipe_opens_with_the_command_that_runs_it(name: str) -> None:
    assert catalog.paths()[name].read_text().startswith(f"# edgeship export {name}\n")


@pytest.mark.parametrize("name", catalog.names())
def test_a_recipe_is_valid_by_the_schema_too(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    data = yaml_source.parse(catalog.paths()[name].read_bytes(), name).data
    jsonschema.Draft202012Validator(recipe_schema()).validate(data)


@pytest.mark.parametrize("name", [n for n in catalog.names() if not n.startswith("tiny")])
def test_a_recipe_plans_without_a_download(name: str) -> None:
    recipe = catalog.find(name)
    plan = read_plan(recipe)
    model = name.rpartition("-")[0]
    assert plan.conflicts == ()
    assert plan.parameters / 1e9 == pytest.approx(PUBLISHED[model], rel=0.02)
    kind = name.rpartition("-")[2]
    if kind == "q4_k_m":
        assert (recipe.scheme.mix, recipe.formats) == ("Q4_K_M", ("gguf",))
    else:
        assert (recipe.scheme.mix, recipe.formats) == (None, ("onnx", "gguf"))
        assert (recipe.scheme.body, recipe.scheme.embeddings, recipe.scheme.head) == (kind, "int8", "int8")
    assert plan.shared_head is plan.decoder.tied
    assert recipe.source.repo.lower().startswith(f"qwen/{model}")
    assert recipe.accept.size_mb is not None
    largest = max(made.size_bytes for made in plan.footprints.values())
    assert 0.9 < largest / 1e6 / recipe.accept.size_mb < 1


def test_int8_differs_from_int4_by_the_body_alone() -> None:
    for model in [*QWEN, "tiny"]:
        four, eight = catalog.find(f"{model}-int4"), catalog.find(f"{model}-int8")
        same = {"description", "name", "accept", "scheme", "calibration"}
        assert four.model_dump(exclude=same) == eight.model_dump(exclude=same)
        assert eight.scheme == four.scheme.model_copy(update={"body": "int8", "algorithm": "rtn"})


def test_four_bits_are_calibrated_on_the_models_own_text() -> None:
    for model in [*QWEN, "tiny"]:
        four, eight = catalog.find(f"{model}-int4"), catalog.find(f"{model}-int8")
        assert (four.scheme.algorithm, eight.scheme.algorithm) == ("gptq", "rtn")
        assert four.calibration is not None
        assert four.calibration.file is None
        assert eight.calibration is None


def test_calibration_fits_a_small_machine_and_a_large_model_a_laptop() -> None:
    for model in QWEN:
        four = catalog.find(f"{model}-int4")
        assert four.calibration is not None
        needed = largest(stages(read_plan(four))).nbytes
        assert needed < (2e9 if PUBLISHED[model] < 2 else 4e9)


def test_q4_k_m_is_the_same_model_for_llama_cpp() -> None:
    for model in QWEN:
        four, mixed = catalog.find(f"{model}-int4"), catalog.find(f"{model}-q4_k_m")
        same = {"description", "name", "accept", "scheme", "formats", "calibration"}
        assert four.model_dump(exclude=same) == mixed.model_dump(exclude=same)


def test_find_takes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("extends: qwen3-0.6b-int4\ncontext: 512\n")
    assert catalog.find(str(tmp_path / "mine.yaml")).context == 512
    monkeypatch.chdir(tmp_path)
    assert catalog.find("mine.yaml").name == "mine"
    with pytest.raises(RecipeError, match=r"for the file in this directory: mine\.yaml"):
        catalog.find("mine")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("qwen2.5-0.5b-int", "did you mean 'qwen2.5-0.5b-int"),
        ("QWEN3-0.6B-INT4", "did you mean 'qwen3-0.6b-int4'"),
        ("", "no recipe is called ''"),
        ("..", "no recipe is called '..'"),
        ("../../etc/passwd", "ending in .yaml, found one that does not"),
        ("../nowhere.yaml", "found no such file"),
        ("x" * 5000, "no recipe is called"),
        ("a\0b", "no recipe is called"),
        ("a\0b.yaml", "a recipe (a YAML file), found no such file"),
    ],
)
def test_what_is_not_there_is_refused(name: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        catalog.find(name)
    assert says in str(caught.value)
    assert caught.value.hint


def test_an_installed_wheel_brings_its_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_recipes").mkdir()
    (tmp_path / "_recipes" / "only.yaml").write_text("source: {repo: a/b}\n")
    monkeypatch.setattr(catalog, "_PACKAGE", tmp_path)
    assert catalog.names() == ["only"]
