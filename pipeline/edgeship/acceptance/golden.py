"""Golden continuations: what a float32 pass over the artifact's own weights answers, a device's kernels must."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgeship.acceptance.chats import Prompt
from edgeship.acceptance.files import SCHEMA, write_file
from edgeship.archs.base import Decoder
from edgeship.errors import CheckpointError
from edgeship.reference.forward import Pass, Top, top_logits
from edgeship.reference.weights import Floats, Weights
from edgeship_runtime.acceptance import GOLDEN

LAST_POSITIONS = 8  # of each prompt, whose logits are kept
TOP = 5  # logits kept at each position
SAMPLE = 48  # positions at most where the float model is asked, too: some 6 KB of the artifact

# Passes over all weights cost CPU time that grows with the model; each gives every prompt one more token. At 2.5e9
# weights the golden cases of 0.5B take about 2 CPU seconds and those of 1.5B about 4, a part of their whole export.
WORK_WEIGHTS = 2.5e9
FEWEST_TOKENS, MOST_TOKENS = 2, 24
LARGE_MODEL = 100_000_000  # weights from which only the first prompts are continued
LARGE_MODEL_PROMPTS = 4

# A token may part from the golden one where the two logits are closer than this share of the logits' standard
# deviation. Quantized: onnxruntime's kernels (MatMulNBits, accuracy_level 4) round activations to int8. Measured on x86
# with 28 layers of Qwen2.5-1.5B's shape, a logit is off by 0.04 to 0.05 of that deviation, so the difference of two by
# 0.07, and 0.3 is about four of those. Float: only the order of summation differs, errors are below 1e-4.
TIE_TOLERANCE_QUANTIZED = 0.3
TIE_TOLERANCE_FLOAT = 0.001

Place = tuple[int, int]
"""A position of the golden test: a case's number, and a token's index in its prompt and continuation."""


class Sample:
    """All logits of the artifact's weights at evenly spread places, SAMPLE at most: held against the float model's."""

    def __init__(self, total: int) -> None:
        """`total`: places that there will be, at most."""
        self.logits: dict[Place, Floats] = {}  # [V] each
        self._step, self._seen = max(1, -(-total // SAMPLE)), 0

    def choose(self, count: int) -> list[int]:
        """Which of the next `count` places belong to it."""
        first, self._seen = self._seen, self._seen + count
        return [i for i in range(count) if (first + i) % self._step == 0]


@dataclass
class _Case:
    """One prompt on its way: tokens chosen so far, and what the logits were at each position kept."""

    prompt: Prompt
    continuation: list[int] = field(default_factory=list)
    positions: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False


def write_golden(
    directory: Path,
    decoder: Decoder,
    weights: Weights,
    prompts: Sequence[Prompt],
    *,
    stop: Collection[int],
    context: int,
    tie_tolerance: float,
    threads: int | None = None,
) -> Mapping[Place, Floats]:
    """Write `acceptance/golden.json`: greedy continuations and top logits of a float32 pass over `weights`.

    Of `prompts` those are taken that fit into `context` positions with their continuation, and few of a large model's;
    a token of `stop` ends one. Returns all logits `[V]` at SAMPLE of the places at most. Raises CheckpointError where
    the model answers with no numbers.
    """
    size = sum(prod(role.shape) for role in decoder.roles())
    tokens = golden_tokens(size)
    fitting = [p for p in prompts if len(p.ids) + tokens <= context]
    cases = [_Case(p) for p in (fitting[:LARGE_MODEL_PROMPTS] if size >= LARGE_MODEL else fitting)]
    sample = Sample(sum(places_of(len(case.prompt.ids), tokens) for case in cases))
    with Pass(decoder, weights, len(cases), threads) as run:
        for step in range(tokens):
            if all(case.ended for case in cases):
                break
            _advance(run, cases, sample, first=step == 0, stop=stop)
    write_file(
        directory / GOLDEN,
        {
            "schema": SCHEMA,
            "made_with": "float32 reference pass over the dequantized weights",
            "tie_tolerance": tie_tolerance,
            "cases": [
                {
                    "name": case.prompt.name,
                    "prompt_ids": list(case.prompt.ids),
                    "continuation": case.continuation,
                    "positions": case.positions,
                }
                for case in cases
            ],
        },
    )
    return sample.logits


def places_of(prompt: int, tokens: int) -> int:
    """Positions that are kept of a prompt of so many tokens and its continuation, where no token ends it."""
    return min(LAST_POSITIONS, prompt) + tokens - 1


def golden_tokens(weights: int) -> int:
    """Tokens each golden prompt is continued by, for a model of so many weights."""
    return int(min(MOST_TOKENS, max(FEWEST_TOKENS, WORK_WEIGHTS // weights)))


def _advance(run: Pass, cases: Sequence[_Case], sample: Sample, *, first: bool, stop: Collection[int]) -> None:
    """Run every case's new tokens, keep the logits of the last ones, and choose each case's next token."""
    new = [list(c.prompt.ids) if first else [] if c.ended else c.continuation[-1:] for c in cases]
    kept = [min(LAST_POSITIONS, len(tokens)) for tokens in new]
    hidden = run.extend(new)
    ends = np.cumsum([len(tokens) for tokens in new])
    rows = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, kept, strict=True)])
    whole = sample.choose(len(rows))
    top = top_logits(run, hidden[rows], TOP, whole)
    if not np.isfinite(top.std).all():
        raise CheckpointError(
            "expected finite logits from the model, found NaN or infinity. The artifact would answer with garbage.",
            hint="the checkpoint is damaged, or its config.json belongs to another model",
        )
    places = [
        (number, len(case.prompt.ids) + len(case.continuation) - count + i)
        for number, (case, count) in enumerate(zip(cases, kept, strict=True))
        for i in range(count)
    ]
    for row, (number, index) in enumerate(places):
        cases[number].positions.append(_position(index, top, row))
    for row, logits in zip(whole, top.whole.T, strict=True):
        sample.logits[places[row]] = np.ascontiguousarray(logits)
    for case, count, end in zip(cases, kept, np.cumsum(kept), strict=True):
        if count:
            case.continuation.append(int(top.ids[end - 1, 0]))
            case.ended = case.continuation[-1] in stop


def _position(index: int, top: Top, row: int) -> dict[str, Any]:
    return {
        "index": index,
        "top_ids": top.ids[row].tolist(),
        "top_logits": [round(float(v), 4) for v in top.values[row]],
        "std": round(float(top.std[row]), 4),
    }
