"""The tokenizer in a GGUF: which `pre` a structure gets, types and special tokens, and token ids in llama.cpp."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from checkpoints import CORPUS, SPECIAL, SPLIT
from edgeship.errors import CheckpointError
from edgeship.formats.gguf.layout import lay_out
from edgeship.formats.gguf.metadata import make_metadata
from edgeship.formats.gguf.vocabulary import choose_pre, read_vocabulary
from edgeship.formats.gguf.write import GgufFile
from edgeship.plan import make_plan
from edgeship.tokenizer import SpecialTokens
from exports import recipe
from qwen_files import TOKENIZER, needs_tokenizer, vectors

TINY = Path(__file__).resolve().parents[3] / "pipeline" / "edgeship" / "tiny" / "checkpoint"
REAL = [pytest.param(TINY, id="tiny"), pytest.param(TOKENIZER, id="shared", marks=needs_tokenizer)]

LLAMA3_SPLIT = SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
STRUCTURES: dict[str, tuple[Any, Any, bool]] = {
    "qwen2": (
        normalizers.NFC(),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), BYTES]),
        False,
    ),
    "llama-bpe": (None, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), BYTES]), True),
    "smaug-bpe": (None, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), BYTES]), False),
    "gpt-2": (None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), False),
    "smollm": (
        None,
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        False,
    ),
}
"""By llama.cpp's name: normalizer, pre-tokenizer and whether merges are skipped for whole words."""

TEXTS = (
    *CORPUS,
    "The quick brown fox can't, won't and SHOULDN'T've jumped; he'll say I'M 'D you're we'd.",
    "1 12 123 1234 12345 3.14159 -1e-9 0x1F 1,000,000.00 12:34:56 2026-11-22 ½ ² ③ Ⅳ ٣٤٥ १२३",
    "请用一句话介绍北京。「こんにちは」は英語で? 안녕하세요, 세계!　全角：ＡＢＣ１２３ 𠮷野家",
    "👍🏽 👨‍👩‍👧‍👦 🇪🇺 🏴󠁧󠁢󠁷󠁬󠁳󠁿 ☕️ 🤷🏿‍♀️ = ?",
    "ما هي عاصمة مصر؟ שלום עולם (abc) ١٢٣ Привет, мир! Γειά σου Κόσμε नमस्ते दुनिया สวัสดี Xin chào Việt Nam",
    "ﬁ ẞ İı ǆ ŉ ｶﾅ Ω K Å µ ℃ ™ ⁂ ‽ … — ‑ “quotes” ‘single’ «guillemets» ¿qué?",
    "def f(x: list[int]) -> dict:\n\treturn {\"n\": x[0] << 2, 'm': len(x) & 0xFF}  # {{ x }}\n\n\nif f:\n    f()\n",
    "  two before\n\n\n\n            twelve\t\ttabs\r\nwindows\r\rline\u00a0nbsp\u2003em  two after  \n",
    "a\u200bzero\u200dwidth\ufeff \u200fRTL\u200e \x00\x01\x7f \u0085 \u2028",
    "",
    " ",
    "\n",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "'''''' \"\"\"\"\"\" ------======= !!!!!!??????",
    "x" * 500 + " " * 100 + "\n" * 50 + "é" * 50,
)


def trained(pre: str) -> Tokenizer:
    normalizer, steps, skips = STRUCTURES[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=skips))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = steps
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=1,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def raw(pre: str = "qwen2", **changes: Any) -> dict[str, Any]:
    """tokenizer.json of this structure, its parts replaced where given."""
    values: dict[str, Any] = json.loads(trained(pre).to_str())
    for path, value in changes.items():
        inner = values
        *parents, last = path.split("__")
        for name in parents:
            inner = inner[name]
        inner[last] = value
    return values


def files(values: dict[str, Any], **config: Any) -> dict[str, bytes]:
    named = {"eos_token": "<|im_end|>", "bos_token": None, "pad_token": "<|endoftext|>", **config}
    return {"tokenizer.json": json.dumps(values).encode(), "tokenizer_config.json": json.dumps(named).encode()}


def known(values: dict[str, Any]) -> SpecialTokens:
    ids = {token["content"]: token["id"] for token in values["added_tokens"]}
    return SpecialTokens(ids["<|endoftext|>"], (ids["<|im_end|>"], ids["<|endoftext|>"]), ids["<|endoftext|>"])


