"""Every key of a GGUF's header, as llama.cpp's `convert_hf_to_gguf.py` writes them, but for these:

- `general.name`, `.organization`, `.version`, `.finetune`, `.basename` and `.size_label` come from the recipe's
  repository, not from the name of the directory that the checkpoint lies in.
- `general.base_model.*`, `general.source.*`, `general.license*` and `general.quantized_by` say where the weights come
  from. The converter reads a model card, which is no part of a checkpoint here.
- `general.sampling.*` are the recipe's, all of them: llama.cpp has defaults of its own for those left out.
- `general.file_type` and `general.quantization_version` describe what is written, as llama-quantize sets them.
- `<arch>.context_length` is what YaRN extends it to: runtimes cap the context at it.
- `<arch>.rope.scaling.attn_factor` carries an explicit attention factor, since llama.cpp overrides the
  `yarn_attn_factor` that the converter writes (llama-context.cpp, "we need to cancel this factor").
- `<arch>.attention.key_length` and `.value_length` are left out of qwen2 where they say hidden size / heads.
- `tokenizer.ggml.eot_token_id` and `eom_token_id` name ends of generation that llama.cpp would not find by their text.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUFType, GGUFValueType, Keys, LlamaFileType, Metadata, RopeScalingType
from gguf import size_label as label_of_size

from edgeship import __version__
from edgeship.archs.base import Decoder, Rope
from edgeship.card import KNOWN_LICENSES
from edgeship.errors import PlanError
from edgeship.formats.gguf.vocabulary import Vocabulary
from edgeship.plan import Plan
from edgeship.recipe import Sampling, Source
from edgeship.tokenizer import TEMPLATE

Value = str | bool | int | float | Sequence[str] | Sequence[int]

# What each kind of tensor makes of a file, in llama.cpp's names; a type of its own is MOSTLY_ and its name.
FILE_TYPES = {
    "F32": "ALL_F32",
    "MXFP4": "MOSTLY_MXFP4_MOE",
    "Q3_K": "MOSTLY_Q3_K_S",
    "Q4_K": "MOSTLY_Q4_K_S",
    "Q5_K": "MOSTLY_Q5_K_S",
}

SPECIAL_KEYS = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "unk": Keys.Tokenizer.UNK_ID,
    "sep": Keys.Tokenizer.SEP_ID,
    "pad": Keys.Tokenizer.PAD_ID,
    "mask": Keys.Tokenizer.MASK_ID,
    "eot": Keys.Tokenizer.EOT_ID,
    "eom": Keys.Tokenizer.EOM_ID,
}
ADD_KEYS = {"bos": Keys.Tokenizer.ADD_BOS, "eos": Keys.Tokenizer.ADD_EOS, "sep": Keys.Tokenizer.ADD_SEP}

HOSTS = {"huggingface": "https://huggingface.co/{}", "modelscope": "https://modelscope.cn/models/{}"}

_SCALARS = {
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
}


@dataclass(frozen=True)
class KeyValue:
    """One key of the header and its value; `kind` is that of the items where the value is an array."""

    key: str
    kind: GGUFValueType
    value: Value

    def encode(self) -> bytes:
        """The key as it stands in the file (gguf.md, gguf_metadata_kv_t)."""
        head = pack_string(self.key)
        if isinstance(self.value, str) or not isinstance(self.value, Sequence):
            return head + struct.pack("<I", self.kind) + self._item(self.value)
        items = b"".join(map(self._item, self.value))
        return head + struct.pack("<IIQ", GGUFValueType.ARRAY, self.kind, len(self.value)) + items

    def _item(self, value: Any) -> bytes:
        return pack_string(value) if self.kind == GGUFValueType.STRING else struct.pack(_SCALARS[self.kind], value)


def pack_string(text: str) -> bytes:
    """A string as GGUF stores it: its length in bytes, and UTF-8."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def file_label(plan: Plan) -> str:
    """What llama.cpp calls a file with the plan's types: the mix's name, or the type of most of the body's weights."""
    if plan.recipe.scheme.mix is not None:
        return plan.recipe.scheme.mix
    weights: dict[str, int] = {}
    for t in plan.tensors:
        if t.role.part == "body":
            kind = t.encoding.gguf or ""
            weights[kind] = weights.get(kind, 0) + t.weights
    return max(weights, key=lambda kind: weights[kind])


def file_name(plan: Plan) -> str:
    """The GGUF's name, as hubs and LM Studio expect it: model, then types."""
    return f"{plan.recipe.source.repo.rpartition('/')[2]}-{file_label(plan)}.gguf"


