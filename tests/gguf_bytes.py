"""GGUF files byte by byte: a whole model in a few lines, and every way to break it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
_LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "B", UINT64: "Q"}
F32, F16, Q4_0, Q4_K, I8 = 0, 1, 2, 12, 24
_BYTES = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q4_K: (256, 144), I8: (1, 1)}
VOCAB, HIDDEN, FF = 259, 32, 32


@dataclass(frozen=True)
class Gguf:
    """What goes into a file; `raw` fields replace what would be counted or computed."""

    keys: dict[str, tuple[int, Any]]
    tensors: dict[str, tuple[tuple[int, ...], int]]
    magic: bytes = b"GGUF"
    version: int = 3
    raw_tensor_count: int | None = None
    raw_key_count: int | None = None
    alignment: int = 32
    offsets: dict[str, int] = field(default_factory=dict)
    names: dict[str, bytes] = field(default_factory=dict)
    """Tensor names as written, by what they should be."""
    cut: int | None = None
    """Bytes of the file that are left."""

    def with_key(self, name: str, kind: int, value: Any) -> Gguf:
        return replace(self, keys={**self.keys, name: (kind, value)})

    def without_key(self, name: str) -> Gguf:
        return replace(self, keys={key: value for key, value in self.keys.items() if key != name})

    def with_tensor(self, name: str, shape: tuple[int, ...], kind: int = F32) -> Gguf:
        return replace(self, tensors={**self.tensors, name: (shape, kind)})

    def header(self) -> bytes:
        counts = (
            len(self.tensors) if self.raw_tensor_count is None else self.raw_tensor_count,
            len(self.keys) if self.raw_key_count is None else self.raw_key_count,
        )
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        for name, (kind, value) in self.keys.items():
            head += text(name) + struct.pack("<I", kind) + packed(kind, value)
        at = 0
        for name, (shape, kind) in self.tensors.items():
            head += self.names.get(name, text(name)) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            head += struct.pack("<IQ", kind, self.offsets.get(name, at))
            at += self._padded(shape, kind)
        return head

    def _padded(self, shape: tuple[int, ...], kind: int) -> int:
        count = 1
        for size in shape:
            count *= size
        block, size = _BYTES.get(kind, (1, 4))
        return -(-(count // block * size) // self.alignment) * self.alignment

    def bytes(self) -> bytes:
        head = self.header()
        data = sum(self._padded(shape, kind) for shape, kind in self.tensors.values())
        whole = head + bytes(-len(head) % self.alignment) + bytes(min(data, 1 << 22))
        return whole[: self.cut]


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def packed(kind: int, value: Any) -> bytes:
    """A metadata value; arrays are (type of the items, items); bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(packed(inner, item) for item in items)
    return struct.pack(f"<{_LETTERS[kind]}", value)


