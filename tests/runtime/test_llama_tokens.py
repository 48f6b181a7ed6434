"""The vocabulary inside a GGUF file: the same ids and text as the checkpoint's own tokenizer gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, TokenType
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import write_tokenizer
from edgeship_runtime.engines.llama_library import LoadedModel
from edgeship_runtime.errors import UsageError
from edgeship_runtime.llama_tokens import LlamaTokenizer
from edgeship_runtime.tokens import Tokenizer, read_tokenizer
from gguf_bytes import ARRAY, BOOL, STRING, model
from qwen_files import TOKENIZER, needs_tokenizer, vectors
from toy_gguf import needs_llamacpp, write_toy_gguf

pytestmark = needs_llamacpp

TEXTS = (
    "",
    " ",
    "\n\n  \t a",
    "The cat sat on the mat. 1234567 3.14",
    "def f(x):\n    return x ** 2  # 🙂👩‍👩‍👧\n",
    "Schöne Grüße, Ça va? Ελληνικά, русский, עברית, العربية, हिन्दी, ไทย",
    "你好，世界。こんにちは 안녕하세요",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_star|> <|im_end| >",
    "e\u0301 composed \u00e9",
    "\0\x01\x7f\u200b\ufeff\U0010ffff",
    "don't I'll WE'VE",
    "a" * 5000,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tokenizer, LlamaTokenizer]]:
    directory = tmp_path_factory.mktemp("tokens")
    write_tokenizer(directory)
    toy = write_toy_gguf(directory / "toy.gguf")
    with closing(LoadedModel(toy.path, vocabulary_only=True)) as loaded:
        yield read_tokenizer(directory / "tokenizer.json"), LlamaTokenizer(loaded)


class TestByteLevel:
    @pytest.mark.parametrize("text", TEXTS)
    def test_ids_and_text(self, pair: tuple[Tokenizer, LlamaTokenizer], text: str) -> None:
        theirs, ours = pair
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)

    @settings(max_examples=300, deadline=None)
    @given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    def test_any_text(self, pair: tuple[Tokenizer, LlamaTokenizer], text: str) -> None:
        theirs, ours = pair
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))

    @settings(max_examples=100, deadline=None)
    @given(ids=st.lists(st.integers(0, 319), max_size=40))
    def test_a_stream_gives_whole_characters_and_adds_up(
        self, pair: tuple[Tokenizer, LlamaTokenizer], ids: list[int]
    ) -> None:
        theirs, ours = pair
        stream = ours.detokenizer()
        pieces = [stream.push(token) for token in ids]
        whole = "".join(pieces) + stream.flush()
        assert whole == ours.decode(ids) == theirs.decode(ids)

    def test_ids_outside_the_vocabulary_have_no_text(self, pair: tuple[Tokenizer, LlamaTokenizer]) -> None:
        assert pair[1].decode([-1, 320, 1 << 40, 5]) == pair[0].decode([5])

    def test_text_that_is_none(self, pair: tuple[Tokenizer, LlamaTokenizer]) -> None:
        with pytest.raises(UsageError, match="surrogate"):
            pair[1].encode("a\udc80")

    def test_ends_and_special_tokens(self, pair: tuple[Tokenizer, LlamaTokenizer]) -> None:
        assert pair[1].end_ids() == (317, 319)
        assert pair[1].special_tokens() == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


class TestSentencePiece:
    def tokenizer(self, directory: Path, **keys: Any) -> Any:
        source = model()
        kind, (item, tokens) = source.keys["tokenizer.ggml.tokens"]
        source = source.with_key("tokenizer.ggml.tokens", kind, (item, [*tokens, "\u2581", "\u2581a", "b"]))
        types = [*source.keys["tokenizer.ggml.token_type"][1][1], 1, 1, 1]
        source = source.with_key("tokenizer.ggml.token_type", ARRAY, (5, types))
        source = source.with_key("tokenizer.ggml.scores", ARRAY, (6, [0.0] * len(types)))
        for name, (value_kind, value) in keys.items():
            source = source.with_key(f"tokenizer.ggml.{name}", value_kind, value)
        (directory / "spm.gguf").write_bytes(source.bytes())
        return LoadedModel(directory / "spm.gguf", vocabulary_only=True)

    def test_the_space_before_a_text_is_no_part_of_it(self, tmp_path: Path) -> None:
        with closing(self.tokenizer(tmp_path)) as loaded:
            tokenizer = LlamaTokenizer(loaded)
            ids = tokenizer.encode("a b\n\xe9")
            assert ids[0] == 260, "a space is put before it"
            assert tokenizer.decode(ids) == "a b\n\xe9"
            assert tokenizer.decode(tokenizer.encode(" a")) == " a"
            assert tokenizer.encode("a", special=True)[0] == 1, "the token that begins a text"
        with closing(self.tokenizer(tmp_path, add_space_prefix=(BOOL, 0))) as loaded:
            tokenizer = LlamaTokenizer(loaded)
            assert tokenizer.decode(tokenizer.encode(" a")) == " a"

    def test_a_space_may_take_three_tokens(self, tmp_path: Path) -> None:
        (tmp_path / "bytes.gguf").write_bytes(model().bytes())
        with closing(LoadedModel(tmp_path / "bytes.gguf", vocabulary_only=True)) as loaded:
            tokenizer = LlamaTokenizer(loaded)
            text = "a b " * 50
            assert len(tokenizer.encode(text)) == 2 * 50 + (2 * 50 + 1) * 3, "one is put before the text"
            assert tokenizer.decode(tokenizer.encode(text)).replace("\u2581", " ").lstrip() == text

    def test_long_tokens(self, tmp_path: Path) -> None:
        source = model()
        _, (_, tokens) = source.keys["tokenizer.ggml.tokens"]
        source = source.with_key("tokenizer.ggml.tokens", ARRAY, (STRING, ["x" * 3000, *tokens[1:]]))
        source = source.with_key("tokenizer.ggml.token_type", ARRAY, (5, [1, 3, 3, *[6] * 256]))
        (tmp_path / "long.gguf").write_bytes(source.bytes())
        with closing(LoadedModel(tmp_path / "long.gguf", vocabulary_only=True)) as loaded:
            assert LlamaTokenizer(loaded).bytes_of(0) == b"x" * 3000


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tokenizer, LlamaTokenizer]]:
    """The tokenizer of Qwen2 as GGUF stores it, without a model around it."""
    path = tmp_path_factory.mktemp("qwen") / "vocabulary.gguf"
    value = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    ids = value["model"]["vocab"] | {token["content"]: token["id"] for token in value["added_tokens"]}
    special = {token["content"] for token in value["added_tokens"] if token["special"]}
    tokens = sorted(ids, key=ids.__getitem__)
    writer = GGUFWriter(path, "qwen2")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in value["model"]["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with closing(LoadedModel(path, vocabulary_only=True)) as loaded:
        yield read_tokenizer(TOKENIZER / "tokenizer.json"), LlamaTokenizer(loaded)


@needs_tokenizer
class TestQwen:
    def test_recorded_vectors(self, qwen: tuple[Tokenizer, LlamaTokenizer]) -> None:
        for text, ids in vectors():
            assert qwen[1].encode(text) == ids, repr(text)

    @pytest.mark.parametrize("text", TEXTS)
    def test_texts(self, qwen: tuple[Tokenizer, LlamaTokenizer], text: str) -> None:
        assert qwen[1].encode(text) == qwen[0].encode(text)
        assert qwen[1].decode(qwen[0].encode(text)) == qwen[0].decode(qwen[0].encode(text))