def make_metadata(
    plan: Plan, vocabulary: Vocabulary, files: Mapping[str, bytes], revision: str = "local"
) -> tuple[KeyValue, ...]:
    """All keys for a plan, in the order the converter writes them.

    `files` are the checkpoint's small files by name (chat templates, licenses); `revision` is the commit the checkpoint
    was resolved to, or "local". Raises PlanError where llama.cpp has no file type for the plan's encodings.
    """
    out = [
        _text(Keys.General.ARCHITECTURE, plan.decoder.model_type),
        _text(Keys.General.TYPE, GGUFType.MODEL),
        *_sampling(plan.recipe.sampling),
        *_provenance(plan, files, revision),
        *_decoder(plan),
        *_tokenizer(vocabulary, plan),
        *_templates(files),
    ]
    return tuple(kv for kv in out if kv.value not in ("", ()))


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key, GGUFValueType.STRING, value)


def _whole(key: str, value: int) -> KeyValue:
    return KeyValue(key, GGUFValueType.UINT32, value)


def _real(key: str, value: float) -> KeyValue:
    return KeyValue(key, GGUFValueType.FLOAT32, float(value))


def _sampling(s: Sampling) -> Iterator[KeyValue]:
    yield KeyValue(Keys.General.SAMPLING_TOP_K, GGUFValueType.INT32, s.top_k)
    yield _real(Keys.General.SAMPLING_TOP_P, s.top_p)
    yield _real(Keys.General.SAMPLING_MIN_P, s.min_p)
    yield _real(Keys.General.SAMPLING_TEMP, s.temperature)
    if s.repetition_penalty != 1:  # over the whole text, as our runtime and transformers take it; llama.cpp: 64 tokens
        yield KeyValue(Keys.General.SAMPLING_PENALTY_LAST_N, GGUFValueType.INT32, -1)
    yield _real(Keys.General.SAMPLING_PENALTY_REPEAT, s.repetition_penalty)


def _provenance(plan: Plan, files: Mapping[str, bytes], revision: str) -> Iterator[KeyValue]:
    general, source = Keys.General, plan.recipe.source
    name, owner, base, finetune, version, size = Metadata.get_model_id_components(source.repo, plan.parameters)
    title, organization = _title(name or source.repo), _title(owner or "")
    yield _text(general.NAME, title)
    yield _text(general.VERSION, version or "")
    yield _text(general.ORGANIZATION, organization)
    yield _text(general.FINETUNE, finetune or "")
    yield _text(general.BASENAME, base or "")
    yield _text(general.QUANTIZED_BY, f"edgeship {__version__}")
    yield _text(general.SIZE_LABEL, size or label_of_size(plan.parameters, 0, 0, 0))
    yield from _license(files)
    url = HOSTS.get(source.host, "").format(source.repo)
    yield _text(general.SOURCE_URL, _at_revision(source, url, revision))
    yield _text(general.SOURCE_REPO_URL, url)
    yield _whole(general.BASE_MODEL_COUNT, 1)
    yield _text(general.BASE_MODEL_NAME.format(id=0), title)
    yield _text(general.BASE_MODEL_VERSION.format(id=0), version or "")
    yield _text(general.BASE_MODEL_ORGANIZATION.format(id=0), organization)
    yield _text(general.BASE_MODEL_REPO_URL.format(id=0), url)


def _title(name: str) -> str:
    return str(Metadata.id_to_title(name))  # type: ignore[no-untyped-call]


def _at_revision(source: Source, url: str, revision: str) -> str:
    """Where the very files lie that were exported; nothing for a directory, whose contents nobody vouches for."""
    if not url or revision == "local":
        return ""
    return f"{url}/tree/{revision}" if source.host == "huggingface" else f"{url}/files?version={revision}"


def _license(files: Mapping[str, bytes]) -> Iterator[KeyValue]:
    name = next((n for n in sorted(files) if n.startswith("LICENSE")), None)
    if name is None:
        return
    text = files[name][:4000].decode(errors="replace")
    known = next((identifier for marks, identifier in KNOWN_LICENSES if all(mark in text for mark in marks)), None)
    yield _text(Keys.General.LICENSE, known or "other")
    if known is None:
        first = next((line.strip() for line in text.splitlines() if line.strip()), name)
        yield _text(Keys.General.LICENSE_NAME, first[:100])


