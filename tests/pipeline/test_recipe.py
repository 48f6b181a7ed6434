"""Recipes: what is read, and what every wrong one says."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tolerances
from edgeship import recipe as recipe_module
from edgeship import yaml_source
from edgeship.errors import RecipeError, UsageError
from edgeship.recipe import Recipe, chosen_formats
from edgeship.recipe_file import KEYS, read_recipe

VALID = """\
# edgeship export mine
description: a test
source:
  host: huggingface
  repo: Qwen/Qwen2.5-0.5B-Instruct
  revision: main
model:
  model_type: qwen2
  rms_norm_eps: 1e-6
scheme: {body: int4, embeddings: int8, head: int8, group_size: 32}
formats: [onnx]
context: 2048
logits: last
rope_scaling: {type: yarn, factor: 4, original_max_position_embeddings: 32768}
sampling: {temperature: 0.7, top_k: 20, top_p: 0.8, repetition_penalty: 1.1}
accept: {size_mb: 400}
"""


def write(directory: Path, text: str | bytes, name: str = "mine.yaml") -> Path:
    path = directory / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert len(str(caught.value).splitlines()) < 40  # one screen
    return str(caught.value)


def test_a_recipe_is_read_with_its_types(tmp_path: Path) -> None:
    r = read_recipe(write(tmp_path, VALID))
    assert (r.name, r.context, r.formats, r.logits) == ("mine", 2048, ("onnx",), "last")
    assert r.model == {"model_type": "qwen2", "rms_norm_eps": 1e-6}
    assert r.scheme.encoding("body").name == "int4-32"
    assert r.rope_scaling is not None
    assert r.rope_scaling.block() == {
        "rope_type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 32768,
    }
    assert (r.sampling.temperature, r.sampling.min_p) == (0.7, 0.0)
    assert json.loads(json.dumps(r.resolved())) == r.resolved()


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    r = read_recipe(write(tmp_path, VALID))
    with pytest.raises(ValueError, match="frozen"):
        r.context = 1


def test_only_the_source_is_needed(tmp_path: Path) -> None:
    r = read_recipe(write(tmp_path, "source: {repo: a/b}\n"))
    assert (r.source.host, r.source.revision, r.scheme.head, r.formats) == ("huggingface", "main", "int8", ("onnx",))


def test_words_that_yaml_1_1_takes_for_other_things_stay_text(tmp_path: Path) -> None:
    r = read_recipe(
        write(tmp_path, "source: {repo: a/b, revision: 2024-01-01}\ndescription: no\nmodel: {theta: 1e6}\n")
    )
    assert (r.source.revision, r.description, r.model) == ("2024-01-01", "no", {"theta": 1e6})


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, b"\xef\xbb\xbf" + VALID.encode())).context == 2048


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("source: {repo: a/b}\ncontxt: 1\n", "2:1", "unknown key 'contxt'; did you mean 'context'?"),
        ("source: {repo: a/b}\ngroup_size: 32\n", "2:1", "unknown key 'group_size'; it belongs in 'scheme'"),
        ("source: {repo: a/b}\nscheme: {context: 1}\n", "2:10", "it belongs at the top level"),
        ("source: {repo: a/b}\nzzz: 1\n", "2:1", "unknown key 'zzz'; expected one of extends, description,"),
        ("source: {repo: a/b}\nname: x\n", "2:1", "a recipe is called after its file"),
        (
            "source: {repo: a/b}\nscheme: {boddy: int4}\n",
            "2:10",
            "unknown key 'boddy' in 'scheme'; did you mean 'body'?",
        ),
        ("source: {repo: a/b}\ncontext: many\n", "2:10", "expected a whole number from 16 to 1048576, found 'many'"),
        ("source: {repo: a/b}\ncontext: '4096'\n", "2:10", "found '4096'; remove the quotes"),
        ("source: {repo: a/b}\ncontext: 40.5\n", "2:10", "expected a whole number from 16 to 1048576, found 40.5"),
        ("source: {repo: a/b}\ncontext: -1\n", "2:10", "expected a whole number from 16 to 1048576, found -1"),
        ("source: {repo: a/b}\ncontext: true\n", "2:10", "found true"),
        ("source: {repo: a/b}\ncontext:\n", "2:9", "found nothing"),
        (
            "source: {repo: a/b}\nscheme: {body: int5}\n",
            "2:16",
            "tq2_0, q1_0, found 'int5'; did you mean 'int8'?",
        ),
        ("source: {repo: a/b}\nscheme: {body: float61}\n", "2:16", "did you mean 'float16'?"),
        ("source: {repo: a/b}\nscheme: {group_size: 33}\n", "2:22", "expected one of 32, 64, 128, found 33"),
        ("source: {repo: a/b}\nscheme: {body: Q4_K}\n", "2:16", "found 'Q4_K'; did you mean 'q4_k'?"),
        ("source: {repo: a/b}\nscheme: {mix: q4_k_m}\n", "2:15", "found 'q4_k_m'; did you mean 'Q4_K_M'?"),
        (
            "source: {repo: a/b}\nscheme: {mix: Q4_K_M, head: int8, body: int4}\n",
            "2:15",
            "scheme.mix: a mix chooses the type of every tensor; remove body and head, or the mix",
        ),
        ("source: {repo: a/b}\nimatrix: 3\n", "2:10", "imatrix: expected text of at most 300 characters, found 3"),
        ("source: {repo: a/b}\nimatrix: ''\n", "2:10", "imatrix: expected text"),
        ("source: {repo: a/b}\nscheme: int4\n", "2:9", "expected a mapping with the keys body, embeddings"),
        ("source: {repo: a/b}\nscheme: [int4]\n", "2:9", "found a list"),
        ("source: {repo: a/b}\nformats: onnx\n", "2:10", "formats: expected a list of onnx, gguf, found 'onnx'"),
        (
            "source: {repo: a/b}\nformats: [onxn]\n",
            "2:11",
            "formats[0]: expected one of onnx, gguf, found 'onxn'; did you mean 'onnx'?",
        ),
        ("source: {repo: a/b}\nformats: []\n", "2:10", "formats: expected a list of onnx, gguf, found an empty list"),
        ("source: {repo: a/b}\nformats: [onnx, onnx]\n", "2:10", "expected each value once"),
        ("source: {repo: a/b}\nsampling: {top_p: 1.5}\n", "2:19", "expected a number above 0, at most 1, found 1.5"),
        ("source: {repo: a/b}\nsampling: {temperature: .nan}\n", "2:25", "expected a finite number, found .nan"),
        ("source: {repo: a/b}\nsampling: {temperature: -.inf}\n", "2:25", "expected a finite number, found -.inf"),
        ("source: {repo: a/b}\nsampling: {temperature: 1e999}\n", "2:25", "expected a finite number, found 1e999"),
        ("source: {repo: a/b}\nrope_scaling: {type: yarn}\n", "2:1", "missing key 'factor' in 'rope_scaling'"),
        ("source: {repo: a/b}\nrope_scaling: {type: ntk, factor: 2}\n", "2:22", "expected yarn, found 'ntk'"),
        ("source: {repo: a/b}\nmodel: 3\n", "2:8", "model: expected a mapping, found 3"),
        ("source: {repo: ab}\n", "1:16", "source.repo: expected text of the form owner/name, found 'ab'"),
        ("source: {repo: ../b}\n", "1:16", "expected text of the form owner/name"),
        ("source: {repo: a/b, revision: 1234567}\n", "1:31", "found 1234567; put it in quotes"),
        ("source: {repo: a/b, host: hugingface}\n", "1:27", "did you mean 'huggingface'?"),
        ("source: {repo: a/b, host: local}\n", "1:9", "a local source needs its directory"),
        ("source: {repo: a/b, path: x}\n", "1:21", "'path' goes with `host: local` only"),
        ('source: {repo: a/b}\ndescription: "a\\nb"\n', "2:14", "expected one line of text"),
        ("description: x\n", "1:1", "missing key 'source'"),
        ("source: {host: huggingface}\n", "1:1", "missing key 'repo' in 'source'"),
        ("source: {repo: a/b}\nsource: {repo: c/d}\n", "2:1", "the key 'source' stands here again (first on line 1)"),
        ("source: &a {repo: a/b}\nmodel: *a\n", "1:9", "anchors are not used here"),
        ("source: {repo: a/b}\nmodel: *a\n", "2:8", "aliases are not used here"),
        ("source: {repo: a/b}\nmodel: {<<: 1, !!int 2: 3}\n", "2:16", "anchors and tags are not used here"),
        ("source: !!python/object:os.system {}\n", "1:9", "tags are not used here"),
        ("source:\n\trepo: a/b\n", "2:1", "expected spaces, found a tab"),
        ("source: {repo: a/b\n", "2:1", "not valid YAML"),
        ("source: {repo: a/b}\n  context: 1\n", "2:3", "not valid YAML"),
        ("- a\n- b\n", "1:1", "expected a mapping of keys to values (`context: 4096`), found a list"),
        ("just text\n", "1:1", "found text"),
        ("", "1:1", "found nothing"),
        ("# only a comment\n", "1:1", "found nothing"),
        ("source: {repo: a/b}\n---\nsource: {}\n", "2:1", "expected one document, found a second"),
        ("source: {repo: a/b}\n? [a, b]\n: 1\n", "2:3", "expected a key of plain text"),
        ('source: {repo: a/b}\ndescription: "\\ud800"\n', "2:14", "half a surrogate pair"),
        ('source: {repo: a/b}\ndescription: "\\UFFFFFFFF"\n', "1:1", "an escape or number in it is out of range"),
        (b"source: {repo: a/b}\ndescription: caf\xe9\n", "2:17", "expected UTF-8, found the byte 0xe9"),
        (b"source: {repo: a/b}\ndescription: a\x1b[31m\n", "2:15", "control character U+001B"),
        ("source: {repo: a/b}\nmodel: " + "[" * 2000 + "\n", "2:20", "at most 12 levels of nesting"),
        ("source: {repo: a/b}\n#" + "x" * 70_000, "1:1", "expected at most 65536 bytes"),
    ],
)
def test_a_wrong_recipe_says_where_and_what(tmp_path: Path, text: str | bytes, place: str, says: str) -> None:
    path = write(tmp_path, text)
    message = problems(path)
    assert f"{path}:{place}: " in message
    assert says in message


def test_all_problems_come_at_once_with_the_line_and_a_caret(tmp_path: Path) -> None:
    path = write(tmp_path, "sorce: {repo: a/b}\nscheme: {body: int5, group_size: 33}\ncontext: -4\ncontext: 9\n")
    message = problems(path)
    assert message.startswith(f"{path}: 6 problems; nothing was done.\n")
    assert "    2 | scheme: {body: int5, group_size: 33}\n      |                ^^^^\n" in message
    assert message.count("\n      | ") == 6
    for said in ("'sorce'", "missing key 'source'", "int5", "found 33", "found -4", "again (first on line 3)"):
        assert said in message
    assert "\n\nhint: " in message


def test_carets_stand_under_wide_characters_and_in_long_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "source: {repo: a/b, revision: 模型}\nscheme: {head: int8, body: 模型}\n")
    assert "    2 | scheme: {head: int8, body: 模型}\n      |                            ^^^^\n" in problems(path)
    padded = "model: {" + "a" * 300 + ": 1}  # " + "b" * 300 + "\nscheme: {head: int8" + " " * 200 + ", body: int5}\n"
    message = problems(write(tmp_path, "source: {repo: a/b}\n" + padded))
    source, caret = next(
        pair for pair in zip(message.splitlines(), message.splitlines()[1:], strict=False) if "^" in pair[1]
    )
    assert source[caret.index("^") :].startswith("int5")
    assert len(source) < 120


def test_more_than_a_screenful_is_cut(tmp_path: Path) -> None:
    message = problems(write(tmp_path, "source: {repo: a/b}\n" + "".join(f"key{i}: 1\n" for i in range(30))))
    assert f"... and {30 - yaml_source.MAX_SHOWN} more" in message


@pytest.mark.parametrize("name", ["a b.yaml", ".hidden.yaml", "-x.yaml", "a:b.yaml", "ü.yaml", "x" * 120 + ".yaml"])
def test_a_name_that_is_no_safe_directory_is_refused(tmp_path: Path, name: str) -> None:
    assert "after its file; expected letters, digits" in problems(write(tmp_path, VALID, name))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in problems(tmp_path / "absent.yaml")
    assert "ending in .yaml" in problems(tmp_path)
    (tmp_path / "directory.yaml").mkdir()
    assert "found a directory" in problems(tmp_path / "directory.yaml")
    assert "cannot be read" in problems(tmp_path / ("x" * 300 + ".yaml"))
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    problems(tmp_path / "loop.yaml")


# local sources


def test_a_local_path_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    write(there, "source: {host: local, repo: a/b, path: weights}\n", "base.yaml")
    r = read_recipe(write(tmp_path, "extends: there/base.yaml\n"))
    assert r.source.path == str(there / "weights")
    assert "path" not in r.resolved()["source"]


def test_builtin_is_the_checkpoint_in_the_package(tmp_path: Path) -> None:
    r = read_recipe(write(tmp_path, "source: {host: local, repo: a/b, path: builtin}\n"))
    assert r.source.path == str(Path(recipe_module.__file__).parent / "tiny" / "checkpoint")


def test_an_unknown_home_directory_is_a_problem(tmp_path: Path) -> None:
    message = problems(write(tmp_path, "source: {host: local, repo: a/b, path: ~nobody-of-that-name/x}\n"))
    assert "source.path: expected a directory" in message


def test_formats_are_chosen_among_the_recipes_own() -> None:
    r = Recipe.model_validate({"name": "x", "source": {"repo": "a/b"}})
    assert chosen_formats(r, []) == chosen_formats(r, ["onnx", "onnx"]) == ("onnx",)
    with pytest.raises(UsageError, match="expected one of onnx, found 'onxn'; did you mean 'onnx'"):
        chosen_formats(r, ["onxn"])


@pytest.mark.parametrize(
    "unit",
    ["{", "[", "- ", "? ", "a: ", "{a: ", "'", '"', "\n", "a\n", "a: 1\n", "&a ", "*a ", "!", "|\n", "a: &a [*a,"],
)
def test_hostile_repetition_is_refused_in_time(tmp_path: Path, unit: str) -> None:
    started = time.process_time()
    problems(write(tmp_path, unit * (60_000 // len(unit))))
    assert time.process_time() - started < tolerances.HOSTILE_YAML_SECONDS


# fuzz: any bytes give a Recipe or a RecipeError

WORDS = [*KEYS, "repo", "a/b", "host", "local", "path", "body", "int4", "32", "-1", ".nan", "null", "true", "~", "*a"]
WORDS += ["&a", "!!x", "---", "...", "1e9", "0x1f", "=", "<<", "é", "模", "\U0001f642"]
SIGNS = [
    "%YAML 9.9",
    "- ",
    "? ",
    ": ",
    ", ",
    *"{}[]|>'\"\\#\t\n",
    "\n  ",
    "\n    ",
    "\r\n",
    *"\r\x85\u2028\ufeff\x00\x1b",
]
ATOMS = st.sampled_from(WORDS + SIGNS)


def reads_or_refuses(directory: Path, raw: bytes) -> None:
    said = f"{directory / 'mine.yaml'}:1:"
    try:
        assert isinstance(read_recipe(write(directory, raw)), Recipe)
    except RecipeError as e:
        said = str(e)
    assert str(directory / "mine.yaml") in said
    said.encode("utf-8")  # can be printed


@settings(max_examples=300, deadline=None)
@given(st.lists(ATOMS, max_size=40).map("".join))
def test_fuzz_yaml_like_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    reads_or_refuses(tmp_path_factory.getbasetemp(), text.encode())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_fuzz_bytes(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    reads_or_refuses(tmp_path_factory.getbasetemp(), raw)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_fuzz_mutated_recipes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = VALID
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(ATOMS | st.text(max_size=3)) + text[at + cut :]
    reads_or_refuses(tmp_path_factory.getbasetemp(), text.encode("utf-8", "replace"))
