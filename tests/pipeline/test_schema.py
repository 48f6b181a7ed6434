"""The JSON Schema of recipes: valid, described, and of one mind with the reader."""

from __future__ import annotations

import pytest

from edgeship import yaml_source
from edgeship.recipe_file import KEYS
from edgeship.schema import recipe_schema

VALID = """\
source: {repo: Qwen/Qwen2.5-0.5B-Instruct}
model: {model_type: qwen2}
scheme: {body: int4, embeddings: int8, head: int8, group_size: 32}
formats: [onnx, gguf]
context: 2048
rope_scaling: {type: yarn, factor: 4, original_max_position_embeddings: 32768}
sampling: {temperature: 0.7}
accept: {size_mb: 400}
"""


def test_the_schema_is_valid_and_describes_every_field() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert tuple(schema["properties"]) == KEYS
    for described in (schema, *schema["$defs"].values()):
        for key, value in described["properties"].items():
            assert value.get("description"), key


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (VALID, True),
        ("extends: base\nscheme: {body: int8}\nsource: {revision: x}\nrope_scaling: {factor: 2}\n", True),
        ("source: {repo: a/b}\nrope_scaling: null\nmodel: null\n", True),
        ("extends: base\ncontext: null\nscheme: {mixed: {tokens: null}, body: ~}\nsampling: null\n", True),
        ("extends: base\nsource: {repo: null}\n", False),
        ("extends: base\nsource: null\n", False),
        ("extends: base\nformats: [null]\n", False),
        ("source: {repo: a/b}\ncontext: null\n", False),
        ("source: {repo: a/b, host: null}\n", False),
        ("source: {repo: a/b}\nscheme: {mixed: {budget_mb: 3, tokens: null}}\n", False),
        ("context: 32\n", False),
        ("source: {}\n", False),
        ("source: {repo: a/b}\nrope_scaling: {factor: 2}\n", False),
        ("source: {repo: a/b}\nscheme: {body: int5}\n", False),
        ("source: {repo: a/b}\nscheme: {mix: Q4_K_M}\nimatrix: im.gguf\n", True),
        ("source: {repo: a/b}\nscheme: {mix: null, body: q4_k}\n", True),
        ("source: {repo: a/b}\nscheme: {mix: Q4_K_M, body: q4_k}\n", False),
        ("source: {repo: a/b}\nscheme: {mix: Q9_K}\n", False),
        ("source: {repo: a/b}\nname: x\n", False),
        ("source: {repo: a/b, x: 1}\n", False),
        ("source: {repo: a/b}\ncontext: -1\n", False),
    ],
)
def test_the_schema_agrees_with_the_reader(text: str, valid: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    data = yaml_source.parse(text.encode(), "x").data
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(data) is valid
