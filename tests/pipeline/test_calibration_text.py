"""Calibration tokens: from text, from conversations, and from the model itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

import exports
from checkpoints import CHAT_TEMPLATE, write_checkpoint
from edgeship import archs
from edgeship.calibrate import pieces, sampler
from edgeship.calibrate import text as calibrate_text
from edgeship.calibrate.pieces import Pieces
from edgeship.calibrate.text import conversation_start, digest, read_tokens
from edgeship.calibration import Calibration
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.errors import RecipeError
from edgeship.plan import plan_checkpoint
from edgeship.progress import Silent
from edgeship.recipe_file import read_recipe
from edgeship.reference.weights import CheckpointWeights
from edgeship.text import TextSide, open_text
from edgeship.tiny import checkpoint_dir
from edgeship_runtime.chat import ChatTemplate

WORDS = "The cat sat on the mat. The dog sat by the door.\n"


def side(path: Path) -> TextSide:
    source = open_checkpoint(path)
    return open_text(source, plan_checkpoint(exports.recipe(), source.config))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextSide:
    return side(write_checkpoint(tmp_path_factory.mktemp("model")))


def written(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_text_is_cut_into_sequences_of_its_own_tokens(text: TextSide, tmp_path: Path) -> None:
    content = "".join(f"{i}: {WORDS}" for i in range(200))
    ids = text.tokenizer.encode(content).ids
    found = read_tokens(Calibration(text=written(tmp_path / "a", content), tokens=320, sequence=32), text)
    assert [len(each) for each in found] == [32] * 10
    assert all(each == ids[a : a + 32] for each in found for a in [_place(ids, each)])
    assert len({tuple(each) for each in found}) == 10


def _place(ids: list[int], part: list[int]) -> int:
    return next(a for a in range(len(ids)) if ids[a : a + len(part)] == part)


def test_a_long_text_is_taken_from_all_over_and_the_seed_says_where(text: TextSide, tmp_path: Path) -> None:
    file = written(tmp_path / "long", "".join(f"{i:06d} {WORDS}" for i in range(4000)))
    one, other = (read_tokens(Calibration(text=file, tokens=256, sequence=32, seed=s), text) for s in (0, 1))
    assert [len(each) for each in one] == [32] * 8
    assert one == read_tokens(Calibration(text=file, tokens=256, sequence=32), text)
    assert digest(one) != digest(other)
    firsts = [int(text.tokenizer.decode(each)[:6]) for each in one]
    assert firsts == sorted(firsts)
    assert firsts[0] < 500
    assert firsts[-1] > 3500


@pytest.mark.parametrize("tokens", [64, 100, 130])
def test_no_more_tokens_are_looked_at_than_asked_for(tokens: int, text: TextSide, tmp_path: Path) -> None:
    file = written(tmp_path / "a", WORDS * 100)
    found = read_tokens(Calibration(text=file, tokens=tokens, sequence=128), text)
    assert list(map(len, found)) == [min(tokens, 128)]
    assert list(map(len, drawn(0, tokens=tokens, sequence=128))) == [min(tokens, 128)]


def test_a_tokenizer_that_begins_texts_begins_every_sequence(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    made = write_checkpoint(tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    begin = tokenizer.token_to_id("<|im_start|>")
    tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", begin)])
    tokenizer.save(str(made / "tokenizer.json"))
    found = read_tokens(Calibration(text=written(tmp_path / "a", WORDS * 50), tokens=64, sequence=16), side(made))
    assert [len(each) for each in found] == [16] * 4
    assert all(each[0] == begin and begin not in each[1:] for each in found)


def test_conversations_go_through_the_models_template(text: TextSide, tmp_path: Path) -> None:
    chats = [{"messages": [{"role": "user", "content": f"Count to {i}"}, {"role": "assistant", "content": "1"}]}
             for i in range(30)]  # fmt: skip
    file = written(tmp_path / "chats.jsonl", "\n\n".join(map(json.dumps, chats)))
    found = read_tokens(Calibration(chats=file, tokens=256, sequence=64), text)
    assert [len(each) for each in found] == [64] * 4
    said = text.tokenizer.decode(found[0], skip_special_tokens=False)
    assert said.startswith("<|im_start|>system\nYou are a small model.<|im_end|>\n<|im_start|>user\nCount to ")
    assert CHAT_TEMPLATE.count("assistant") == 1
    assert found != read_tokens(Calibration(chats=file, tokens=256, sequence=64, seed=3), text)


def test_what_else_may_end_a_line_is_part_of_a_conversation(text: TextSide, tmp_path: Path) -> None:
    def found(name: str, between: str, mark: str = "") -> list[list[int]]:
        chats = [{"messages": [{"role": "user", "content": f"The cat{between}sat on mat {i}"}]} for i in range(9)]
        lines = [json.dumps(each, ensure_ascii=False) for each in chats]
        return read_tokens(Calibration(chats=written(tmp_path / name, mark + "\n".join(lines)), tokens=64), text)

    for place, end in enumerate("\u2028\u2029\x85"):
        assert end in text.tokenizer.decode(found(f"{place}.jsonl", end)[0])
    assert found("marked.jsonl", " ", "\ufeff") == found("plain.jsonl", " ")  # as Windows' editors save


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected at least 16 tokens to calibrate with, found 0"),
        (b"cat", "expected at least 16 tokens"),
        (b"caf\xe9 au lait", "it is not UTF-8 (byte 3)"),
        (None, "expected calibration text, but: No such file or directory"),
    ],
)
def test_a_text_of_no_use_is_refused(content: bytes | None, said: str, text: TextSide, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        read_tokens(Calibration(text=str(file)), text)
    assert said in error.value.message
    assert str(file) in error.value.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "chats.jsonl:2: expected a conversation"),
        ("[]", 'no object with a list of "messages"'),
        ('{"messages": "hello"}', 'no object with a list of "messages"'),
        ('{"messages": [{"content": "hello"}]}', "chats.jsonl:2: expected a conversation"),
        ('{"messages": [{"role": "user", "content": "half \\ud800"}]}', "chats.jsonl:2: expected a conversation"),
        ("[" * 100_000, "chats.jsonl:2: expected a conversation"),
        ('{"messages": ' + "[" * 900 + "]" * 900 + "}", "chats.jsonl:2: expected a conversation"),
    ],
)
def test_a_line_that_is_no_conversation_is_named(line: str, said: str, text: TextSide, tmp_path: Path) -> None:
    good = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
    with pytest.raises(RecipeError) as error:
        read_tokens(Calibration(chats=written(tmp_path / "chats.jsonl", f"{good}\n{line}\n")), text)
    assert said in error.value.message


def test_conversations_need_a_template(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "model")
    (made / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((made / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="a model with a chat template"):
        read_tokens(Calibration(chats=written(tmp_path / "c", '{"messages": []}')), side(made))


def test_a_file_beyond_the_limit_is_not_read(text: TextSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_text, "MOST_BYTES", 1 << 20)
    with pytest.raises(RecipeError, match="at most 1 MiB of calibration text, found 2 MiB"):
        read_tokens(Calibration(text=written(tmp_path / "a", "x" * (2 << 20))), text)


@given(st.text(max_size=400), st.integers(1, 50))
def test_pieces_lose_nothing(content: str, piece: int) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint_dir() / "tokenizer.json"))
    before = calibrate_text.PIECE
    try:
        calibrate_text.PIECE = piece
        ids = calibrate_text._encode(tokenizer, content)
    finally:
        calibrate_text.PIECE = before
    plain = "".join(c for c in content if c.isascii())
    assert tokenizer.decode(list(calibrate_text._encode(tokenizer, plain)), skip_special_tokens=False) == plain
    assert bool(ids) == bool(content)


@given(st.text(st.sampled_from("ab \n\r\ufeff\u2028é🙂"), max_size=80), st.integers(1, 9), st.data())
def test_a_file_in_pieces_is_the_text_of_the_file(content: str, size: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        file = Path(home) / "text"
        file.write_bytes(content.encode())
        patch.setattr(pieces, "BYTES", size)
        whole, found = file.read_text(encoding="utf-8-sig"), Pieces(file)
        assert (len(found), "".join(found)) == (len(whole), whole)
        for _ in range(5):
            a, b = data.draw(st.integers(0, 90)), data.draw(st.integers(0, 90))
            assert found[a:b] == whole[a:b]
        lines = [whole[a:b] for a, b in calibrate_text._lines(found)]
        assert lines == [line for line in whole.split("\n") if line.strip()]


def test_what_is_not_utf_8_is_found_at_its_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "BYTES", 4)
    (tmp_path / "text").write_bytes("ab🙂cé".encode() + b"\xf0\x9f" + b"cd")
    with pytest.raises(UnicodeDecodeError) as error:
        Pieces(tmp_path / "text")
    assert error.value.start == 9


def test_of_many_conversations_only_those_are_read_that_are_looked_at(
    text: TextSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(tokens: int) -> list[list[int]]:
        return read_tokens(Calibration(chats=file, tokens=tokens, sequence=32), text)

    chats = [{"messages": [{"role": "user", "content": f"Count to {i}"}]} for i in range(500)]
    file, rendered = written(tmp_path / "chats.jsonl", "\n".join(map(json.dumps, chats))), list[int]()
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda *a, **k: rendered.append(1) or render(*a, **k))
    few = found(64)
    assert len(rendered) < 8
    assert found(4096)[:2] == few, "the order is drawn from all of them"
    assert len(rendered) > 50


def test_files_are_looked_at_in_little_memory(tmp_path: Path) -> None:
    taken = {}
    made = write_checkpoint(tmp_path / "model")
    chat = json.dumps({"messages": [{"role": "user", "content": WORDS * 4}]}) + "\n"
    for kind, content in (("text", WORDS * (1 << 19)), ("chats", chat * (1 << 17))):
        file = written(tmp_path / kind, content + ("" if kind == "chats" else "🙂"))
        command = [sys.executable, "-c", READING, str(made), kind, file]
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        taken[kind] = int(subprocess.check_output(command, env=os.environ | paths))
    assert max(taken.values()) < 20e6, taken


READING = """
import sys
from pathlib import Path
import exports
from edgeship.calibrate.text import read_tokens
from edgeship.calibration import Calibration
from edgeship.checkpoint.checkpoint import open_checkpoint
from edgeship.memory import peak_rss
from edgeship.plan import plan_checkpoint
from edgeship.text import open_text

