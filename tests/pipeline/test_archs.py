"""The rotary embedding that a config.json describes: what transformers takes it for, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeship import archs
from edgeship.errors import ArchitectureError
from planned import CONFIG

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 5e5}
ROPES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "empty blocks": {"rope_scaling": {}, "rope_parameters": {}},
    "flat": {"rope_theta": 1e6, "rope_scaling": None},
    "block": {"rope_parameters": PLAIN},
    "block over flat": {"rope_theta": 1e6, "rope_parameters": PLAIN},
    "scaling over block": {"rope_scaling": YARN | {"rope_theta": 1e6}, "rope_parameters": PLAIN},
    "scaling over block, the same theta": {"rope_theta": 5e5, "rope_scaling": YARN, "rope_parameters": PLAIN},
    "plain over scaled": {"rope_scaling": {"type": "default"}, "rope_parameters": YARN},
    "its own theta": {"rope_theta": 1e6, "rope_scaling": LLAMA3 | {"rope_theta": 5e5}},
    "rope_type over type": {"rope_scaling": YARN | {"type": "default"}},
    "flat length": {"rope_scaling": YARN, "original_max_position_embeddings": 64},
    "no length": {"rope_scaling": {"type": "yarn", "factor": 2}},
    "betas of 0": {"rope_scaling": YARN | {"beta_fast": 0, "beta_slow": 0}},
    "part of no scaled rope": {"partial_rotary_factor": 0.5},
}


def config(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in CONFIG.items() if k != "rope_theta"} | fields


@pytest.mark.parity
@pytest.mark.parametrize("case", ROPES)
def test_frequencies_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    from transformers import AutoConfig
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    (tmp_path / "config.json").write_text(json.dumps(config(ROPES[case])))
    theirs = Qwen2RotaryEmbedding(AutoConfig.from_pretrained(tmp_path))
    inverse, factor = archs.read(config(ROPES[case])).rope.frequencies()
    np.testing.assert_allclose(inverse, theirs.inv_freq.numpy(), rtol=1e-5, atol=0)
    assert factor == pytest.approx(theirs.attention_scaling)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"rope_scaling": YARN, "rope_parameters": PLAIN},
            "config.json: rope_theta: found 500000.0 in rope_parameters, but rope_scaling comes before that block, "
            "and with it transformers takes 10000",
        ),
        ({"rope_parameters": {"full_attention": PLAIN}}, "rope_parameters: expected one rotary embedding for all"),
        ({"rope_scaling": YARN | {"truncate": None}}, "rope_scaling: truncate: found None"),
        ({"rope_scaling": LLAMA3 | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: found 0.5"),
        ({"rope_scaling": YARN, "partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5"),
        ({"rope_scaling": PLAIN | {"rope_type": "linear"}, "rope_parameters": PLAIN}, "rope_scaling: rope_type"),
        ({"rope_theta": 0}, "config.json: rope_theta: expected a number above 1, at most 1e+12, found 0"),
        ({"rope_parameters": PLAIN | {"rope_theta": -1e4}}, "rope_parameters: rope_theta: expected a number above 1"),
        ({"rope_theta": 10**400}, "rope_theta: expected float"),
        ({"rope_scaling": YARN | {"factor": 0}}, "rope_scaling: factor: expected a number above 0.001"),
        ({"rope_scaling": YARN | {"beta_fast": 1e-320}}, "beta_fast: expected a number above 0.001"),
        ({"rope_scaling": YARN | {"attention_factor": 0}}, "attention_factor: expected a number above 0.001"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4}}, "high_freq_factor: expected a number above 4"),
        ({"rope_scaling": ["yarn"]}, "rope_scaling: expected dict"),
    ],
)
def test_what_would_be_another_model_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        archs.read(config(fields))
    assert says in caught.value.message
    assert caught.value.hint