class TestStructure:
    @pytest.mark.parametrize("pre", STRUCTURES)
    def test_pre_follows_from_it(self, pre: str) -> None:
        assert choose_pre(raw(pre)) == pre

    @pytest.mark.parametrize("directory", REAL)
    def test_qwen2_is_recognized(self, directory: Path) -> None:
        assert choose_pre(json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))) == "qwen2"

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"model__type": "Unigram"}, "model.type is 'Unigram'"),
            ({"model__byte_fallback": True}, "model.byte_fallback is True"),
            ({"model__dropout": 0.1}, "model.dropout is 0.1"),
            ({"model__end_of_word_suffix": "</w>"}, "model.end_of_word_suffix is '</w>'"),
            ({"model__ignore_merges": True}, "with ignore_merges True"),
            ({"decoder": {"type": "WordPiece"}}, "decoder is 'WordPiece'"),
            ({"decoder": None}, "decoder is None"),
            ({"normalizer": {"type": "Lowercase"}}, "normalizer is .*Lowercase"),
            ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}}, "normalizer is .*NFKC"),
            ({"decoder": ["ByteLevel"]}, "decoder holds .*ByteLevel.* .expected an object"),
            ({"normalizer": ["NFKC"]}, "normalizers holds .*NFKC.* .expected an object"),
            ({"post_processor": ["BertProcessing"]}, "processors holds .*BertProcessing.* .expected an object"),
            ({"pre_tokenizer": None}, "pre_tokenizer is .None"),
            ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer holds .*Whitespace"),
            ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "pre_tokenizer holds"),
            ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, "pre_tokenizer is"),
            ({"post_processor": {"type": "BertProcessing"}}, "post_processor holds .*BertProcessing"),
        ],
    )
    def test_another_one_is_refused_by_name(self, changes: dict[str, Any], named: str) -> None:
        values = raw(**changes)
        with pytest.raises(CheckpointError, match=named) as raised:
            read_vocabulary(files(values), known(values), 700)
        assert "--format onnx" in raised.value.hint

    @pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
    def test_an_added_token_that_reaches_around_itself_is_refused(self, flag: str) -> None:
        values = raw()
        values["added_tokens"][0][flag] = True
        with pytest.raises(CheckpointError, match=f"added token .*endoftext.* has {flag}"):
            read_vocabulary(files(values), known(values), 700)


