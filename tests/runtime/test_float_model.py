"""Agreement with the float model: an estimate that is never too large, its budget, and files that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tolerances
from acceptance_files import golden, seal, write_acceptance
from edgeship_runtime.acceptance import FIDELITY, Position, divergence, read_golden
from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.manifest import read_manifest
from edgeship_runtime.verify import verify
from json_values import mutate
from toy_artifact import Toy, write_toy


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    made = write_toy(tmp_path / "toy" / "onnx")
    write_acceptance(made)
    return made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """For a test that puts the file back as it was."""
    made = write_toy(tmp_path_factory.mktemp("shared") / "onnx")
    write_acceptance(made)
    write_fidelity(made)
    return made


def write_fidelity(toy: Toy, change: Callable[[Any], None] = lambda value: None) -> Path:
    """The float model's predictions as if it were the toy with its logits times 1.1; every third golden position."""
    value = golden(toy) | {"kl_budget": 0.5, "tie_tolerance": 0}
    for case in value["cases"]:
        case["positions"] = case["positions"][::3]
        tokens = case["prompt_ids"] + case["continuation"]
        for place in case["positions"]:
            logits = 1.1 * toy.logits(tokens[: place["index"] + 1])[-1].astype(np.float64)
            known = logits - logits.max()
            known -= np.log(np.exp(known).sum())
            place["top_ids"] = np.argsort(-known)[:8].tolist()
            place["top_logits"] = known[place["top_ids"]].tolist()
    change(value)
    (toy.directory / FIDELITY).write_text(json.dumps(value), encoding="utf-8")
    return seal(toy.directory)


def test_it_is_measured_and_told(toy: Toy) -> None:
    verdict = verify(write_fidelity(toy), threads=1)
    assert verdict.verdict == "pass"
    assert verdict.agreement is not None
    found = verdict.agreement.float_model
    assert found is not None
    assert found.positions == found.equal == 8  # of 22: each third, case by case
    assert 0 < found.kl_mean < 0.05
    assert "float model: 8 of 8 tokens equal" in verdict.table()
    assert verdict.to_json()["agreement"]["float_model"]["kl_budget"] == 0.5


def test_beyond_the_budget_it_fails(toy: Toy) -> None:
    directory = write_fidelity(toy, lambda value: value.update(kl_budget=1e-7))
    verdict = verify(directory, threads=1)
    assert verdict.verdict == "fail"
    (failure,) = verdict.failures
    assert failure.startswith("agreement: ")
    assert failure.endswith("nats from the float model, more than 1e-07")


def test_another_best_token_is_counted(toy: Toy) -> None:
    def swap(value: Any) -> None:
        place = value["cases"][1]["positions"][0]
        place["top_ids"][:2] = reversed(place["top_ids"][:2])

    verdict = verify(write_fidelity(toy, swap), threads=1)
    assert verdict.agreement is not None
    assert verdict.agreement.float_model is not None
    assert verdict.agreement.float_model.equal == 7


def test_without_the_file_nothing_is_said(toy: Toy) -> None:
    verdict = verify(toy.directory, threads=1)
    assert verdict.verdict == "pass"
    assert verdict.agreement is not None
    assert verdict.agreement.float_model is None
    assert "float model" not in verdict.table()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kl_budget", -1, "kl_budget: expected a number"),
        ("kl_budget", None, "kl_budget"),
        ("more", 1, 'unknown member "more"'),
        ("schema", 2, "schema version 2"),
        ("cases", 1, "cases: expected a list"),
    ],
)
def test_a_file_that_is_none(toy: Toy, name: str, value: Any, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        verify(write_fidelity(toy, lambda root: root.update({name: value})))
    assert caught.value.hint


@given(st.data())
@settings(max_examples=80)
def test_whatever_the_file_holds(shared: Toy, data: st.DataObject) -> None:
    """Predictions, or an ArtifactError."""
    manifest = replace(read_manifest(shared.directory), sealed=False, files={})  # sizes are not the point here
    file = shared.directory / FIDELITY
    kept = file.read_bytes()
    file.write_text(json.dumps(mutate(data, json.loads(kept))))
    try:
        with suppress(ArtifactError):
            assert read_golden(shared.directory, manifest, FIDELITY).kl_budget >= 0
    finally:
        file.write_bytes(kept)


def test_golden_values_have_no_budget(toy: Toy) -> None:
    def change(name: str, value: Any) -> None:
        if name == "golden":
            value["kl_budget"] = 1

    with pytest.raises(ArtifactError, match="unknown member"):
        verify(write_acceptance(toy, change))


@given(st.integers(0, 1 << 32), st.integers(1, 12), st.floats(0.01, 10))
def test_the_estimate_is_between_nothing_and_the_whole(seed: int, top: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.standard_normal(40) * spread for _ in range(2))
    p = np.exp(ours - ours.max())
    p /= p.sum()
    q = np.exp(theirs - theirs.max())
    q /= q.sum()
    whole = float((p * np.log(p / q)).sum())
    best = np.argsort(-p)[:top]
    place = Position(0, tuple(best.tolist()), tuple(np.log(p[best]).tolist()), 1.0)
    found = divergence(place, theirs.astype(np.float32))
    slack = tolerances.KL_ESTIMATE * max(1.0, whole)
    assert -slack <= found <= whole + slack
    every = Position(0, tuple(range(40)), tuple(np.log(p).tolist()), 1.0)
    assert divergence(every, theirs.astype(np.float32)) == pytest.approx(whole, abs=slack)
