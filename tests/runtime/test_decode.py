"""Text as it comes: never half a character, never a stop string, and in the end what decoding the whole gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Fast

from checkpoints import SPECIAL, write_tokenizer
from edgeship_runtime.decode import REPLACEMENT, StopFilter, WindowDetokenizer, Writer
from edgeship_runtime.errors import ArtifactError, UsageError
from edgeship_runtime.tokens import Tokenizer, read_tokenizer
from qwen_files import TOKENIZER, needs_tokenizer

TEXTS = st.text(max_size=60) | st.sampled_from(
    ["你好，世界 🙂🙂", "def f(x):\n\treturn x\n", "Grüße  👩‍👩‍👧‍👦 e\u0301", "\ufffd\ufffd a"]
)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return read_tokenizer(path / "tokenizer.json")


@cache
def byte_fallback() -> Tokenizer:
    """A tokenizer in the manner of Llama 2: spaces as ▁, unknown characters as byte tokens."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehllo", "▁hello", "he", "ll", "▁▁"]
    vocab = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    inner = Fast(models.BPE(vocab, [("h", "e"), ("l", "l")], unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken("<s>", special=True)])
    return Tokenizer(inner, byte_level=False)


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(data=st.data())
def test_any_tokens_streamed_equal_the_whole_decoded(byte_level: Tokenizer, data: st.DataObject) -> None:
    # Ids past the vocabulary are in: tables are padded, and sampling may choose such a row.
    ids = data.draw(st.lists(st.integers(0, byte_level.vocab_size + 5), max_size=40))
    assert "".join(streamed(byte_level, ids)) == byte_level.decode(ids)


@given(text=TEXTS)
def test_no_piece_holds_half_a_character(byte_level: Tokenizer, text: str) -> None:
    assume(REPLACEMENT not in text)
    ids = byte_level.encode(text)
    pieces = streamed(byte_level, ids)
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "".join(pieces) == byte_level.decode(ids)


def test_characters_cut_by_the_end_come_out_once_at_the_end(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a🙂")
    for cut in range(len(ids)):
        pieces = streamed(byte_level, ids[:cut])
        assert "".join(pieces) == byte_level.decode(ids[:cut])
        assert REPLACEMENT not in "".join(pieces[:-1])


def test_a_stream_that_never_makes_sense_is_not_held_for_ever(byte_level: Tokenizer) -> None:
    stray = byte_level.token_id("Ģ")  # byte 0xA2, only ever a continuation
    assert stray is not None
    pieces = streamed(byte_level, [stray] * 50)
    assert pieces[:-1] == [REPLACEMENT] * 50


@needs_tokenizer
def test_qwens_own_tokenizer() -> None:
    tokenizer = read_tokenizer(TOKENIZER / "tokenizer.json")

    @settings(max_examples=200)
    @given(ids=st.lists(st.integers(0, 151_935), max_size=30), text=TEXTS)
    def check(ids: list[int], text: str) -> None:
        ids = ids + tokenizer.encode(text)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)

    check()


@given(text=TEXTS | st.text(alphabet="hello ab你🙂", max_size=30))
def test_byte_fallback_and_stripped_spaces(text: str) -> None:
    tokenizer = byte_fallback()
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in pieces)


@given(data=st.data())
def test_special_tokens_between_words_lose_no_space(data: st.DataObject) -> None:
    tokenizer = byte_fallback()
    words = [tokenizer.token_id(each) for each in ("▁hello", "he", "▁", "<s>", "<unk>", "▁▁")]
    ids = data.draw(st.lists(st.sampled_from([word for word in words if word is not None]), max_size=20))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_long_run_of_byte_tokens_is_cut_only_between_characters() -> None:
    tokenizer = byte_fallback()
    ids = tokenizer.encode("你好世界🙂" * 20)
    assert "".join(streamed(tokenizer, ids)) == "你好世界🙂" * 20


def test_window_decoding_looks_at_few_tokens() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return "".join(chr(each) for each in ids)

    detokenizer = WindowDetokenizer(decode)
    assert (
        "".join(detokenizer.push(97 + place % 26) for place in range(500))
        == "abcdefghijklmnopqrstuvwxyz" * 19 + "abcdef"
    )
    assert longest <= 10


def reference(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Letter by letter: what comes before the first stop string to be completed, of those the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(data=st.data())
def test_stop_strings_across_any_cut_of_the_text(data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=5), max_size=4))
    pieces = data.draw(st.lists(st.text(alphabet="ab🙂", max_size=6), max_size=12))
    filtered = StopFilter(stops)
    shown = "".join(filtered.push(piece) for piece in pieces)
    matched = filtered.matched
    assert (shown + filtered.flush(), matched) == reference("".join(pieces), stops)


@given(pieces=st.lists(st.text(alphabet="<|im_end>x", max_size=4), max_size=30))
def test_text_is_shown_as_soon_as_no_stop_string_can_come_of_it(pieces: list[str]) -> None:
    stop = "<|im_end|>"
    filtered, shown, seen = StopFilter([stop]), "", ""
    for piece in pieces:
        shown += filtered.push(piece)
        seen += piece
        before, matched = reference(seen, [stop])
        assert before.startswith(shown)
        waiting = before[len(shown) :]
        assert matched or stop.startswith(waiting), "only what may become a stop string is held back"


def test_writer_gives_text_and_the_tokens_taken_for_it(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("🙂 the end.")
    writer = Writer(byte_level.detokenizer(), ["end"])
    taken = []
    for token in ids:
        writer.push(token)
        if writer.ready:
            taken.append(writer.take())
    assert writer.stop_string == "end"
    assert "".join(text for text, _ in taken) == writer.text == "🙂 the "
    assert [token for _, tokens in taken for token in tokens] == ids[: sum(len(tokens) for _, tokens in taken)]


def test_encode_special_and_unicode(byte_level: Tokenizer) -> None:
    assert byte_level.decode(byte_level.encode("a b")) == "a b"
    assert byte_level.encode(SPECIAL[1]) == [byte_level.token_id(SPECIAL[1])]
    assert byte_level.decode(byte_level.encode(SPECIAL[1])) == ""
    assert byte_level.token_id("no such token") is None
    with pytest.raises(UsageError, match="surrogate"):
        byte_level.encode("\ud800")


def test_truncation_and_padding_of_a_tokenizer_file_do_not_count(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    inner = Fast.from_file(str(path))
    inner.enable_truncation(3)
    inner.enable_padding(length=64)
    inner.save(str(path))
    tokenizer = read_tokenizer(path)
    assert tokenizer.decode(tokenizer.encode("the cat sat on the mat")) == "the cat sat on the mat"
    assert len(tokenizer.encode("x")) == 1


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": "1.0", "model": {"type": "Magic"}}', "\x00"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: tokenizers .* cannot read it"):
        read_tokenizer(path)


def test_a_pre_tokenizer_alone_does_not_make_a_tokenizer_byte_level(tmp_path: Path) -> None:
    inner = Fast(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel()
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path / "tokenizer.json")
    assert "".join(streamed(tokenizer, [0, 1, 0])) == tokenizer.decode([0, 1, 0])
