"""How far one model's predictions are from another's: perplexity, KL divergence, agreement on the likeliest tokens.

Definitions of llama.cpp's perplexity tool (llama-cpp-python 0.3.36, vendor/llama.cpp/tools/perplexity/perplexity.cpp,
`perplexity` and `kl_divergence`), in float64 throughout: perplexity is exp of the mean negative log probability of the
token that follows; KL divergence is the sum of p (log p - log q) over the vocabulary, p being the float model's;
percentiles interpolate between the two nearest values. Repetition is seq-rep-n of arXiv:1908.04319.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, isfinite

import numpy as np
from numpy.typing import NDArray

from edgeship.errors import ArtifactError, CheckpointError

SOURCE = "llama.cpp, tools/perplexity/perplexity.cpp"
TOP = 5
NGRAM = 4


@dataclass(frozen=True)
class Fidelity:
    """A model beside the float model on one text; KL divergences in nats, agreements as shares of 1."""

    positions: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_error: float  # standard error of the mean
    kl_95: float
    kl_999: float
    top1: float  # positions where both have the same likeliest token
    top5: float  # of the float model's five likeliest tokens, those among the other's five

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


class Comparison:
    """Two models' logits position by position; holds five numbers of each."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float, bool, float]] = []

    def add(self, reference: NDArray[np.float32], found: NDArray[np.float32], target: int) -> None:
        """Compare the logits `[V]` of both at a position that the token `target` follows.

        Raises CheckpointError where `reference` has what is no number, ArtifactError where `found` has.
        """
        ours, theirs = log_probabilities(reference), log_probabilities(found)
        with np.errstate(invalid="ignore"):  # infinite logits are refused below
            kl = float(np.exp(ours) @ (ours - theirs))
        if not isfinite(kl) and not np.isfinite(reference).all():
            raise CheckpointError(
                "expected finite logits from the float model, found NaN or infinity. Nothing can be compared with it.",
                hint="the checkpoint is damaged, or its config.json belongs to another model",
            )
        if not isfinite(kl):
            raise ArtifactError(
                "expected finite logits from the artifact, found NaN or infinity.", hint="export the artifact again"
            )
        same = int(reference.argmax()) == int(found.argmax())
        count = min(TOP, len(ours))
        shared = len(set(_best(reference, count)) & set(_best(found, count))) / count
        self._rows.append((-float(theirs[target]), -float(ours[target]), kl, same, shared))

    def result(self) -> Fidelity:
        """The figures over all positions added; raises ValueError where there are none."""
        if not self._rows:
            raise ValueError("no positions were compared")
        loss, reference_loss, kl, same, shared = np.array(self._rows, np.float64).T
        count = len(kl)
        return Fidelity(
            positions=count,
            perplexity=_exp(loss.mean()),
            reference_perplexity=_exp(reference_loss.mean()),
            kl_mean=float(kl.mean()),
            kl_error=float(kl.std() / max(count - 1, 1) ** 0.5),
            kl_95=float(np.quantile(kl, 0.95)),
            kl_999=float(np.quantile(kl, 0.999)),
            top1=float(same.mean()),
            top5=float(shared.mean()),
        )


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithm of the softmax of logits `[..., V]`, in float64."""
    with np.errstate(invalid="ignore"):  # the caller says what infinite logits mean
        wide = logits.astype(np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def repetition(texts: Sequence[Sequence[int]], n: int = NGRAM) -> float | None:
    """The share of runs of `n` tokens that occurred before in the same text; None where every text is shorter."""
    runs = [[tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for text in texts]
    total = sum(map(len, runs))
    return 1 - sum(len(set(each)) for each in runs) / total if total else None


def _best(logits: NDArray[np.float32], count: int) -> list[int]:
    return [int(i) for i in np.argpartition(logits, len(logits) - count)[-count:]]


def _exp(x: float) -> float:
    return exp(min(float(x), 700.0))  # beyond that float64 ends, and nothing can be said of the text