source = open_checkpoint(Path(sys.argv[1]))
text = open_text(source, plan_checkpoint(exports.recipe(), source.config))
before = peak_rss()
read_tokens(Calibration(**{sys.argv[2]: sys.argv[3]}, tokens=512, sequence=64), text)
print(peak_rss() - before)
"""


# Text the model writes itself


def drawn(seed: int, tokens: int = 128, sequence: int = 16, conversation: Sequence[int] = ()) -> list[list[int]]:
    source = open_checkpoint(checkpoint_dir())
    decoder = archs.read(source.config)
    weights = CheckpointWeights(account(source, decoder.roles()))
    tokenizer = Tokenizer.from_file(str(checkpoint_dir() / "tokenizer.json"))
    section = Calibration(tokens=tokens, sequence=sequence, seed=seed)
    return sampler.sample(decoder, weights, tokenizer, section, Silent(), conversation)


def test_the_model_writes_what_it_deems_likely() -> None:
    source = open_checkpoint(checkpoint_dir())
    decoder = archs.read(source.config)
    weights = CheckpointWeights(account(source, decoder.roles()))
    from edgeship.reference.forward import Pass

    found = drawn(0, tokens=512, sequence=32)
    assert [len(each) for each in found] == [32] * 16
    with Pass(decoder, weights, len(found)) as run:
        hidden = run.extend([each[:-1] for each in found])
        logits = np.concatenate(run.logits(hidden, lambda _, piece: piece)).T.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -logs[np.arange(len(logs)), [i for each in found for i in each[1:]]].mean()
    entropy = -(np.exp(logs) * logs).sum(axis=1).mean()
    assert abs(loss - entropy) < 0.25, "draws follow the model's probabilities"


def test_the_seed_decides_what_it_writes() -> None:
    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)
    assert len({each[0] for each in drawn(5)}) > 4, "sequences begin differently"


def test_every_second_sequence_begins_as_a_conversation_does(text: TextSide) -> None:
    start = conversation_start(text)
    assert text.tokenizer.decode(start, skip_special_tokens=False) == "<|im_start|>"
    found = drawn(0, conversation=(3, 4, 5))
    assert [each[:3] == [3, 4, 5] for each in found] == [True, False] * 4
    assert {len(each) for each in found} == {16}
    assert len({tuple(each) for each in found}) == 8


def test_noise_does_not_depend_on_how_the_vocabulary_is_cut() -> None:
    whole = sampler._noise(1, 2, 0, 3000, 5)
    np.testing.assert_array_equal(whole[700:2100], sampler._noise(1, 2, 700, 2100, 5))
    assert abs(whole.mean() - np.euler_gamma) < 0.05


# The section of a recipe


def recipe_file(tmp_path: Path, section: str) -> Path:
    path = tmp_path / "case.yaml"
    path.write_text(f"source: {{host: local, repo: a/b, path: .}}\ncalibration: {section}\n")
    return path


def test_files_are_relative_to_the_recipe_and_recorded_without_their_directories(tmp_path: Path) -> None:
    recipe = read_recipe(recipe_file(tmp_path, "{chats: data/c.jsonl, tokens: 1024}"))
    assert recipe.calibration is not None
    assert recipe.calibration.file == tmp_path / "data" / "c.jsonl"
    assert recipe.resolved()["calibration"] == {
        "text": None, "chats": "c.jsonl", "tokens": 1024, "sequence": 512, "seed": 0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("{text: a, chats: b}", "'text' and 'chats' are alternatives"),
        ("{tokens: 10}", "64"),
        ("{sequence: 8}", "16"),
        ("{txt: a}", "txt"),
    ],
)
def test_a_section_that_says_what_cannot_be_is_refused_with_its_line(section: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        read_recipe(recipe_file(tmp_path, section))
    assert said in error.value.message
    assert "case.yaml:2" in error.value.message


def test_an_unknown_algorithm_is_refused() -> None:
    given: dict[str, Any] = {"scheme": {"algorithm": "awq"}}
    with pytest.raises(ValidationError):
        exports.recipe(**given)
