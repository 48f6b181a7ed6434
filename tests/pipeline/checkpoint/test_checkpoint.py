"""Checkpoint directories: what is opened, what is refused and in which words, and the account of every tensor."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import narrow, random_weights, write_checkpoint, write_safetensors, write_weights
from edgeship import archs
from edgeship.archs.base import Role
from edgeship.checkpoint import checkpoint as module
from edgeship.checkpoint import files
from edgeship.checkpoint.checkpoint import account, fingerprint, open_checkpoint, read_config
from edgeship.checkpoint.files import INDEX, SINGLE, choose_weights, parse_index
from edgeship.checkpoint.strict_json import show
from edgeship.errors import CheckpointError

HEAD = "lm_head.weight"
EMBEDDINGS = "model.embed_tokens.weight"


def roles_of(path: Path) -> tuple[Role, ...]:
    return archs.read(read_config(path)).roles()


def refused(path: Path) -> str:
    """Open and account; the message of the one-screen error that must come."""
    with pytest.raises(CheckpointError) as e:
        account(open_checkpoint(path), roles_of(path))
    assert e.value.hint
    assert str(e.value).count("\n") < 20
    return e.value.message


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_every_role_gets_its_tensor(tmp_path: Path, model_type: str, shards: int, tied: bool) -> None:
    path = write_checkpoint(tmp_path / "ck", model_type, shards=shards, tied=tied, dtype="F32")
    checkpoint = open_checkpoint(path, "abc")
    assert checkpoint.revision == "abc"
    assert checkpoint.config == json.loads((path / "config.json").read_text())
    tensors = account(checkpoint, roles_of(path))
    weights = random_weights(checkpoint.config)
    assert [r.key for r in roles_of(path)] == list(tensors)
    for role in roles_of(path):
        np.testing.assert_array_equal(tensors[role.key].rows(0, role.shape[0]), weights[role.tensor])
    assert {f.name for f in checkpoint.files} == {f.name for f in path.iterdir()}


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck")
    others = ("pytorch_model.bin", "consolidated.safetensors", "model.gguf", "README.md", ".gitattributes")
    for name in others:
        (path / name).write_bytes(b"x")
    (path / "onnx").mkdir()
    checkpoint = open_checkpoint(path)
    assert not {f.name for f in checkpoint.files} & {*others, "onnx"}


# Which files


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (["pytorch_model.bin"], "pickle.*pytorch_model.bin"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickle"),
        (["consolidated.00.pth"], "pickle.*consolidated.00.pth"),
        (["model.pt"], "pickle"),
        (["qwen-q4_0.gguf"], "GGUF.*qwen-q4_0.gguf"),
        (["adapter_model.safetensors", "adapter_config.json"], "adapter"),
        (["adapter_model.bin", "adapter_config.json"], "adapter"),
        (["weights.safetensors"], "other names.*weights.safetensors"),
        (["model-00001-of-00002.safetensors"], "no model.safetensors.index.json"),
        (["README.md"], "no weights at all"),
        ([], "no weights at all"),
    ],
)
@pytest.mark.parametrize("config", [True, False])
def test_directories_without_weights(tmp_path: Path, files: list[str], text: str, config: bool) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    if config:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"(?s){text}") as e:
        open_checkpoint(tmp_path)
    assert e.value.hint


def test_what_to_do_with_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError) as e:
        open_checkpoint(tmp_path)
    assert "safe_serialization=True" in e.value.hint


def test_paths_that_are_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="found a file"):
        open_checkpoint(tmp_path / "file")
    with pytest.raises(CheckpointError, match="No such file"):
        open_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="no such file"):
        read_config(tmp_path / "missing")
    for opener in (open_checkpoint, read_config):
        with pytest.raises(CheckpointError, match="too long"):
            opener(tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_files_that_every_checkpoint_has(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path / "ck")
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=name) as e:
        open_checkpoint(path)
    assert e.value.hint


def test_single_file_and_index_together(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", shards=2)
    write_weights(path, random_weights(read_config(path)))
    assert "found both model.safetensors and" in refused(path)
    (path / INDEX).unlink()
    assert "found both model.safetensors and 2 shards" in refused(path)


def test_an_index_of_the_single_file_is_fine(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck")
    (path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(open_checkpoint(path).tensors, SINGLE)}))
    account(open_checkpoint(path), roles_of(path))


# Shards and index


def edit_index(path: Path, change: Any) -> None:
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    (path / INDEX).write_text(json.dumps(index))


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", shards=13, layers=4)
    for i in range(2, 14):
        (path / f"model-{i:05d}-of-00013.safetensors").unlink()
    message = refused(path)
    assert "12 of them missing" in message
    assert "model-00002-of-00013.safetensors" in message
    assert "and 2 more" in message


def test_a_shard_that_the_index_does_not_name(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", shards=2)
    write_safetensors(path / "model-00003-of-00003.safetensors", {})
    message = refused(path)
    assert "does not name" in message
    assert "model-00003-of-00003.safetensors" in message


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", shards=2)
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))

    def change(weight_map: dict[str, str]) -> None:
        assert weight_map[EMBEDDINGS] == first
        weight_map[EMBEDDINGS] = second
        weight_map["model.extra"] = first
        del weight_map["model.norm.weight"]

    edit_index(path, change)
    message = refused(path)
    assert f"{EMBEDDINGS}: not in {second}" in message
    assert "model.extra: not in" in message
    assert f"model.norm.weight: in {second}, not in the index" in message


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", shards=2)
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    names = [n for n, f in json.loads((path / INDEX).read_text())["weight_map"].items() if f == second]
    weights = random_weights(read_config(path))
    write_safetensors(path / second, {n: ("F32", weights[n]) for n in [EMBEDDINGS, *names]})
    assert f"{EMBEDDINGS}: in {first} and {second}" in refused(path)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/model.safetensors", "..", "a\\b.safetensors", "C:x.safetensors", "sub/x.safetensors",
     "", "x.bin", ".hidden.safetensors", "a\0.safetensors", "a\n.safetensors", "x" * 300 + ".safetensors", 5, None, []],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(name: Any) -> None:
    with pytest.raises(CheckpointError, match="expected the name of a"):
        parse_index(json.dumps({"weight_map": {"t": name}}).encode(), INDEX)


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b"{}", "weight_map"),
        (b'{"weight_map": {}}', "weight_map"),
        (b'{"weight_map": []}', "weight_map"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', '"a" occurs twice'),
        (b'{"weight_map": {"a": "x.safetensors"}', "not JSON.*line 1, column"),
    ],
)
def test_malformed_indexes(blob: bytes, text: str) -> None:
    with pytest.raises(CheckpointError, match=f"(?s){text}") as e:
        parse_index(blob, INDEX)
    assert e.value.hint


@given(
    st.binary(max_size=100)
    | st.builds(
        lambda m: json.dumps({"weight_map": m}).encode(),
        st.dictionaries(
            st.text(max_size=8),
            st.text(max_size=8) | st.text(max_size=8).map(lambda t: t + ".safetensors") | st.integers(),
        ),
    )
)
@settings(max_examples=400, deadline=None)
def test_fuzz_indexes(blob: bytes) -> None:
    try:
        names = choose_weights({INDEX}, "place", lambda: blob)
    except CheckpointError as error:
        str(error).encode()
        return
    raise AssertionError(f"no shard is there, but {names} were chosen")


# config.json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "expected a JSON object, found list"),
        ('{"a": 1, "a": 2}', '"a" occurs twice'),
        ('{"a": {"b": 1, "b": 2}}', '"b" occurs twice'),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "out of range"),
        ('{"a": 1,\n "b": }', "line 2, column 7"),
        ("[" * 100_000, "nested too deeply"),
        ('{"quantization_config": {"quant_method": "gptq"}}', "quantized already.*gptq"),
        ('{"quantization_config": 3}', "quantized already"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as e:
        read_config(tmp_path)
    assert e.value.hint
    assert str(tmp_path / "config.json") in e.value.message


def test_a_config_that_is_not_utf8_or_far_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_config(tmp_path)
    monkeypatch.setattr(files, "JSON_LIMIT", 10)
    (tmp_path / "config.json").write_text('{"a": "0123456789"}')
    with pytest.raises(CheckpointError, match="at most 10 bytes"):
        read_config(tmp_path)


def test_config_by_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert read_config(tmp_path / "config.json") == read_config(tmp_path) == {"a": 1}


# The account


def rewrite(path: Path, **changes: Any) -> None:
    """Write the weights again with tensors added, replaced, or (None) left out."""
    weights = {**random_weights(read_config(path)), **changes}
    write_weights(path, {k: v for k, v in weights.items() if v is not None})


def test_all_problems_in_one_error(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck")
    zeros = np.zeros((3, 3), np.float32)
    rewrite(path, **{"model.norm.weight": None, "model.layers.1.mlp.up_proj.weight": zeros, "model.extra": zeros})
    message = refused(path)
    assert "3 problem(s)" in message
    assert "model.norm.weight: missing, expected [64]" in message
    assert "model.layers.1.mlp.up_proj.weight: expected shape [96, 64] (from config.json), found [3, 3]" in message
    assert "model.extra: not used by this architecture, found [3, 3] in model.safetensors" in message


def test_many_problems_stay_on_one_screen(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", layers=3)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert "24 problem(s)" in (message := refused(path))
    assert "and 14 more" in message


def test_names_from_the_file_are_escaped(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck")
    rewrite(path, **{"evil\x1b[2J\nname": np.zeros(1, np.float32)})
    message = refused(path)
    assert "\x1b" not in message
    assert r"evil\u001b[2J\nname" in message


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("東京 é", '"東京 é"'),
        ('a"b\\c\n', r'"a\"b\\c\n"'),
        ("a\u202eb\x7f\x85\ud800\u2028", r'"a\u202eb\u007f\u0085\ud800\u2028"'),
        ("é" * 101, f'"{"é" * 100}…"'),
    ],
)
def test_what_can_be_read_is_not_escaped(name: str, shown: str) -> None:
    assert show(name) == shown


def test_rotary_buffers_are_passed_over(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", "llama")
    rewrite(path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    account(open_checkpoint(path), roles_of(path))


@pytest.mark.parametrize("chunk", [64 * 4, 1 << 22])
def test_a_head_stored_beside_tied_embeddings(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPARE_BYTES", chunk)
    path = write_checkpoint(tmp_path / "ck")
    embeddings = random_weights(read_config(path))[EMBEDDINGS]
    embeddings[7, 7] = np.nan
    rewrite(path, **{EMBEDDINGS: embeddings, HEAD: embeddings})
    assert "head.weight" not in account(open_checkpoint(path), roles_of(path))
    other = embeddings.copy()
    other[123, 45] += 1
    rewrite(path, **{EMBEDDINGS: embeddings, HEAD: other})
    assert f"{HEAD}: config.json (tie_word_embeddings) ties it" in (message := refused(path))
    assert "first in row 123" in message
    rewrite(path, **{HEAD: other[:100]})
    assert f"{HEAD}: config.json ties it to {EMBEDDINGS} [320, 64], found [100, 64]" in refused(path)


def test_a_tied_head_of_another_type_is_compared_by_value(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", dtype="F32")
    weights = random_weights(read_config(path))
    exact = (narrow(weights[EMBEDDINGS], "BF16").astype(np.uint32) << 16).view(np.float32)
    tensors = {n: ("F32", w) for n, w in weights.items()}
    tensors |= {EMBEDDINGS: ("F32", exact), HEAD: ("BF16", narrow(exact, "BF16"))}
    write_safetensors(path / SINGLE, tensors)
    account(open_checkpoint(path), roles_of(path))


def test_an_untied_checkpoint_without_head(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", tied=False)
    rewrite(path, **{HEAD: None})
    assert f"{HEAD}: missing" in refused(path)


def test_two_roles_cannot_want_one_tensor(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck")
    roles = roles_of(path)
    with pytest.raises(CheckpointError, match="wanted by 2 roles"):
        account(open_checkpoint(path), [*roles, replace(roles[-1], key="again")])


# Fingerprint


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ck", shards=2)
    checkpoint = open_checkpoint(path)
    first = fingerprint(checkpoint)
    assert first == fingerprint(open_checkpoint(path, "another revision"))
    (path / "README.md").write_text("not read, not counted")
    assert fingerprint(open_checkpoint(path)) == first
    seen = {first}
    for file in checkpoint.files:
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
        seen.add(fingerprint(open_checkpoint(path)))
    assert len(seen) == 1 + len(checkpoint.files)
    checkpoint.files[-1].unlink()
    with pytest.raises(CheckpointError, match="cannot be read any more"):
        fingerprint(checkpoint)
