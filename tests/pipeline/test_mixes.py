"""Mixes against what llama-quantize itself chose, recorded in `mix_models.json` for models of many shapes."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from edgeship.encodings import ENCODINGS
from edgeship.quant.mixes import FALLBACKS, MIXES, Choice, MixName, choose
from mix_models import MODELS, RECORD, decoder, digest, gguf_name

RECORDED: dict[str, dict[str, str]] = json.loads(RECORD.read_text())


def types(choices: dict[str, Choice]) -> dict[str, str]:
    return {gguf_name(key): choice.encoding.gguf or "" for key, choice in choices.items()}


@pytest.mark.parametrize("mix", get_args(MixName))
@pytest.mark.parametrize("model", MODELS)
def test_types_are_those_that_llama_quantize_chooses(model: str, mix: MixName) -> None:
    d = decoder(model)
    recorded = RECORDED[model][mix].split()
    for importance, expected in zip((False, True), recorded, strict=True):
        chosen = choose(d, mix, importance=importance)
        fits = all(chosen[r.key].encoding.fits(r.shape[-1]) for r in d.roles() if r.key in chosen)
        assert (digest(types(chosen)) if fits else "refused") == expected, (
            "compare with llama-quantize --dry-run, as tests/mix_models.py runs it"
        )


def test_the_record_is_of_these_models_and_mixes() -> None:
    assert list(RECORDED) == list(MODELS)
    assert all(set(recorded) == set(get_args(MixName)) == set(MIXES) for recorded in RECORDED.values())


def test_q4_k_m_in_words() -> None:
    """llama-quantize --dry-run on a GGUF of this shape prints q6_K for these tensors, and q4_K for all others."""
    chosen = choose(decoder("qwen2.5-1.5b"), "Q4_K_M", importance=False)
    more = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27}
    expected = {f"layers.{i}.{matrix}.weight" for i in more for matrix in ("attn.v", "mlp.down")} | {"embed.weight"}
    assert {key for key, choice in chosen.items() if choice.encoding.name == "q6_k"} == expected
    assert {choice.encoding.name for choice in chosen.values()} == {"q4_k", "q6_k"}
    assert not any("norm" in key or "bias" in key for key in chosen)


def test_what_was_wanted_is_kept() -> None:
    chosen = choose(decoder("qwen2.5-0.5b"), "Q4_K_M", importance=False)
    assert chosen["layers.3.attn.q.weight"] == Choice(ENCODINGS["q5_0"], ENCODINGS["q4_k"])
    assert chosen["embed.weight"] == Choice(ENCODINGS["int8-32"], ENCODINGS["q6_k"])
    assert chosen["layers.3.mlp.down.weight"].encoding is chosen["layers.3.mlp.down.weight"].wanted
    odd = choose(decoder("odd-172"), "Q4_K_M", importance=False)
    assert odd["layers.1.mlp.down.weight"] == Choice(ENCODINGS["float16"], ENCODINGS["q4_k"])


def test_rules_name_encodings() -> None:
    for mix in MIXES.values():
        rules = [kind for rules in (mix.v, mix.down, mix.o, mix.qk, mix.gate_up) for _, kind in rules]
        assert {mix.most, mix.head, mix.embed or mix.most, *rules} <= set(ENCODINGS)
    for wide, narrow in FALLBACKS.items():
        assert (ENCODINGS[wide].group, ENCODINGS[narrow].group) == (256, 32)
