"""Named mixes, such as `Q4_K_M`: a type for every tensor, chosen as llama-quantize chooses it.

Source: llama_tensor_get_type_impl, tensor_type_fallback and llama_ftype_get_default_type in llama-quant.cpp of
llama.cpp (as in llama-cpp-python 0.3.36), for decoders without experts. Where rows do not divide into a type's
blocks llama-quantize takes another one and goes on; so do we, and the plan says it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgeship.archs.base import Decoder, Role
from edgeship.encodings import ENCODINGS, Encoding

MixName = Literal[
    "Q2_K", "Q2_K_S", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32", "IQ4_NL", "IQ4_XS",
    "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M",
    "TQ1_0", "TQ2_0", "Q1_0",
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor stands, as far as the rules look."""

    layer: int
    layers: int
    heads_per_kv: int  # query heads that share a K and V head
    importance: bool  # whether an importance matrix is given


Condition = Callable[[Place], bool]
Rules = tuple[tuple[Condition, str], ...]
"""The first rule whose condition holds names the type; none: the mix's own."""


def always(p: Place) -> bool:
    return True


def more_bits(p: Place) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = p.layers // 8
    return p.layer < eighth or p.layer >= 7 * p.layers // 8 or (p.layer - eighth) % 3 == 2


def shared_v(p: Place) -> bool:
    """V is small beside Q, so that more bits for it cost little."""
    return p.heads_per_kv >= 4


def plain(p: Place) -> bool:
    return not p.importance


def guided(p: Place) -> bool:
    return p.importance


def middle(p: Place) -> bool:
    return p.layers // 8 <= p.layer < 7 * p.layers // 8


def first(count: int) -> Condition:
    return lambda p: p.layer < count


def first_part(of: int) -> Condition:
    return lambda p: p.layer < p.layers // of


def both(one: Condition, other: Condition) -> Condition:
    return lambda p: one(p) and other(p)


@dataclass(frozen=True)
class Mix:
    """A type for most tensors, and rules for the others, by encoding name."""

    most: str
    v: Rules = ()
    down: Rules = ()
    o: Rules = ()
    qk: Rules = ()
    gate_up: Rules = ()
    head: str = "q6_k"  # also of a table that is embedding and head in one
    embed: str = ""  # of a table that is not the head, "" for `most`
    lifts_70b: bool = True  # whether q3_k and q4_k become q5_k for V of a model of 80 layers
    needs_importance: bool = False  # beyond what its types say of themselves


def _low(most: str, v: str, embed: str, o: str = "") -> Mix:
    """A mix of about two bits or less."""
    return Mix(
        most,
        v=((shared_v, "q4_k"), (always, v)),
        down=((first_part(8), v),),
        o=((always, o),) if o else (),
        head="q5_k",
        embed=embed,
        lifts_70b=False,
    )


_FLAT_IQ4: Rules = ((both(first_part(8), plain), "q5_k"),)
_EARLY_DOWN = both(first_part(8), guided)

MIXES: dict[MixName, Mix] = {
    "F32": Mix("float32", head="float32"),
    "F16": Mix("float16", head="float16"),
    "BF16": Mix("bfloat16", head="bfloat16"),
    "Q8_0": Mix("int8-32", head="int8-32"),
    "Q6_K": Mix("q6_k"),
    "Q5_K_M": Mix("q5_k", v=((more_bits, "q6_k"),), down=((more_bits, "q6_k"),)),
    "Q5_K_S": Mix("q5_k"),
    "Q5_1": Mix("q5_1"),
    "Q5_0": Mix("q5_0", down=((_EARLY_DOWN, "q5_1"),)),
    "Q4_K_M": Mix("q4_k", v=((more_bits, "q6_k"),), down=((more_bits, "q6_k"),)),
    "Q4_K_S": Mix("q4_k", v=((first(4), "q5_k"),), down=((first_part(8), "q5_k"),)),
    "Q4_1": Mix("q4_1"),
    "Q4_0": Mix("int4-32", down=((_EARLY_DOWN, "q4_1"),)),
    "IQ4_NL": Mix("iq4_nl", v=((shared_v, "q5_k"),), down=_FLAT_IQ4),
    "IQ4_XS": Mix("iq4_xs", v=((shared_v, "q5_k"),), down=_FLAT_IQ4),
    "Q3_K_L": Mix("q3_k", v=((always, "q5_k"),), down=((always, "q5_k"),), o=((always, "q5_k"),)),
    "Q3_K_M": Mix(
        "q3_k",
        v=((first(2), "q5_k"), (always, "q4_k")),
        down=((first_part(16), "q5_k"), (always, "q4_k")),
        o=((always, "q4_k"),),
    ),
    "Q3_K_S": Mix("q3_k"),
    "Q2_K": Mix("q2_k", v=((shared_v, "q4_k"), (always, "q3_k")), down=((always, "q3_k"),), o=((always, "q3_k"),)),
    "Q2_K_S": Mix("q2_k", v=((shared_v, "q4_k"),), down=((first_part(8), "q4_k"),), needs_importance=True),
    "IQ3_M": Mix("iq3_s", v=((always, "q4_k"),), down=((first_part(8), "q4_k"),), o=((always, "q4_k"),)),
    "IQ3_S": Mix("iq3_s", v=((shared_v, "q4_k"),)),
    "IQ3_XS": Mix("iq3_s", v=((shared_v, "q4_k"),), qk=((always, "iq3_xxs"),), gate_up=((middle, "iq3_xxs"),)),
    "IQ3_XXS": Mix(
        "iq3_xxs",
        v=((shared_v, "q4_k"), (plain, "iq3_s")),
        down=((both(first_part(8), plain), "q4_k"), (plain, "q3_k")),
        o=((always, "iq3_s"),),
        qk=((always, "iq2_s"),),
        head="q5_k",
        embed="iq3_s",
    ),
    "IQ2_M": _low("iq2_s", v="iq3_s", embed="iq3_s", o="iq3_s"),
    "IQ2_S": _low("iq2_xs", v="iq3_s", embed="iq3_s", o="iq3_s"),
    "IQ2_XS": _low("iq2_xs", v="q2_k", embed="q2_k"),
    "IQ2_XXS": _low("iq2_xxs", v="q2_k", embed="q2_k"),
    "IQ1_M": _low("iq1_m", v="q2_k", embed="q2_k", o="iq2_xxs"),
    "IQ1_S": _low("iq1_s", v="q2_k", embed="q2_k", o="iq2_xxs"),
    "TQ2_0": Mix("tq2_0", embed="q4_k"),
    "TQ1_0": Mix("tq1_0", embed="q4_k"),
    "Q1_0": Mix("q1_0"),
}

