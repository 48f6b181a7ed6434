"""The text of a comparison: read, cut, and refused where it cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from checkpoints import CORPUS
from edgeship.errors import UsageError
from edgeship.evaluate import windows as module
from edgeship.evaluate.windows import TINY, Windows, read_windows

TEXT = " ".join(CORPUS) * 40


@pytest.fixture
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_the_first_tokens_of_the_text(tokenizer: Tokenizer, text: Path, checkpoint: Path) -> None:
    found = read_windows(tokenizer, text, 200, 64, checkpoint)
    assert found.ids.shape == (3, 64)
    assert found.ids.reshape(-1).tolist() == tokenizer.encode(TEXT, add_special_tokens=False).ids[:192]
    assert found.source == str(text)
    assert len(found.sha256) == 64


def test_a_byte_order_mark_is_not_text(tokenizer: Tokenizer, text: Path, checkpoint: Path) -> None:
    plain = read_windows(tokenizer, text, 200, 64, checkpoint)
    text.write_text(TEXT, encoding="utf-8-sig")
    marked = read_windows(tokenizer, text, 200, 64, checkpoint)
    np.testing.assert_array_equal(marked.ids, plain.ids)
    assert marked.sha256 == plain.sha256


def test_a_part_of_the_text_is_tokenized_and_all_of_it_where_that_is_too_little(
    tokenizer: Tokenizer, text: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_windows(tokenizer, text, 256, 64, checkpoint)
    monkeypatch.setattr(module, "CHARACTERS", 1)  # a part of 256 characters has fewer tokens
    np.testing.assert_array_equal(read_windows(tokenizer, text, 256, 64, checkpoint).ids, whole.ids)


def test_a_window_starts_as_the_tokenizer_starts_a_text(tokenizer: Tokenizer, text: Path, checkpoint: Path) -> None:
    plain = read_windows(tokenizer, text, 128, 64, checkpoint)
    begin = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", begin)]
    )
    found = read_windows(tokenizer, text, 128, 64, checkpoint)
    assert found.ids[:, 0].tolist() == [begin, begin]
    np.testing.assert_array_equal(found.ids[:, 1:], plain.ids[:, 1:])


@given(length=st.integers(8, 70), count=st.integers(1, 5))
@settings(max_examples=50)
def test_every_judged_position_has_half_a_window_before_it_and_a_token_behind(length: int, count: int) -> None:
    windows = Windows(np.arange(length * count).reshape(count, length), "", "")
    places = [windows.place(i) for i in range(windows.positions)]
    assert len(set(places)) == len(places) == count * (length - 1 - length // 2)
    for position, (window, index) in enumerate(places):
        assert length // 2 <= index < length - 1
        assert windows.target(position) == window * length + index + 1
    assert len(windows.few(length).ids) == 1


def test_a_text_for_every_model(tokenizer: Tokenizer, checkpoint: Path) -> None:
    help_pages = read_windows(tokenizer, None, 512, 128, checkpoint)
    assert help_pages.source == "Python's help pages"
    assert help_pages.ids.shape == (4, 128)
    tiny = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    held_out = read_windows(tiny, None, 512, 128, TINY)
    assert held_out.source == "the tiny model's held-out text"
    np.testing.assert_array_equal(held_out.ids, read_windows(tiny, None, 1024, 128, TINY).ids[:4])


def test_a_python_without_help_pages(tokenizer: Tokenizer, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UsageError, match="found none") as caught:
        read_windows(tokenizer, None, 512, 128, checkpoint)
    assert "--text" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "at least 64 tokens, found 0"), (b"a few words", "at least 64 tokens"), (b"\xff\xfe", "another byte at 0")],
)
def test_texts_that_cannot_be_used(
    tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_windows(tokenizer, file, 200, 64, checkpoint)
    assert caught.value.hint


def test_no_text_there(tokenizer: Tokenizer, checkpoint: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_windows(tokenizer, path, 200, 64, checkpoint)


def test_a_text_too_large_to_hold(
    tokenizer: Tokenizer, checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(UsageError, match="at most 1 GB"):
        read_windows(tokenizer, text, 200, 64, checkpoint)
