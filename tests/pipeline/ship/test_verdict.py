"""What a validation makes of the answer of a verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acceptance_files import write_acceptance
from edgeship.ship.report import Sample
from edgeship.ship.verdict import judge, read_verify
from edgeship_runtime.manifest import read_manifest
from tiny_bundle import device
from toy_artifact import write_toy


@pytest.mark.parametrize(
    ("more", "name", "passed", "said"),
    [
        ({}, "fidelity", True, "5 of 5 tokens equal, 0 near ties, 0 wrong; largest logit error 0.010 deviations"),
        ({"cosine": 0.99876}, "fidelity", True, "5 of 5 texts close to the float model, cosine at least 0.9988"),
        (
            {"float_model": {"positions": 5, "equal": 4, "kl_mean": 0.0312, "kl_budget": 0.05}},
            "float model",
            True,
            "KL divergence 0.0312, 4 of 5 tokens equal",
        ),
        (
            {"float_model": {"positions": 5, "equal": 4, "kl_mean": 0.06, "kl_budget": 0.05}},
            "float model",
            False,
            "KL divergence 0.06, 4 of 5 tokens equal",
        ),
    ],
)
def test_what_a_verify_says_of_the_model(more: dict[str, Any], name: str, passed: bool, said: str) -> None:
    agreement = {"positions": 5, "equal": 5, "near_ties": 0, "wrong": 0, "max_logit_error_std": 0.01} | more
    answer = {"verdict": "pass" if passed else "fail", "intact": True, "agreement": agreement, "failures": []}
    checks, _ = read_verify(json.dumps(answer).encode())
    (found,) = (check for check in checks if check.name == name)
    assert (found.passed, found.found) == (passed, said)


def test_a_model_that_decodes_nothing_has_no_budget_for_it(tmp_path: Path) -> None:
    figures = {"load_s": 1.0, "ttft_s": 0.1, "prefill_tokens_per_s": 640.0, "decode_tokens_per_s": 0.0}
    sample = Sample(**figures, peak_rss_mb=90.0, prompt_tokens=64, decode_tokens=0, threads=1, at_s=1.0)
    strict = device(budgets={"ram_share": 0.5, "min_decode": 5.0})
    manifest = read_manifest(write_acceptance(write_toy(tmp_path / "toy")))
    checks = {c.name: c for c in judge([sample], strict, manifest, "")}
    assert "decode tokens/s" not in checks
    assert (checks["prefill tokens/s"].passed, checks["prefill tokens/s"].found) == (None, "640.0")
    assert all(check.passed is not False for check in checks.values())