FALLBACKS = {
    "q2_k": "int4-32", "q3_k": "int4-32", "tq1_0": "int4-32", "tq2_0": "int4-32",
    "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "int8-32",
    **dict.fromkeys(("iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"), "iq4_nl"),
}  # fmt: skip
"""What llama-quantize takes where rows do not divide into blocks of 256."""


@dataclass(frozen=True)
class Choice:
    """The encoding of a tensor, and the one its mix has for it where rows divide into blocks."""

    encoding: Encoding
    wanted: Encoding


def choose(decoder: Decoder, name: MixName, *, importance: bool) -> dict[str, Choice]:
    """The choice for each weight of the decoder, by role key; norms and biases stay float32 and are not in it.

    `importance`: whether an importance matrix is given, which moves some types.
    """
    mix = MIXES[name]
    out = {}
    for role in decoder.roles():
        if role.part == "float":
            continue
        columns = role.shape[-1]
        wanted = ENCODINGS[_wanted(decoder, mix, role, importance)]
        asked = wanted
        if _is_head(decoder, role) and not ENCODINGS[mix.most].fits(columns):
            asked = ENCODINGS["int8-32"]
        out[role.key] = Choice(_fitting(asked, columns), wanted)
    return out


def _is_head(decoder: Decoder, role: Role) -> bool:
    return role.part == "head" or (decoder.tied and role.part == "embeddings")


def _wanted(decoder: Decoder, mix: Mix, role: Role, importance: bool) -> str:
    if _is_head(decoder, role):
        return mix.head
    if role.part == "embeddings":
        return mix.embed or mix.most
    _, layer, block, matrix, _ = role.key.split(".")  # layers.0.attn.q.weight
    kinds = {"v": mix.v, "o": mix.o, "q": mix.qk, "k": mix.qk, "down": mix.down, "gate": mix.gate_up, "up": mix.gate_up}
    place = Place(int(layer), decoder.layers, decoder.heads // decoder.kv_heads, importance)
    chosen = next((kind for condition, kind in kinds[matrix] if condition(place)), mix.most)
    if block == "attn" and matrix == "v" and mix.lifts_70b and _is_70b(decoder) and chosen in ("q3_k", "q4_k"):
        return "q5_k"
    return chosen


def _is_70b(decoder: Decoder) -> bool:
    """What llama.cpp takes for a 70B model (src/models/llama.cpp, qwen2.cpp; qwen3.cpp knows none)."""
    shared = decoder.heads != decoder.kv_heads
    return decoder.layers == 80 and (decoder.model_type == "qwen2" or (decoder.model_type == "llama" and shared))


def _fitting(asked: Encoding, columns: int) -> Encoding:
    """The encoding, or what llama-quantize takes in its place; one without a substitute stays, and is a conflict."""
    if asked.fits(columns):
        return asked
    if asked.group > 32 and asked.name not in FALLBACKS:
        return asked
    fallback = ENCODINGS[FALLBACKS.get(asked.name, asked.name)]
    return fallback if fallback.fits(columns) else ENCODINGS["float16"]
