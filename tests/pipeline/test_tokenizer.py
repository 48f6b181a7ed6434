"""Side files of a checkpoint: whatever they hold, they are understood or refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from checkpoints import NO_LIMIT, write_checkpoint
from edgeship.errors import CheckpointError
from edgeship.tokenizer import chat_templates, open_tokenizer, read_optional, special_tokens

VOCAB = {"vocab_size": 320}
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
IDS = st.sampled_from(["eos_token_id", "bos_token_id", "pad_token_id"])
NAMES = st.sampled_from(["eos_token", "bos_token", "pad_token", "chat_template"])
TEMPLATES = st.fixed_dictionaries(
    {"name": SCALARS | st.sampled_from(["default", "tool_use", ".."]), "template": SCALARS}
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@settings(max_examples=150, deadline=None)
@given(
    generation=st.dictionaries(IDS, VALUES, max_size=3),
    config=st.dictionaries(IDS, VALUES, max_size=3),
    named=st.dictionaries(NAMES, VALUES | st.lists(TEMPLATES, max_size=3), max_size=4),
)
def test_any_values_are_understood_or_refused(directory: Path, generation: Any, config: Any, named: Any) -> None:
    (directory / "generation_config.json").write_text(json.dumps(generation))
    (directory / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    with suppress(CheckpointError):
        special = special_tokens(directory, VOCAB | config, tokenizer)
        assert special.eos
        assert all(type(i) is int and 0 <= i < 320 for i in (*special.eos, special.bos or 0, special.pad or 0))
    with suppress(CheckpointError):
        for name, text in chat_templates(directory).items():
            assert isinstance(text, str)
            assert (directory / name).resolve().is_relative_to(directory.resolve())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_tokenizer_is_loaded_or_refused(directory: Path, data: st.DataObject) -> None:
    whole = (directory / "tokenizer.json").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + data.draw(st.integers(0, 200)) :]
    file = directory / "damaged.json"
    file.write_bytes(damaged)
    with suppress(CheckpointError):
        open_tokenizer(file, 320)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 5}, {"eos_token_id": 6}, (5, 319)),
        ({}, {"eos_token_id": [7, 8]}, (7, 8, 319)),
        ({"eos_token_id": None}, {}, (319,)),
        ({"eos_token_id": -1}, {"eos_token_id": 3}, (3, 319)),
        ({"eos_token_id": [319, 319, 2]}, {}, (319, 2)),
    ],
)
def test_where_the_end_is_looked_for(generation: Any, config: Any, expected: tuple[int, ...], directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps(generation))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert special_tokens(directory, VOCAB | config, tokenizer).eos == expected


def test_a_tokenizer_without_a_limit_is_read(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": NO_LIMIT}))
    assert read_optional(directory / "tokenizer_config.json") == {"model_max_length": NO_LIMIT}
    (directory / "tokenizer_config.json").write_text(f'{{"model_max_length": {"9" * 41}}}')
    with pytest.raises(CheckpointError, match=r"the number 9{20}… is out of range"):
        read_optional(directory / "tokenizer_config.json")


@pytest.mark.parametrize("member", ["chat_template", "eos_token"])
def test_half_a_surrogate_pair_is_refused(member: str, directory: Path) -> None:
    (directory / "generation_config.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text(json.dumps({member: "\ud800"}))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="half of a surrogate pair"):
        special_tokens(directory, VOCAB, tokenizer)
    with pytest.raises(CheckpointError, match="half of a surrogate pair"):
        chat_templates(directory)


def test_padding_and_truncation_of_training_are_switched_off(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(directory / "trained.json"))
    assert len(open_tokenizer(directory / "trained.json", 320).encode("The cat sat on the mat.").ids) not in (2, 50)


def test_a_side_file_of_absurd_size_is_not_read(directory: Path) -> None:
    file = directory / "huge.json"
    with file.open("wb") as out:
        out.truncate(300_000_000)
    with pytest.raises(CheckpointError, match=r"huge\.json: expected at most 200000000 bytes, found 300000000"):
        open_tokenizer(file, 320)


def test_a_tokenizer_that_makes_the_library_panic_is_refused(tmp_path: Path) -> None:
    """The Rust library panics on an empty token in a merge, and its PanicException is no Exception."""
    write_checkpoint(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["model"] |= {
        "vocab": {"": 0, "a": 1, "b": 2, "ab": 3},
        "merges": [["a", "b"]],
        "continuing_subword_prefix": "abc",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path / "tokenizer.json", 320)
