"""A checkpoint's tokenizer as GGUF stores it: tokens, their types, merges, special ids, and which `pre` splits text.

llama.cpp knows pre-tokenizers by name and has the regular expression of each compiled in (llama-vocab.cpp). Its own
converter finds the name by a hash of what the tokenizer makes of one test text; here the name follows from the
structure of tokenizer.json, so a vocabulary nobody has hashed works, and a structure that is not known is an error.
The rest is what `conversion/base.py` and gguf's `SpecialVocab` write, key for key.

llama.cpp never normalizes: a text reaches a tokenizer with NFC as tokenizer.json means it only once it is NFC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from edgeship.checkpoint.strict_json import parse_object, show
from edgeship.errors import CheckpointError
from edgeship.tokenizer import TOKENIZER, TOKENIZER_CONFIG, SpecialTokens

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Kinds of special token, in the order that llama.cpp's converter writes their ids."""

# (?i: ...) is how tokenizer.json says it; llama.cpp spells the cases out. Only the run of digits differs.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
Step = tuple[str, str | bool]
_QWEN2: tuple[Step, ...] = (("Split", _SPLIT % r"\p{N}"), ("ByteLevel", False))
_LLAMA3: tuple[Step, ...] = (("Split", _SPLIT % r"\p{N}{1,3}"), ("ByteLevel", False))
_GPT2: tuple[Step, ...] = (("ByteLevel", True),)
_SMOLLM: tuple[Step, ...] = (("Digits", True), ("ByteLevel", True))

PRE: dict[tuple[tuple[Step, ...], bool], str] = {
    (_QWEN2, False): "qwen2",
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",  # the same expression, where merges are not skipped for whole words
    (_GPT2, False): "gpt-2",
    (_SMOLLM, False): "smollm",
}
"""llama.cpp's name by (steps of the pre-tokenizer, whether merges are skipped for words that are tokens)."""

# Ends of generation that llama.cpp finds by their text, whatever the metadata says (llama-vocab.cpp, special_eog_ids).
# fmt: off
END_TOKENS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
))
# fmt: on


@dataclass(frozen=True)
class Vocabulary:
    """What goes into `tokenizer.ggml.*`; one token and type per row of the embedding."""

    pre: str
    tokens: tuple[str, ...]  # byte-level text, but for added tokens, which are as written
    types: tuple[int, ...]  # gguf.TokenType
    merges: tuple[str, ...]
    special: Mapping[str, int]  # by kind: bos, eos, ...; eot and eom only where llama.cpp would not know the token
    add: Mapping[str, bool]  # by kind: whether tokenizing puts it before (bos) or behind (eos) a text
    add_space_prefix: bool | None  # None where tokenizer_config.json says nothing


def read_vocabulary(files: Mapping[str, bytes], known: SpecialTokens, vocab_size: int) -> Vocabulary:
    """The vocabulary in tokenizer.json and tokenizer_config.json, filled up to `vocab_size` with unused tokens.

    `files` are their bytes by name, the first accepted by `open_tokenizer`; `known` are the special tokens the whole
    checkpoint agrees on. Raises CheckpointError naming the structure that llama.cpp has no tokenizer for.
    """
    raw = parse_object(files[TOKENIZER], TOKENIZER, "the file")
    named = parse_object(files.get(TOKENIZER_CONFIG, b"{}"), TOKENIZER_CONFIG, "the file")
    pre = choose_pre(raw)
    added = {token["id"]: token for token in _added_tokens(raw)}
    tokens, types = _tokens(raw["model"]["vocab"], added, vocab_size)
    special, add = _special(raw.get("post_processor"), {t["content"]: i for i, t in added.items()}, named)
    prefix = named.get("add_prefix_space")
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=tuple(_merges(raw["model"]["merges"])),
        special=_completed(special, known, tokens),
        add=add,
        add_space_prefix=prefix if isinstance(prefix, bool) else None,
    )