def _decoder(plan: Plan) -> Iterator[KeyValue]:
    d, arch = plan.decoder, plan.decoder.model_type
    yield _whole(Keys.LLM.BLOCK_COUNT.format(arch=arch), d.layers)
    yield _whole(Keys.LLM.CONTEXT_LENGTH.format(arch=arch), d.max_positions)
    yield _whole(Keys.LLM.EMBEDDING_LENGTH.format(arch=arch), d.hidden_size)
    yield _whole(Keys.LLM.FEED_FORWARD_LENGTH.format(arch=arch), d.feed_forward)
    yield _whole(Keys.Attention.HEAD_COUNT.format(arch=arch), d.heads)
    yield _whole(Keys.Attention.HEAD_COUNT_KV.format(arch=arch), d.kv_heads)
    yield from _rope_scaling(d.rope, arch)
    yield _real(Keys.Rope.FREQ_BASE.format(arch=arch), d.rope.theta)
    yield _real(Keys.Attention.LAYERNORM_RMS_EPS.format(arch=arch), d.norm_eps)
    if arch != "qwen2" or d.head_dim * d.heads != d.hidden_size:  # what transformers' config classes hold head_dim for
        yield _whole(Keys.Attention.KEY_LENGTH.format(arch=arch), d.head_dim)
        yield _whole(Keys.Attention.VALUE_LENGTH.format(arch=arch), d.head_dim)
    yield _whole(Keys.General.FILE_TYPE, _file_type(plan))
    if arch == "llama":
        yield _whole(Keys.LLM.VOCAB_SIZE.format(arch=arch), d.vocab_size)
        yield _whole(Keys.Rope.DIMENSION_COUNT.format(arch=arch), d.head_dim)
    yield _whole(Keys.General.QUANTIZATION_VERSION, GGML_QUANT_VERSION)


def _file_type(plan: Plan) -> int:
    label = file_label(plan)
    kind = LlamaFileType.__members__.get(FILE_TYPES.get(label, f"MOSTLY_{label}"))
    if kind is None:
        raise PlanError(
            f"{plan.recipe.name}: llama.cpp knows no file of type {label or 'of groups over 32'}; nothing was written.",
            hint="choose another type for scheme.body, or formats: [onnx]",
        )
    return int(kind)


def _rope_scaling(rope: Rope, arch: str) -> Iterator[KeyValue]:
    s = rope.scaling
    if s is None or s["rope_type"] != "yarn":  # llama3's factors are a tensor
        return
    yield _text(Keys.Rope.SCALING_TYPE.format(arch=arch), RopeScalingType.YARN.value)
    yield _real(Keys.Rope.SCALING_FACTOR.format(arch=arch), s["factor"])
    yield _whole(Keys.Rope.SCALING_ORIG_CTX_LEN.format(arch=arch), s["original_max_position_embeddings"])
    if "attention_factor" in s:
        yield _real(Keys.Rope.SCALING_YARN_ATTN_FACTOR.format(arch=arch), s["attention_factor"])
    for key, name in ((Keys.Rope.SCALING_YARN_BETA_FAST, "beta_fast"), (Keys.Rope.SCALING_YARN_BETA_SLOW, "beta_slow")):
        if name in s:
            yield _real(key.format(arch=arch), s[name])
    if "attention_factor" in s:
        yield _real(Keys.Rope.SCALING_ATTN_FACTOR.format(arch=arch), _relative_attention(s))


def _relative_attention(scaling: Mapping[str, Any]) -> float:
    """The attention factor relative to YaRN's own, 0.1 ln(factor) + 1, by which llama.cpp multiplies it again."""
    return float(scaling["attention_factor"]) / (0.1 * math.log(scaling["factor"]) + 1)


def _tokenizer(v: Vocabulary, plan: Plan) -> Iterator[KeyValue]:
    d: Decoder = plan.decoder
    if d.model_type == "llama" and v.add_space_prefix is not None:
        yield KeyValue(Keys.Tokenizer.ADD_PREFIX, GGUFValueType.BOOL, v.add_space_prefix)
    yield _text(Keys.Tokenizer.MODEL, "gpt2")
    yield _text(Keys.Tokenizer.PRE, v.pre)
    yield KeyValue(Keys.Tokenizer.LIST, GGUFValueType.STRING, v.tokens)
    yield KeyValue(Keys.Tokenizer.TOKEN_TYPE, GGUFValueType.INT32, v.types)
    yield KeyValue(Keys.Tokenizer.MERGES, GGUFValueType.STRING, v.merges)
    for kind, token in v.special.items():
        if kind in SPECIAL_KEYS:
            yield _whole(SPECIAL_KEYS[kind], token)
    for kind, value in v.add.items():
        if kind in ADD_KEYS:
            yield KeyValue(ADD_KEYS[kind], GGUFValueType.BOOL, value)
    if d.model_type == "llama" and d.vocab_size == 49152 and "bos" not in v.add:
        yield KeyValue(Keys.Tokenizer.ADD_BOS, GGUFValueType.BOOL, False)  # the converter's, for SmolLM's vocabulary


def _templates(files: Mapping[str, bytes]) -> Iterator[KeyValue]:
    folder, ending = "additional_chat_templates/", ".jinja"
    named = {
        name.removeprefix(folder).removesuffix(ending).replace("-", "_"): raw.decode()
        for name, raw in sorted(files.items())
        if name.startswith(folder)
    }
    for name, text in named.items():
        yield _text(Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), text)
    yield KeyValue(Keys.Tokenizer.CHAT_TEMPLATES, GGUFValueType.STRING, tuple(named))
    if TEMPLATE in files:
        yield _text(Keys.Tokenizer.CHAT_TEMPLATE, files[TEMPLATE].decode())
