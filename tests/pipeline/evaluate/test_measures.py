"""The figures of a comparison: equal to llama.cpp's on its own logits, and to torch's KL divergence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tolerances
from edgeship.errors import ArtifactError, CheckpointError
from edgeship.evaluate.measures import Comparison, log_probabilities, repetition
from edgeship.evaluate.sources import compare
from edgeship.evaluate.windows import Windows

RECORDED = Path(__file__).parents[2] / "llamacpp" / "perplexity.npz"
PRINTED = {
    "perplexity": 438.301885, "reference_perplexity": 441.157181, "kl_mean": 0.059757, "kl_error": 0.002816,
    "kl_95": 0.115388, "kl_999": 0.152573, "top1": 0.58929,
}  # fmt: skip
"""By `llama-perplexity -m Q4_0.gguf --kl-divergence --kl-divergence-base F32.bin -c 16 -b 16` of llama-cpp-python
0.3.36, after `-m F32.gguf -f text.txt -c 16 -b 16 --chunks 16 --save-all-logits F32.bin`, for a checkpoint of
`write_checkpoint(vocab=264)` exported as float32 and as int4."""


class Recorded:
    """Log probabilities as llama.cpp saves them: 16 bits each, with a scale and a smallest value for each position."""

    def __init__(self, file: NDArray[np.float32], codes: NDArray[np.uint16]) -> None:
        self.values = file[:, :1] * codes.astype(np.float32) + file[:, 1:]

    def rows(self, a: int, b: int) -> NDArray[np.float32]:
        return self.values[a:b]


def test_equal_to_llama_perplexity_on_the_logits_it_saved() -> None:
    with np.load(RECORDED) as saved:
        windows = Windows(saved["tokens"].astype(np.int64), "recorded", "")
        sides = [Recorded(saved[f"{side}_scale"], saved[f"{side}_codes"]) for side in ("reference", "found")]
    assert windows.positions == len(sides[0].values) == 112
    found = compare(sides[0], sides[1], windows, sides[0].values.shape[1])
    assert found.positions == 112
    for name, value in PRINTED.items():
        assert getattr(found, name) == pytest.approx(value, rel=tolerances.LLAMA_PERPLEXITY), name


def test_a_position_more_or_less_would_show() -> None:
    with np.load(RECORDED) as saved:
        windows = Windows(saved["tokens"][:, :-1].astype(np.int64), "one before", "")
        sides = [Recorded(saved[f"{side}_scale"], saved[f"{side}_codes"]) for side in ("reference", "found")]
    found = compare(sides[0], sides[1], windows, sides[0].values.shape[1])
    assert found.perplexity != pytest.approx(PRINTED["perplexity"], rel=10 * tolerances.LLAMA_PERPLEXITY)


def test_equal_to_torch_in_double_precision() -> None:
    import torch
    from torch.nn import functional

    rng = np.random.default_rng(4)
    ours, theirs = (rng.standard_normal((50, 300)).astype(np.float32) * 4 for _ in range(2))
    targets = rng.integers(0, 300, 50)
    comparison = Comparison()
    for row in zip(ours, theirs, targets.tolist(), strict=True):
        comparison.add(*row)
    found = comparison.result()
    p, q = (functional.log_softmax(torch.tensor(x, dtype=torch.float64), -1) for x in (ours, theirs))
    kl = functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    loss = functional.nll_loss(q, torch.tensor(targets))
    top = [set(torch.topk(x, 5, -1).indices[i].tolist()) for i in range(50) for x in (p, q)]
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=tolerances.DOUBLE)
    assert found.kl_95 == pytest.approx(float(torch.quantile(kl, 0.95)), rel=tolerances.DOUBLE)
    assert found.perplexity == pytest.approx(float(loss.exp()), rel=tolerances.DOUBLE)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.top5 == pytest.approx(sum(len(a & b) for a, b in zip(top[::2], top[1::2], strict=True)) / 250)


def test_the_same_logits_lose_nothing() -> None:
    logits = np.random.default_rng(0).standard_normal(40).astype(np.float32)
    comparison = Comparison()
    comparison.add(logits, logits + np.float32(3), 7)  # a constant does not change probabilities
    found = comparison.result()
    assert found.kl_mean == pytest.approx(0, abs=tolerances.DOUBLE)
    assert (found.top1, found.top5) == (1, 1)
    assert found.perplexity == pytest.approx(np.exp(-log_probabilities(logits)[7]), rel=tolerances.LLAMA_PERPLEXITY)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    logits = np.zeros(10, np.float32)
    broken = logits.copy()
    broken[3] = value
    with pytest.raises(ArtifactError, match="finite logits from the artifact"):
        Comparison().add(logits, broken, 0)
    with pytest.raises(CheckpointError, match="finite logits from the float model"):
        Comparison().add(broken, logits, 0)


def test_nothing_compared_is_no_result() -> None:
    with pytest.raises(ValueError, match="no positions"):
        Comparison().result()


def test_a_text_that_no_model_expects_has_a_number_still() -> None:
    logits = np.zeros(10, np.float32)
    logits[0] = 3000
    comparison = Comparison()
    comparison.add(logits, logits, 5)
    assert np.isfinite(comparison.result().perplexity)


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        ([[1, 2, 3, 4, 5, 6]], 0.0),
        ([[7] * 7], 0.75),  # four runs, one of them new
        ([[1, 2, 3, 4, 1, 2, 3, 4]], 0.2),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 0.0),  # repeated in another text is not repeated
        ([[1, 2, 3], []], None),
    ],
)
def test_repetition(texts: list[list[int]], share: float | None) -> None:
    assert repetition(texts) == (None if share is None else pytest.approx(share))
