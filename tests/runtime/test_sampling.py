"""Sampling: definitions against transformers' processors, determinism, bounds."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import tolerances
from edgeship_runtime.errors import EngineError, UsageError
from edgeship_runtime.sampling import GenerationOptions, Sampler, nucleus, shortlist, top_k_ids

QWEN_VOCAB = 151_936


def options(**values: Any) -> GenerationOptions:
    return GenerationOptions(**values)


def logits(size: int = 1000, std: float = 3.0, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size, np.float32) * np.float32(std)


def probabilities(scores: NDArray[np.float32], chosen: GenerationOptions) -> NDArray[np.float64]:
    """What the sampler draws from: float64 [vocab], zero where a token is cut off."""
    ids, weights = shortlist(scores, chosen, np.empty((2, len(scores)), np.float32))
    dense = np.zeros(len(scores))
    dense[slice(None) if ids is None else ids] = weights
    return dense / dense.sum()


WARPERS: list[dict[str, Any]] = [
    {},
    {"top_k": 20},
    {"top_k": 1},
    {"top_k": 999},
    {"top_k": 5000},
    {"top_p": 0.8},
    {"top_p": 0.05},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.05},
    {"top_p": 0.95, "min_p": 0.02},
]


@pytest.mark.parity
@pytest.mark.parametrize("size", [50, 1000, 20_000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("values", WARPERS, ids=str)
def test_what_is_drawn_from_equals_transformers(values: dict[str, Any], temperature: float, size: int) -> None:
    import torch
    from transformers.generation import logits_process as theirs

    for seed, std in enumerate((0.05, 3.0, 8.0)):
        scores = logits(size, std, seed)
        expected = theirs.TemperatureLogitsWarper(temperature)(None, torch.from_numpy(scores.copy())[None])
        if "top_k" in values:
            expected = theirs.TopKLogitsWarper(values["top_k"])(None, expected)
        if "top_p" in values:
            expected = theirs.TopPLogitsWarper(values["top_p"])(None, expected)
        if "min_p" in values:
            expected = theirs.MinPLogitsWarper(values["min_p"])(None, expected)
        want = torch.softmax(expected.double(), -1)[0].numpy()
        got = probabilities(scores, options(temperature=temperature, **values))
        # At the edge of top_p their float32 running sum may keep or cut another token than exact sums do.
        edge = want[want > 0].min() * (2 if "top_p" in values else 0)
        np.testing.assert_allclose(got, want, rtol=tolerances.PROBABILITIES, atol=max(edge, 1e-12))
        differ = np.flatnonzero((got > tolerances.UNDERFLOW) != (want > tolerances.UNDERFLOW))
        assert len(differ) <= tolerances.NUCLEUS_EDGE * np.count_nonzero(want) + (1 if "top_p" in values else 0)


@pytest.mark.parity
@pytest.mark.parametrize("penalty", [1.05, 1.5, 0.7])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    scores, seen = logits(), [3, 3, 77, 500, 999]
    sampler = Sampler(options(repetition_penalty=penalty), 1000, seen[:3])
    for token in seen[3:]:
        sampler._seen.add(token)
    want = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), torch.from_numpy(scores.copy())[None])
    np.testing.assert_array_equal(sampler.penalize(scores), want[0].numpy())


def test_bias_then_repetition_then_presence() -> None:
    sampler = Sampler(options(logit_bias={1: 2.0}, repetition_penalty=2.0, presence_penalty=0.5), 4, [1, 2])
    scores = np.array([1, 1, -1, 1], np.float32)
    np.testing.assert_array_equal(sampler.penalize(scores), [1, (1 + 2) / 2, -1 * 2, 1])
    assert sampler.choose(scores) == 1
    np.testing.assert_array_equal(sampler.penalize(scores), [1, (1 + 2) / 2 - 0.5, -1 * 2, 1])


def test_presence_penalty_counts_the_answer_and_not_the_prompt() -> None:
    sampler = Sampler(options(presence_penalty=1.5), 4, [0, 0])
    scores = np.array([2, 1.9, 1, 0], np.float32)
    assert [sampler.choose(scores) for _ in range(4)] == [0, 1, 2, 0]


def test_greedy_is_the_largest_logit_whatever_else_is_set() -> None:
    scores = logits()
    for temperature in (0.0, 1e-6, 1e-300):
        sampler = Sampler(options(temperature=temperature, top_k=5, top_p=0.5, min_p=0.1, seed=1), 1000)
        assert sampler.choose(scores) == scores.argmax()


def test_logits_are_left_as_they_are() -> None:
    scores = logits()
    before = scores.copy()
    Sampler(
        options(temperature=1.0, repetition_penalty=1.3, presence_penalty=1, logit_bias={5: 1.0}, top_k=9), 1000
    ).choose(scores)
    np.testing.assert_array_equal(scores, before)


def test_same_seed_same_tokens_and_no_seed_other_tokens() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(options(temperature=1.5, top_p=0.95, seed=seed), 1000)
        return [sampler.choose(logits(seed=step)) for step in range(30)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("values", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.2}])
def test_draws_follow_the_probabilities(values: dict[str, Any]) -> None:
    scores = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    chosen = options(temperature=1.0, seed=3, **values)
    want, count = probabilities(scores, chosen), 20_000
    sampler = Sampler(chosen, 4)
    got = Counter(sampler.choose(scores) for _ in range(count))
    for token, p in enumerate(want):
        assert abs(got[token] - count * p) <= tolerances.DRAWS * math.sqrt(count * p * (1 - p))


def test_draws_reach_every_block_of_a_large_vocabulary() -> None:
    # Blocks of the inverse distribution must be hit at both ends: equal weights, first and last id included.
    sampler = Sampler(options(temperature=1.0), 600)

    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    weights = np.ones(600, np.float32)
    for value, place in ((0.0, 0), (255.5 / 600, 255), (256 / 600, 256), (511.5 / 600, 511), (1 - 2**-53, 599)):
        sampler._random = Fixed(value)  # type: ignore[assignment]
        assert sampler._draw(None, weights) == place


def test_banned_tokens_are_never_drawn() -> None:
    scores = logits(300)
    banned = {int(token): -math.inf for token in np.argsort(-scores)[:299]}
    left = int(scores.argmin())
    for temperature in (0.0, 1.0, 50.0):
        assert Sampler(options(temperature=temperature, logit_bias=banned), 300).choose(scores) == left
    with pytest.raises(EngineError, match="bans every token"):
        Sampler(options(logit_bias=dict.fromkeys(range(4), -math.inf)), 4).choose(logits(4))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.filterwarnings("error")
def test_logits_that_are_no_numbers_are_an_error(bad: float, temperature: float) -> None:
    scores = logits()
    scores[500] = bad
    with pytest.raises(EngineError, match=r"weights are damaged"):
        Sampler(options(temperature=temperature), 1000).choose(scores)


@given(
    scores=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=200),
    k=st.integers(1, 250),
)
def test_top_k_equals_sorting(scores: list[float], k: int) -> None:
    values = np.array(scores, np.float32)
    k = min(k, len(values))
    want = np.flatnonzero(values >= np.sort(values)[-k])
    np.testing.assert_array_equal(top_k_ids(values, k), want)


@pytest.mark.parametrize("k", [1, 2, 50, 511, 512, 1024, 5000, 19_999, 20_000])
def test_top_k_of_a_large_vocabulary_equals_sorting(k: int) -> None:
    values = np.round(logits(20_000), 1)  # with ties
    np.testing.assert_array_equal(top_k_ids(values, k), np.flatnonzero(values >= np.sort(values)[-k]))


@given(
    scores=st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=60),
    copies=st.sampled_from([1, 200]),
    top_p=st.floats(0, 0.999),
)
def test_nucleus_is_the_smallest_heaviest_set(scores: list[float], copies: int, top_p: float) -> None:
    exponents = np.tile(np.array([*scores, 0.0], np.float32), copies)
    weights = np.exp(exponents)
    kept = nucleus(exponents, weights, top_p)
    assert len(kept) >= 1
    assert np.all(np.diff(kept) > 0)
    total, mass = float(weights.sum(dtype=np.float64)), float(weights[kept].sum(dtype=np.float64))
    cut = np.delete(weights, kept)
    slack = 1e-9 * total
    assert mass >= top_p * total - slack
    assert mass - float(weights[kept].min()) <= top_p * total + slack, "one less would not do"
    assert cut.size == 0 or cut.max() <= weights[kept].min() * (1 + 1e-6), "none that is cut is heavier"


def test_options_are_brought_to_tuples() -> None:
    made = options(stop="end", logit_bias={3: 1, 4: -math.inf})
    assert made.stop == ("end",)
    assert made.logit_bias == ((3, 1), (4, -math.inf))
    assert options(stop=["a", "b"]).stop == ("a", "b")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens: expected a whole number of at least 1, found 0"),
    ({"max_tokens": 2.0}, "found 2.0"),
    ({"max_tokens": True}, "found True"),
    ({"temperature": -0.1}, "temperature: expected a number of at least 0, found -0.1"),
    ({"temperature": math.nan}, "temperature"),
    ({"temperature": "hot"}, "found 'hot'"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 1.5}, "top_p: expected a number of at least 0 and at most 1"),
    ({"min_p": -1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty: expected a number of more than 0"),
    ({"repetition_penalty": math.inf}, "repetition_penalty"),
    ({"presence_penalty": math.inf}, "presence_penalty: expected a number, found inf"),
    ({"seed": -5}, "seed"),
    ({"stop": ("a", "")}, "stop: expected strings"),
    ({"stop": 5}, "expected stop as strings"),
    ({"stop": (b"x",)}, "stop: expected strings"),
    ({"logit_bias": (1, 2)}, "pairs of token id and number"),
    ({"logit_bias": {"a": 1.0}}, "logit_bias: token id"),
    ({"logit_bias": {1: math.nan}}, "logit_bias of token 1"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"top_k": -1, "top_p": 2}, "top_k.*; top_p"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=str)
def test_bad_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options(**values)


def test_a_bias_outside_the_vocabulary() -> None:
    with pytest.raises(UsageError, match="token id 10 is outside the vocabulary of 10"):
        Sampler(options(logit_bias={10: 1.0}), 10)


@pytest.mark.parametrize("left", [1, 3, 19, 20, 21, 4000])
@pytest.mark.parametrize("size", [1000, 20_000])
def test_top_k_where_a_guide_left_few(left: int, size: int) -> None:
    values = np.full(size, -np.inf, np.float32)
    ids = np.sort(np.random.default_rng(left).choice(size, min(left, size), replace=False))
    values[ids] = logits(size)[ids]
    want = np.flatnonzero((values >= np.sort(values)[-20]) & (values > -np.inf))
    np.testing.assert_array_equal(top_k_ids(values, 20), want)


class _Allowing:
    """A guide that leaves the first tokens."""

    def __init__(self, count: int) -> None:
        self._count = count

    def forced(self) -> None:
        return None

    def restrict(self, scores: NDArray[np.float32]) -> None:
        scores[self._count :] = -np.inf

    def accept(self, token: int) -> None:
        assert token < self._count


@pytest.mark.parametrize("left", [None, 1, 12, 3000])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.95, "min_p": 0.05, "presence_penalty": 1.0, "repetition_penalty": 1.1},
    ],
    ids=str,
)
def test_a_token_of_a_large_vocabulary(values: dict[str, Any], left: int | None) -> None:
    guide = None if left is None else _Allowing(left)
    sampler = Sampler(options(seed=0, **values), QWEN_VOCAB, range(4000), guide)
    for seed in range(3):
        assert 0 <= sampler.choose(logits(QWEN_VOCAB, seed=seed)) < (left or QWEN_VOCAB)