def choose_pre(raw: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a tokenizer.json; raises CheckpointError at an unknown structure."""
    model, decoder = (_object(raw.get(part), part) or {} for part in ("model", "decoder"))
    for part, expected, found in (
        ("model.type", "BPE", model.get("type")),
        ("model.byte_fallback", False, bool(model.get("byte_fallback"))),  # true: a SentencePiece vocabulary
        ("model.dropout", None, model.get("dropout") or None),
        ("model.continuing_subword_prefix", None, model.get("continuing_subword_prefix") or None),
        ("model.end_of_word_suffix", None, model.get("end_of_word_suffix") or None),
        ("decoder", "ByteLevel", decoder.get("type")),
    ):
        if found != expected:
            raise _unknown(f"{part} is {found!r} (expected {expected!r})")
    normalizers = list(_flat(raw.get("normalizer"), "normalizers"))
    if any(n != {"type": "NFC"} for n in normalizers):
        raise _unknown(f"normalizer is {_brief(raw['normalizer'])} (expected NFC or none)")
    steps = tuple(_step(node) for node in _flat(raw.get("pre_tokenizer"), "pretokenizers"))
    skips = bool(model.get("ignore_merges"))
    name = PRE.get((steps, skips))
    if name is None:
        raise _unknown(f"pre_tokenizer is {_brief(raw.get('pre_tokenizer'))} with ignore_merges {skips}")
    return name


def taken_for_ends(tokenizer: Tokenizer) -> dict[str, int]:
    """Plain tokens that llama.cpp makes special ones, by text: `</s>` of Qwen's vocabulary is the merge of a corpus."""
    added = tokenizer.get_added_tokens_decoder()
    ids = {text: tokenizer.token_to_id(text) for text in sorted(END_TOKENS)}
    return {text: i for text, i in ids.items() if i is not None and i not in added}


def _unknown(structure: str) -> CheckpointError:
    return CheckpointError(
        f"{TOKENIZER}: llama.cpp has no tokenizer of this structure: {structure}. "
        f"It would split text into other tokens.",
        hint="export it to ONNX (--format onnx), where tokenizer.json itself is used",
    )


def _brief(node: Any) -> str:
    return show(str(node), 400)


def _flat(node: Any, members: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or post-processor, sequences unfolded."""
    step = _object(node, members)
    if step is not None and step.get("type") == "Sequence":
        for inner in step.get(members) or []:
            yield from _flat(inner, members)
    elif step is not None:
        yield step


def _object(node: Any, part: str) -> dict[str, Any] | None:
    """An object or nothing; the tokenizers library reads some parts from lists, too, whose members have no names."""
    if node is not None and not isinstance(node, dict):
        raise _unknown(f"{part} holds {_brief(node)} (expected an object)")
    return node


def _step(node: Mapping[str, Any]) -> Step:
    match node:
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            return "Split", regex
        case {"type": "Digits", "individual_digits": bool(single)}:
            return "Digits", single
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "ByteLevel", bool(node.get("use_regex", True))
    raise _unknown(f"pre_tokenizer holds {_brief(dict(node))}")


def _added_tokens(raw: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for token in raw.get("added_tokens") or []:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            flags = [name for name in ("lstrip", "rstrip", "single_word") if token.get(name)]
            raise _unknown(f"the added token {show(token['content'])} has {' and '.join(flags)}")
        yield token


def _tokens(
    vocab: Mapping[str, int], added: Mapping[int, Mapping[str, Any]], vocab_size: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for text, i in vocab.items():
        tokens[i], types[i] = text, int(TokenType.NORMAL)
    for i, token in added.items():
        text = token["content"]
        if token.get("special") or _looks_special(text):
            tokens[i], types[i] = text, int(TokenType.CONTROL)
        else:
            tokens[i], types[i] = text.replace("\u2581", " "), int(TokenType.USER_DEFINED)
    return tuple(tokens), tuple(types)


def _looks_special(token: str) -> bool:
    """`does_token_look_special` of conversion/base.py: control tokens that a tokenizer forgot to mark."""
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )


def _merges(merges: list[Any]) -> Iterator[str]:
    """Pairs joined by a space; a space inside one is written as byte-level BPE writes it."""
    for merge in merges:
        yield merge if isinstance(merge, str) else " ".join(part.replace(" ", "\u0120") for part in merge)


def _special(post: Any, added: Mapping[str, int], named: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, bool]]:
    """Special ids by kind, as tokenizer_config.json names them, and which of them tokenizing adds."""
    texts = {kind: _content(named.get(f"{kind}_token")) for kind in SPECIAL}
    add: dict[str, bool] = {}
    for node in _flat(post, "processors"):
        match node:
            case {"type": "ByteLevel"}:
                add.setdefault("bos", False)
                add.setdefault("eos", False)
            case {"type": "TemplateProcessing", "single": list(single)}:
                _template(single, texts, add)
            case _:
                raise _unknown(f"post_processor holds {_brief(node)}")
    for kind in SPECIAL:
        flag = named.get(f"add_{kind}_token")
        if isinstance(flag, bool):
            add.setdefault(kind, flag)
    return {kind: added[text] for kind, text in texts.items() if text is not None and text in added}, add


def _template(single: list[Any], texts: dict[str, str | None], add: dict[str, bool]) -> None:
    """What a template adds around one text: at most the bos token before it and the eos token behind it."""
    names = [node.get("SpecialToken", {}).get("id") for node in single]  # None: the text itself
    at = names.index(None) if None in names else len(names)
    before, behind = names[:at], names[at + 1 :]
    for kind, around in (("bos", before), ("eos", behind)):
        if not around:
            continue
        texts[kind] = texts[kind] or around[0]
        if around != [texts[kind]]:
            raise _unknown(f"post_processor adds {around} (expected the {kind} token, {texts[kind]!r})")
        add[kind] = True


def _content(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _completed(special: Mapping[str, int], known: SpecialTokens, tokens: tuple[str, ...]) -> dict[str, int]:
    """The special ids with those that other files name, and every end of generation llama.cpp would not find itself."""
    # Without the key, llama.cpp takes id 11 for eos, GPT-2's.
    others = {"bos": known.bos, "eos": known.eos[0], "pad": known.pad}
    out = {**special, **{kind: i for kind, i in others.items() if i is not None and kind not in special}}
    unknown = [i for i in known.eos if i != out["eos"] and tokens[i] not in END_TOKENS]
    if len(unknown) > 2:
        listed = ", ".join(show(tokens[i]) for i in unknown)
        raise CheckpointError(
            f"generation_config.json: eos_token_id: a GGUF holds two ends of generation beside eos; found {listed}. "
            f"llama.cpp would write on after the others.",
            hint="name fewer of them, or export to ONNX (--format onnx)",
        )
    return out | dict(zip(("eot", "eom"), unknown, strict=False))
