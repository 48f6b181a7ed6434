"""Verifying encoders: what their acceptance test compares with the float model, and how close is close enough."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeship_runtime import errors
from edgeship_runtime.encoder import GOLDEN, Scores, cosine
from edgeship_runtime.verify import verify
from encoders import (
    EMBED,
    TEXT,
    TEXTS,
    TOKENS,
    config,
    golden,
    ids_of,
    seal,
    sigmoid,
    softmax,
    with_golden,
    write_encoder,
    write_files,
)


@pytest.mark.parametrize("task", [EMBED, TEXT, TOKENS])
def test_an_artifact_like_its_float_model_passes(tmp_path: Path, task: str) -> None:
    verdict = verify(with_golden(tmp_path, task))
    assert verdict.verdict == "pass"
    assert verdict.agreement is not None
    assert verdict.agreement.cosine == pytest.approx(1, abs=1e-5)
    assert (verdict.agreement.equal, verdict.agreement.wrong) == (len(TEXTS), 0)
    assert verdict.tokens is not None
    assert verdict.tokens.equal == len(TEXTS)
    assert "cosine at least 1.0000" in verdict.table()
    assert json.dumps(verdict.to_json())


def swap(value: dict[str, Any]) -> None:
    a, b = value["cases"][0], value["cases"][2]
    a["values"], b["values"] = b["values"], a["values"]


def shift(value: dict[str, Any]) -> None:
    value["cases"][1]["token_ids"][1] += 1


def shorten(value: dict[str, Any]) -> None:
    value["cases"][0]["values"] = value["cases"][0]["values"][:8]


@pytest.mark.parametrize(
    ("change", "said"), [(swap, "agreement: "), (shift, "tokens: the ids of 1 texts"), (shorten, "agreement: ")]
)
def test_one_that_differs_fails(tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    verdict = verify(with_golden(tmp_path, EMBED, change))
    assert verdict.verdict == "fail"
    assert any(said in each for each in verdict.failures)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.pop("least_cosine"), "least_cosine"),
        (lambda value: value.update(schema=3), "schema"),
        (lambda value: value["cases"][0].update(values="abc"), "values"),
        (lambda value: value["cases"][0].update(token_ids=[10**6]), "token_ids"),
    ],
)
def test_a_damaged_acceptance_file(tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    with pytest.raises(errors.ArtifactError, match=said):
        verify(with_golden(tmp_path, EMBED, change))


@pytest.mark.parametrize("middle", [0.0, -6.0])
@pytest.mark.parametrize(
    ("labels", "function"), [(1, "sigmoid"), (1, "none"), (2, "softmax"), (2, "none"), (5, "softmax")]
)
def test_what_is_alike_of_a_classifier(labels: int, function: str, middle: float) -> None:
    rng = np.random.default_rng(3)
    wanted = [(middle + rng.standard_normal(labels)).astype(np.float32) for _ in range(16)]
    mean = np.mean(wanted, axis=0)
    noise = [rng.standard_normal(labels).astype(np.float32) for _ in wanted]
    scores = Scores(tuple(map(str, range(labels))), function)

    def found(change: Callable[[Any, Any], Any]) -> float:
        return scores.similarity([(a, change(a, b).astype(np.float32)) for a, b in zip(wanted, noise, strict=True)])

    assert found(lambda a, b: a) == 1
    assert found(lambda a, b: a + 0.02 * b) > 0.99
    assert found(lambda a, b: np.zeros(labels)) < 0.5
    assert found(lambda a, b: mean) < 0.1
    assert found(lambda a, b: -a) < 0.1
    assert found(lambda a, b: 2 * mean - a) < -0.9
    assert found(lambda a, b: b) < 0.5
    assert found(lambda a, b: mean + (a - mean) / 2) < 0.9
    assert found(lambda a, b: a + np.arange(labels) + 1) < (0.95 if labels > 1 else 0.9)
    assert found(lambda a, b: np.full(labels, np.nan)) == 0
    assert found(lambda a, b: np.full(labels, np.inf)) == 0
    assert found(lambda a, b: a[1:]) == 0
    if function == "softmax":
        assert found(lambda a, b: a + 5) == pytest.approx(1, abs=1e-6)


def test_one_that_hardly_tells_texts_apart_may_round() -> None:
    wanted = [np.array([-6 + 1e-4 * i], np.float32) for i in range(16)]
    assert Scores(("spam",), "sigmoid").similarity([(a, a + 0.01) for a in wanted]) > 0.99
    assert Scores(("spam",), "sigmoid").similarity([(a, -a) for a in wanted]) < 0.1


def flat(value: dict[str, Any]) -> None:
    for case in value["cases"]:
        case["values"] = value["cases"][0]["values"]


@pytest.mark.parametrize(
    ("labels", "more"),
    [(1, {}), (1, {"problem_type": "regression"}), (2, {}), (2, {"problem_type": "multi_label_classification"})],
)
def test_classifiers_of_few_labels_are_compared_by_their_logits(tmp_path: Path, labels: int, more: Any) -> None:
    directory, answer = write_encoder(tmp_path / "a", TEXT, config(labels, **more), labels=labels)

    def sealed(sign: float, change: Callable[[dict[str, Any]], Any] = lambda value: None) -> Any:
        value = golden([(text, ids := ids_of(directory, text), sign * answer(ids)) for text in TEXTS], logits=True)
        change(value)
        write_files(directory, {GOLDEN: value})
        return verify(seal(directory, TEXT))

    good = sealed(1)
    assert (good.verdict, good.failures) == ("pass", ())
    assert good.agreement is not None
    assert (good.agreement.equal, good.agreement.cosine) == (len(TEXTS), pytest.approx(1, abs=1e-5))
    for bad in (sealed(-1), sealed(1, flat), sealed(1, swap)):
        assert bad.verdict == "fail"
        assert "all texts together: cosine to the float model" in bad.failures[0]
        assert bad.agreement.equal == 0


@pytest.mark.parametrize(("labels", "wanted"), [(1, sigmoid), (3, softmax)])
def test_a_regression_sealed_by_its_scores_still_verifies(tmp_path: Path, labels: int, wanted: Any) -> None:
    said = config(labels, problem_type="regression")
    directory, answer = write_encoder(tmp_path / "a", TEXT, said, labels=labels)
    cases = [(text, ids := ids_of(directory, text), wanted(answer(ids))) for text in TEXTS]
    write_files(directory, {GOLDEN: golden(cases)})
    assert verify(seal(directory, TEXT)).verdict == "pass"


def test_agreement_can_be_left_out(tmp_path: Path) -> None:
    assert verify(with_golden(tmp_path, EMBED, swap), skip=["agreement"]).verdict == "pass"


def test_cosine_of_nothing() -> None:
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert cosine(zero, one) == 0
    assert cosine(np.array([np.nan, 1], np.float32), one) == 0
    assert cosine(one, -one) == pytest.approx(-1)
    assert cosine(one, np.ones(3, np.float32)) == 0