SMALL = {**raw(), "model": {**raw()["model"], "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
SMALL["added_tokens"] = [{**t, "id": i} for i, t in enumerate(SMALL["added_tokens"], 3)]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.sampled_from(["", "a", "b", "NFC", "ByteLevel", "Sequence", "BPE"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "id", "a"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_whatever_the_tokenizers_library_takes_is_read_or_refused(data: st.DataObject) -> None:
    values, named = json.loads(json.dumps(SMALL)), {"eos_token": "<|im_end|>", "add_bos_token": True}
    for _ in range(data.draw(st.integers(1, 3))):
        node: Any = values
        while isinstance(node, dict | list) and node and data.draw(st.integers(0, 3)):
            key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            parent, node = node, node[key]
        if node is not values:
            parent[key] = data.draw(JSON)
    named |= data.draw(st.dictionaries(st.sampled_from(["eos_token", "bos_token", "add_eos_token"]), JSON, max_size=2))
    try:
        tokenizer = Tokenizer.from_str(json.dumps(values))
    except BaseException as error:  # tokenizers raises plain Exception, and panics beside it
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return
    if max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) >= 20:
        return
    text_files = {"tokenizer.json": json.dumps(values).encode(), "tokenizer_config.json": json.dumps(named).encode()}
    with suppress(CheckpointError):
        v = read_vocabulary(text_files, SpecialTokens(None, (1,), None), 20)
        assert (len(v.tokens), len(v.types)) == (20, 20)


class TestTokens:
    def test_types_and_padding(self) -> None:
        values = raw()
        v = read_vocabulary(files(values), known(values), 700)
        size = 600 + len(SPECIAL) + 1
        assert len(v.tokens) == len(v.types) == 700
        ids = {t: i for i, t in enumerate(v.tokens)}
        assert v.types[ids["<|im_end|>"]] == TokenType.CONTROL
        assert v.types[ids["<tool>"]] == TokenType.USER_DEFINED
        assert v.tokens[size:] == tuple(f"[PAD{i}]" for i in range(size, 700))
        assert set(v.types[size:]) == {TokenType.UNUSED}
        assert sum(t == TokenType.NORMAL for t in v.types) == 600

    def test_a_token_that_looks_special_is_one(self) -> None:
        values = raw()
        values["added_tokens"][-1]["content"] = "<|fim_prefix|>"
        assert not values["added_tokens"][-1]["special"]
        v = read_vocabulary(files(values), known(values), 700)
        assert v.types[values["added_tokens"][-1]["id"]] == TokenType.CONTROL

    @pytest.mark.parametrize("paired", [True, False])
    def test_merges_are_pairs_joined_by_a_space(self, paired: bool) -> None:
        values = raw()
        pairs = values["model"]["merges"]
        values["model"]["merges"] = pairs if paired else [" ".join(pair) for pair in pairs]
        v = read_vocabulary(files(values), known(values), 700)
        assert v.merges == tuple(" ".join(pair) for pair in pairs)
        assert all(merge.count(" ") == 1 for merge in v.merges)


class TestSpecial:
    def test_ids_by_name_then_from_other_files(self) -> None:
        values = raw()
        ids = {t["content"]: t["id"] for t in values["added_tokens"]}
        v = read_vocabulary(files(values, unk_token="<tool>"), known(values), 700)
        assert v.special == {
            "eos": ids["<|im_end|>"],
            "unk": ids["<tool>"],
            "pad": ids["<|endoftext|>"],
            "bos": ids["<|endoftext|>"],
        }
        assert v.add == {}
        named = {"bos_token": {"content": "<|im_start|>"}, "eos_token": None, "add_bos_token": True}
        v = read_vocabulary(files(values, **named), known(values), 700)
        assert v.special["bos"] == ids["<|im_start|>"]
        assert v.special["eos"] == ids["<|im_end|>"], "the first of generation_config.json"
        assert v.add == {"bos": True}

    def test_ends_that_llamacpp_does_not_know_get_a_key(self) -> None:
        values = raw()
        ids = {t["content"]: t["id"] for t in values["added_tokens"]}
        ends = SpecialTokens(None, (ids["<|im_end|>"], ids["<|endoftext|>"], ids["<tool>"], 70), None)
        v = read_vocabulary(files(values), ends, 700)
        assert (v.special["eot"], v.special["eom"]) == (ids["<tool>"], 70)
        with pytest.raises(CheckpointError, match="two ends of generation beside eos"):
            read_vocabulary(files(values), SpecialTokens(None, (*ends.eos, 71), None), 700)

    @pytest.mark.parametrize(
        ("single", "added"),
        [
            (["<|im_start|>", None], {"bos": True}),
            ([None, "<|im_end|>"], {"eos": True}),
            (["<|im_start|>", None, "<|im_end|>"], {"bos": True, "eos": True}),
            ([None], {}),
        ],
    )
    def test_a_template_adds_bos_and_eos(self, single: list[str | None], added: dict[str, bool]) -> None:
        values = raw(post_processor=template(single))
        v = read_vocabulary(files(values, bos_token="<|im_start|>"), known(values), 700)
        assert v.add == added
        after = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template(single)]}
        v = read_vocabulary(files(raw(post_processor=after), bos_token="<|im_start|>"), known(values), 700)
        assert v.add == {"bos": False, "eos": False, **added}

    @pytest.mark.parametrize("single", [["<tool>", None], [None, "<tool>"], ["<|im_start|>", "<tool>", None]])
    def test_another_template_is_refused(self, single: list[str | None]) -> None:
        values = raw(post_processor=template(single))
        with pytest.raises(CheckpointError, match="post_processor adds"):
            read_vocabulary(files(values, bos_token="<|im_start|>"), known(values), 700)


def template(single: list[str | None]) -> dict[str, Any]:
    parts = [
        {"SpecialToken": {"id": t, "type_id": 0}} if t else {"Sequence": {"id": "A", "type_id": 0}} for t in single
    ]
    return {"type": "TemplateProcessing", "single": parts, "pair": [], "special_tokens": {}}


def vocab_only(text_files: dict[str, bytes], ends: SpecialTokens, vocab_size: int, path: Path) -> Path:
    """A GGUF whose header is whole and whose weights are zeros: enough for llama.cpp to tokenize."""
    config = {
        "model_type": "qwen2", "vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 1,
        "hidden_act": "silu", "num_attention_heads": 1, "intermediate_size": 32, "rms_norm_eps": 1e-6,
        "rope_theta": 1e4, "max_position_embeddings": 256, "tie_word_embeddings": True,
    }  # fmt: skip
    plan = make_plan(recipe(), config)
    vocabulary = read_vocabulary(text_files, ends, vocab_size)
    GgufFile(path, lay_out(plan, make_metadata(plan, vocabulary, text_files))).close()
    return path


@pytest.mark.parity
class TestTokenIds:
    """llama.cpp on our GGUF against the tokenizers library; texts are NFC, since llama.cpp never normalizes."""

    @pytest.mark.parametrize("pre", STRUCTURES)
    def test_equal_those_of_tokenizers(self, pre: str, tmp_path: Path) -> None:
        from llamas import opened

        values = raw(pre)
        tokenizer = Tokenizer.from_str(json.dumps(values))
        with opened(vocab_only(files(values), known(values), 700, tmp_path / "v.gguf"), vocab_only=True) as llama:
            for text in map(nfc, TEXTS):
                assert llama.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids, text
            chat = "<|im_start|>user\nHi <tool>x</tool><|im_end|>\n<|endoftext|>"
            assert llama.tokens(chat, special=True) == tokenizer.encode(chat).ids

    @pytest.mark.parametrize("seed", range(20))
    def test_equal_on_random_text(self, seed: int, tmp_path: Path) -> None:
        from llamas import opened

        values = raw()
        tokenizer = Tokenizer.from_str(json.dumps(values))
        texts = list(random_texts(seed))
        with opened(vocab_only(files(values), known(values), 700, tmp_path / "v.gguf"), vocab_only=True) as llama:
            for text in texts:
                assert llama.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids, text

    def test_bos_and_eos_are_added_where_the_tokenizer_does(self, tmp_path: Path) -> None:
        from llamas import opened

        values = raw(post_processor=template(["<|im_start|>", None, "<|im_end|>"]))
        ids = {t["content"]: t["id"] for t in values["added_tokens"]}
        text_files = files(values, bos_token="<|im_start|>")
        with opened(vocab_only(text_files, known(values), 700, tmp_path / "v.gguf"), vocab_only=True) as llama:
            found = llama.tokens("Hello.", add=True)
        assert (found[0], found[-1]) == (ids["<|im_start|>"], ids["<|im_end|>"])
        assert len(found) > 2

    @pytest.mark.parametrize("directory", REAL)
    def test_equal_for_real_tokenizers(self, directory: Path, tmp_path: Path) -> None:
        from llamas import opened

        with opened(real(directory, tmp_path), vocab_only=True) as llama:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            texts = [*map(nfc, TEXTS), *random_texts(0)]
            for text in texts:
                assert llama.tokens(text) == tokenizer.encode(text, add_special_tokens=False).ids, text
            chat = (
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好 <tool_call>{}</tool_call><|im_end|>\n"
            )
            assert llama.tokens(chat, special=True) == tokenizer.encode(chat).ids

    @needs_tokenizer
    def test_equal_the_vectors_of_llamacpp(self, tmp_path: Path) -> None:
        from llamas import opened

        with opened(real(TOKENIZER, tmp_path), vocab_only=True) as llama:
            tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
            for text, ids in vectors():
                assert llama.tokens(text) == ids, text
                assert tokenizer.encode(nfc(text), add_special_tokens=False).ids == llama.tokens(nfc(text)), text


def real(directory: Path, tmp_path: Path) -> Path:
    found = {n: (directory / n).read_bytes() for n in ("tokenizer.json", "tokenizer_config.json")}
    ids = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab(with_added_tokens=True)
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    return vocab_only(found, SpecialTokens(pad, (end, pad), pad), max(ids.values()) + 100, tmp_path / "v.gguf")


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def random_texts(seed: int) -> Iterator[str]:
    """Strings from all planes that have letters, and of the characters that expressions treat apart."""
    rng = np.random.default_rng(seed)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x1E00, 0x2100)]
    ranges += [
        (0x2190, 0x2800),
        (0x3040, 0x3100),
        (0x4E00, 0x9FFF),
        (0xAC00, 0xD7A0),
        (0xFF00, 0xFFEF),
        (0x1F300, 0x1FAFF),
    ]
    for _ in range(20):
        out = []
        for _ in range(40):
            low, high = ranges[rng.integers(len(ranges))]
            out.append(chr(rng.integers(low, high)))
            out.append(str(rng.choice(["", "", "", " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "7", "42", "_", "."])))
        yield nfc("".join(out))
