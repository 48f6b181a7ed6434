"""The float model's predictions beside the golden test, so that a device can say how far it is from *that* model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

import numpy as np

from edgeship.acceptance.files import SCHEMA, write_file
from edgeship.acceptance.golden import Place
from edgeship.archs.base import Decoder
from edgeship.evaluate.measures import log_probabilities
from edgeship.reference.forward import Pass
from edgeship.reference.weights import Floats, Weights
from edgeship_runtime.acceptance import FIDELITY, GOLDEN, Position, divergence

TOP = 8  # tokens kept at a position: of a trained model's probability they hold 90 % and more

# What the engine may differ by is what these weights differ by here, and its kernels': those round activations to 8
# bits. That moves a logit by 0.05 of the logits' deviation (see golden.py); at a deviation of 3, a usual one, the
# KL divergence of such noise is half its variance, 0.01 nats, and boards differ by as much again.
BUDGET_FACTOR, BUDGET_KERNELS = 1.5, 0.03


def write_fidelity(directory: Path, decoder: Decoder, floats: Weights, found: Mapping[Place, Floats]) -> Path:
    """Write `acceptance/fidelity.json` for the golden cases in `directory`: the float model's likeliest tokens there.

    `found`: the artifact's own logits `[V]` at the places that are wanted, one at least. The budget in the file follows
    from what those differ by.
    """
    cases = json.loads((directory / GOLDEN).read_text(encoding="utf-8"))["cases"]
    tokens = [case["prompt_ids"] + case["continuation"] for case in cases]
    chosen = sorted(found)
    known = [
        _position(index, ours)
        for (_, index), ours in zip(chosen, _logits(decoder, floats, tokens, chosen), strict=True)
    ]
    divergences = [divergence(position, found[place]) for place, position in zip(chosen, known, strict=True)]
    budget = BUDGET_FACTOR * float(np.mean(divergences)) + BUDGET_KERNELS
    value = {
        "schema": SCHEMA,
        "made_with": "float32 pass over the checkpoint; top_logits are log probabilities",
        "tie_tolerance": 0,
        "kl_budget": round(budget, 6),
        "cases": [
            {
                "name": case["name"],
                "prompt_ids": case["prompt_ids"],
                "continuation": case["continuation"],
                "positions": [asdict(p) for (owner, _), p in zip(chosen, known, strict=True) if owner == i],
            }
            for i, case in enumerate(cases)
        ],
    }
    return write_file(directory / FIDELITY, value)


def _logits(
    decoder: Decoder, weights: Weights, tokens: Sequence[Sequence[int]], chosen: Sequence[Place]
) -> list[Floats]:
    """Logits `[V]` at the chosen places of texts, by one pass over the weights."""
    needed = [max((index + 1 for text, index in chosen if text == i), default=0) for i in range(len(tokens))]
    with Pass(decoder, weights, len(tokens)) as run:
        hidden = run.extend([each[:count] for each, count in zip(tokens, needed, strict=True)])
        starts = list(accumulate(needed, initial=0))
        rows = [starts[case] + index for case, index in chosen]
        return list(np.concatenate(run.logits(hidden[rows], lambda first, logits: logits)).T)


def _position(index: int, logits: Floats) -> Position:
    known = log_probabilities(logits)
    count = min(TOP, len(known))
    likely = np.flatnonzero(known >= np.partition(known, -count)[-count])  # more than that where some are equal
    best = likely[np.lexsort((likely, -known[likely]))][:count]
    values = tuple(round(float(v), 5) for v in known[best])
    return Position(index, tuple(best.tolist()), values, round(float(logits.std()), 4))
