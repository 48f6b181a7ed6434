"""A GGUF file as a model: its files, and what llama.cpp takes for granted of them.

llama.cpp answers most nonsense with an error, but some with the end of the process (GGML_ASSERT, a look-up that must
not fail). What can be known beforehand is checked here, so that it becomes an error too.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from edgeship_runtime.gguf import Array, Header, read_header
from edgeship_runtime.strict import show

MAX_SPLITS = 1000
MAX_LAYERS, MAX_EXPERTS = 512, 1024
"""llama.cpp's (llama-hparams.h)."""
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_EQUAL_HEADS = ("llama", "qwen2", "qwen3")
"""Architectures whose graph asserts keys and values of one length, rotated whole; edgeship writes these."""

_BYTE = 6  # the type of a token that stands for one byte
_WITHOUT_BYTES = ("bert", "rwkv")
_USUAL_IDS = 11  # the largest that llama.cpp takes for bos and eos where a file names none


def read_model(path: Path) -> tuple[Header, ...]:
    """The headers of a model: one file, or all files of a split one, of which `path` is the first.

    Raises ArtifactError as `read_header`, and for what would end the process inside llama.cpp.
    """
    first = read_header(path)
    _check_meaning(first)
    count = first.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= MAX_SPLITS:
        raise first.error(f"split.count: expected at most {MAX_SPLITS} files, found {show(str(count))}")
    if count < 2:
        return (first,)
    name = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if not name or int(name[2]) != 1 or int(name[3]) != count:
        hint = f"give the first file, named NAME-00001-of-{count:05d}.gguf, with the others beside it"
        raise first.error(f"it is one of {count} files of a split model", hint)
    others = [path.with_name(f"{name[1]}-{i:05d}-of-{count:05d}.gguf") for i in range(2, count + 1)]
    return (first, *map(read_header, others))


@lru_cache(maxsize=2)  # loading looks twice
def _check_meaning(header: Header) -> None:
    architecture = header.text("general.architecture")
    if not 0 < len(architecture) <= 100 or not architecture.isprintable():
        found = header.metadata.get("general.architecture")
        raise header.error(f"general.architecture: expected a name, found {show(str(found))}")
    _check_vocabulary(header)
    for key, value in header.metadata.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise header.error(f"{key}: expected a number, found {value}")
        if key.endswith("epsilon") and isinstance(value, float) and value < 0:
            raise header.error(f"{key}: expected a number from 0, found {value}")
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling not in _ROPE_SCALINGS:
        expected = ", ".join(_ROPE_SCALINGS)
        raise header.error(f"{architecture}.rope.scaling.type: expected {expected}, found {show(str(scaling))}")
    _check_counts(header, architecture)
    if architecture in _EQUAL_HEADS:
        _check_heads(header, architecture)


def _check_counts(header: Header, architecture: str) -> None:
    def count(key: str) -> int:
        return header.largest(f"{architecture}.{key}") or 0

    layers, experts, groups = count("block_count"), count("expert_count"), count("expert_group_count")
    limits = {
        "block_count": (1, MAX_LAYERS),
        "nextn_predict_layers": (0, layers),
        "posnet.block_count": (0, layers),
        "convnext.block_count": (0, layers),
        "expert_count": (0, MAX_EXPERTS),
        "expert_used_count": (min(experts, 1), experts),
        "expert_group_count": (0, max(experts - 1, 0)),
        "expert_group_used_count": (min(groups, 1), max(groups - 1, 0)),
    }
    for key, (low, high) in limits.items():
        if not low <= count(key) <= high:
            raise header.error(f"{architecture}.{key}: expected a number from {low} to {high}, found {count(key)}")
    if groups and experts % groups:
        raise header.error(f"{architecture}.expert_group_count: {experts} experts do not divide into {groups} groups")


def _check_heads(header: Header, architecture: str) -> None:
    hidden, heads = (
        header.largest(f"{architecture}.{key}") or 0 for key in ("embedding_length", "attention.head_count")
    )
    if not hidden or not heads:
        return  # llama.cpp says so itself
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    keys, values, rotated = (header.largest(f"{architecture}.{name}") for name in names)
    keys, values = keys or hidden // heads, values or hidden // heads
    if keys != values or (rotated or keys) != keys:
        found = f"keys of length {keys}, {rotated or keys} of it rotated, and values of {values}"
        raise header.error(f"{architecture}: {found}, which this architecture cannot have")


def _check_vocabulary(header: Header) -> None:
    """Tokens are asserted to be different, and those of single bytes are looked up without asking."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array) or tokens.type != "string":
        return  # llama.cpp says so itself
    texts = header.strings(tokens)
    if b"\0" in b"".join(texts):  # where C ends a text
        texts = [text.partition(b"\0")[0] for text in texts]
    texts = [text or b"[EMPTY_%d]" % place for place, text in enumerate(texts)]
    known = set(texts)
    if len(known) != len(texts):
        twice, _ = Counter(texts).most_common(1)[0]
        raise header.error(f"tokenizer.ggml.tokens: {show(twice.decode('utf-8', 'replace'))} is there twice")
    model = header.text("tokenizer.ggml.model")
    if model == "llama":
        lost = [byte for byte in range(256) if b"<0x%02X>" % byte not in known and bytes([byte]) not in known]
        if lost:
            raise header.error(f"tokenizer.ggml.tokens: no token for byte {lost[0]:#04x}, which every text may need")
    if model == "rwkv" and not known & {b"\\n", b"\\x0a", b"\n"}:
        raise header.error("tokenizer.ggml.tokens: no token for a line break, which llama.cpp looks up")
    _check_bytes(header, model, texts)
    for name, key in (("bos", "bos"), ("eos", "eos"), ("sep", "seperator")):  # as llama.cpp spells it
        token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        given = type(token) is int and 0 <= token < len(texts)
        usual = model in ("llama", "gpt2") and name != "sep" and len(texts) > _USUAL_IDS
        if header.metadata.get(f"tokenizer.ggml.add_{name}_token") is True and not (given or usual):
            raise header.error(f"tokenizer.ggml.add_{name}_token: there is no such token to add")


def _check_bytes(header: Header, model: str, texts: Sequence[bytes]) -> None:
    """Tokens that stand for a byte say which in their text."""
    types = header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, Array) or types.type != "int32" or types.count < len(texts):
        return  # llama.cpp says so itself
    kinds = header.numbers(types)
    for token, text in enumerate(texts) if _BYTE in kinds else ():
        if kinds[token] == _BYTE and (model in _WITHOUT_BYTES or not re.fullmatch(rb"<0x[0-9A-Fa-f]{2}>", text)):
            said = show(text.decode("utf-8", "replace"))
            raise header.error(f"tokenizer.ggml.token_type: token {token}, {said}, is no byte of such a vocabulary")