def model(**shape: Any) -> Gguf:
    """A llama of one layer whose weights are all zero, with a byte vocabulary."""
    hidden = shape.get("hidden", HIDDEN)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "zero"),
        "llama.block_count": (UINT32, 1),
        "llama.context_length": (UINT32, 64),
        "llama.embedding_length": (UINT32, hidden),
        "llama.feed_forward_length": (UINT32, FF),
        "llama.attention.head_count": (UINT32, 2),
        "llama.attention.head_count_kv": (UINT32, 1),
        "llama.attention.layer_norm_rms_epsilon": (FLOAT32, 1e-6),
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.scores": (ARRAY, (FLOAT32, [0.0] * VOCAB)),
        "tokenizer.ggml.token_type": (ARRAY, (INT32, [2, 3, 3, *[6] * 256])),
        "tokenizer.ggml.eos_token_id": (UINT32, 2),
        "tokenizer.chat_template": (STRING, "{{ bos_token }}{{ messages[0]['content'] }}"),
    }
    layer = {"attn_q": (hidden, hidden), "attn_k": (hidden, hidden // 2), "attn_v": (hidden, hidden // 2)}
    layer |= {
        "attn_output": (hidden, hidden),
        "ffn_gate": (hidden, FF),
        "ffn_up": (hidden, FF),
        "ffn_down": (FF, hidden),
    }
    tensors: dict[str, tuple[tuple[int, ...], int]] = {"token_embd.weight": ((hidden, VOCAB), F32)}
    tensors |= {f"blk.0.{name}.weight": (size, F32) for name, size in layer.items()}
    tensors |= {f"{name}.weight": ((hidden,), F32) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    return Gguf(keys, tensors)


_M = model()
_EMBEDDING = "token_embd.weight"
_TOKENS: list[str] = _M.keys["tokenizer.ggml.tokens"][1][1]

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a GGUF file"),
    "another magic": (lambda: replace(_M, magic=b"GGML").bytes(), "not a GGUF file"),
    "a version of the past": (lambda: replace(_M, version=1).bytes(), "version 0x1"),
    "a version of the future": (lambda: replace(_M, version=4).bytes(), "version 0x4"),
    "big endian": (lambda: replace(_M, version=3 << 24).bytes(), "big-endian"),
    "cut in the counts": (lambda: replace(_M, cut=17).bytes(), "ends inside the number of"),
    "cut in the metadata": (lambda: replace(_M, cut=200).bytes(), "ends inside"),
    "cut in the tensor infos": (lambda: replace(_M, cut=len(_M.header()) - 20).bytes(), "ends inside tensor"),
    "cut in the data": (lambda: _M.bytes()[:-100], "it was cut short"),
    "2^63 tensors": (lambda: replace(_M, raw_tensor_count=1 << 63).bytes(), "at most 65536 tensors"),
    "2^62 keys": (lambda: replace(_M, raw_key_count=1 << 62).bytes(), "at most 65536 metadata entries"),
    "more keys than there are": (lambda: replace(_M, raw_key_count=40).bytes(), ""),
    "a string past the end": (
        lambda: _M.with_key("general.name", STRING, struct.pack("<Q", 1 << 20) + b"x").bytes(),
        "ends inside",
    ),
    "a string of 2^64-1 bytes": (
        lambda: _M.with_key("general.name", STRING, struct.pack("<Q", (1 << 64) - 1) + b"x").bytes(),
        "at most 16777216 bytes",
    ),
    "an array of 2^60 numbers": (
        lambda: _M.with_key("x", ARRAY, struct.pack("<IQ", UINT32, 1 << 60)).bytes(),
        "at most 16777216 items",
    ),
    "an array of 16 million strings past the end": (
        lambda: _M.with_key("x", ARRAY, struct.pack("<IQ", STRING, 1 << 24) + text("a")).bytes(),
        "ends inside",
    ),
    "a string of 2^63 bytes in an array": (
        lambda: _M.with_key("x", ARRAY, struct.pack("<IQQ", STRING, 2, 1 << 63)).bytes(),
        "ends inside",
    ),
    "nested arrays": (
        lambda: _M.with_key("x", ARRAY, (ARRAY, [(UINT32, [1])])).bytes(),
        "array of arrays",
    ),
    "an unknown metadata type": (lambda: _M.with_key("x", 99, b"").bytes(), "no metadata type 99"),
    "a bool of 7": (lambda: _M.with_key("x", BOOL, b"\7").bytes(), "expected 0 or 1"),
    "a key twice": (
        lambda: (
            replace(_M, raw_key_count=len(_M.keys) + 1)
            .bytes()[: len(_M.header())]
            .replace(
                text("general.name"), text("general.name") + struct.pack("<I", BOOL) + b"\1" + text("general.name")
            )
        ),
        "is there twice",
    ),
    "a key that is no text": (lambda: _M.with_key("a\0b", BOOL, 1).bytes(), "expected a printable name"),
    "a name that is not UTF-8": (lambda: _M.with_key("general.name", STRING, text(b"\xff\xfe")).bytes(), "not UTF-8"),
    "alignment 0": (lambda: _M.with_key("general.alignment", UINT32, 0).bytes(), "power of two"),
    "alignment 24": (lambda: _M.with_key("general.alignment", UINT32, 24).bytes(), "power of two"),
    "alignment as text": (lambda: _M.with_key("general.alignment", STRING, "32").bytes(), "power of two"),
    "an offset off the alignment": (lambda: replace(_M, offsets={_EMBEDDING: 4}).bytes(), "multiple of the alignment"),
    "overlapping tensors": (lambda: replace(_M, offsets={"blk.0.attn_q.weight": 0}).bytes(), "overlaps"),
    "a gap between tensors": (lambda: replace(_M, offsets={"blk.0.attn_q.weight": 1 << 20}).bytes(), "leaves a gap"),
    "an offset of 2^64-32": (lambda: replace(_M, offsets={_EMBEDDING: (1 << 64) - 32}).bytes(), "leaves a gap"),
    "a tensor twice": (lambda: replace(_M, names={"output_norm.weight": text(_EMBEDDING)}).bytes(), "is there twice"),
    "a tensor name of 64 bytes": (lambda: _M.with_tensor("x" * 64, (32,)).bytes(), "at most 63 bytes"),
    "five dimensions": (lambda: _M.with_tensor("x", (1, 1, 1, 1, 1)).bytes(), "1 to 4 dimensions"),
    "no dimensions": (lambda: _M.with_tensor("x", ()).bytes(), "1 to 4 dimensions"),
    "a dimension of 0": (lambda: _M.with_tensor("x", (32, 0)).bytes(), "not a size"),
    "a size beyond 64 bits": (lambda: _M.with_tensor("x", (1 << 62, 1 << 62)).bytes(), "not a size"),
    "an unknown tensor type": (lambda: _M.with_tensor("x", (32,), 4).bytes(), "no tensor type 4"),
    "blocks that do not divide": (
        lambda: _M.with_tensor("x", (33, 2), Q4_0).bytes(),
        "do not divide into blocks of 32",
    ),
    "weights of integers": (lambda: _M.with_tensor(_EMBEDDING, (HIDDEN, VOCAB), I8).bytes(), "I8 is not a type"),
    "a norm in float16": (lambda: _M.with_tensor("output_norm.weight", (HIDDEN,), F16).bytes(), "expected F32"),
    "a token twice": (
        lambda: _M.with_key("tokenizer.ggml.tokens", ARRAY, (STRING, [*_TOKENS[:-1], "<s>"])).bytes(),
        "is there twice",
    ),
    "a token twice for C": (
        lambda: _M.with_key("tokenizer.ggml.tokens", ARRAY, (STRING, [*_TOKENS[:-1], "<s>\0x"])).bytes(),
        "is there twice",
    ),
    "no token for a byte": (
        lambda: _M.with_key("tokenizer.ggml.tokens", ARRAY, (STRING, [*_TOKENS[:-1], "x"])).bytes(),
        "no token for byte 0xff",
    ),
    "a byte that is none": (
        lambda: _M.with_key("tokenizer.ggml.token_type", ARRAY, (INT32, [6, 3, 3, *[6] * 256])).bytes(),
        "is no byte of such a vocabulary",
    ),
    "bytes where there can be none": (
        lambda: _M.with_key("tokenizer.ggml.model", STRING, "bert").bytes(),
        "is no byte of such a vocabulary",
    ),
    "a token to add that there is not": (
        lambda: _M.with_key("tokenizer.ggml.add_sep_token", BOOL, 1).bytes(),
        "there is no such token to add",
    ),
    "tokens that are numbers": (
        lambda: _M.with_key("tokenizer.ggml.tokens", ARRAY, (UINT32, [1, 2])).bytes(),
        "expected 1 to",
    ),
    "no architecture": (lambda: _M.without_key("general.architecture").bytes(), "general.architecture"),
    "no context length": (lambda: _M.without_key("llama.context_length").bytes(), "llama.context_length"),
    "2^32-1 layers": (lambda: _M.with_key("llama.block_count", UINT32, (1 << 32) - 1).bytes(), "from 1 to 512"),
    "experts of which none is used": (
        lambda: _M.with_key("llama.expert_count", UINT32, 4).bytes(),
        "expert_used_count",
    ),
    "an epsilon that is no number": (
        lambda: _M.with_key("llama.attention.layer_norm_rms_epsilon", FLOAT32, float("nan")).bytes(),
        "expected a number",
    ),
    "an unknown rope scaling": (
        lambda: _M.with_key("llama.rope.scaling.type", STRING, "spiral").bytes(),
        "rope.scaling.type",
    ),
    "keys rotated in part": (lambda: _M.with_key("llama.rope.dimension_count", UINT32, 8).bytes(), "cannot have"),
    "one of 70000 files": (lambda: _M.with_key("split.count", UINT32, 70000).bytes(), "at most 1000 files"),
    "one of three files": (lambda: _M.with_key("split.count", UINT32, 3).bytes(), "one of 3 files"),
}
"""Broken files: how they are made, and what the error says."""

UNRUNNABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a tensor is missing": (
        lambda: replace(_M, tensors={k: v for k, v in _M.tensors.items() if k != "blk.0.attn_v.weight"}).bytes(),
        "attn_v",
    ),
    "a tensor of another shape": (lambda: _M.with_tensor("blk.0.ffn_up.weight", (HIDDEN, FF * 2)).bytes(), "ffn_up"),
    "an unknown architecture": (
        lambda: (
            replace(_M, keys={key.replace("llama.", "lama."): value for key, value in _M.keys.items()})
            .with_key("general.architecture", STRING, "lama")
            .bytes()
        ),
        "unknown model architecture",
    ),
    "an unknown tokenizer": (
        lambda: _M.with_key("tokenizer.ggml.model", STRING, "abacus").bytes(),
        "unknown tokenizer",
    ),
    "no heads": (lambda: _M.without_key("llama.attention.head_count").bytes(), ""),
    "tokens without types enough": (
        lambda: _M.with_key("tokenizer.ggml.token_type", ARRAY, (INT32, [1])).bytes(),
        "toktypes",
    ),
}
"""Sound headers of models that llama.cpp refuses."""
