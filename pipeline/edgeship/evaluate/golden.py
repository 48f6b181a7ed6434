"""The float model's predictions beside the golden test, so that a device can say how far it is from *that* model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Decoder
from edgeship.evaluate.measures import log_probabilities
from edgeship.reference.forward import Pass
from edgeship.reference.weights import Weights
from edgeship_runtime.acceptance import FIDELITY, GOLDEN, Position, divergence

SCHEMA = 1
TOP = 8  # tokens kept at a position: of a trained model's probability they hold 90 % and more
POSITIONS = 48  # some 6 KB

# What the engine may differ by is what these weights differ by here, and its kernels': those round activations to 8
# bits. That moves a logit by 0.05 of the logits' deviation (see acceptance.py); at a deviation of 3, a usual one, the
# KL divergence of such noise is half its variance, 0.01 nats, and boards differ by as much again.
BUDGET_FACTOR, BUDGET_KERNELS = 1.5, 0.03


Predict = Callable[[Sequence[Sequence[int]], Sequence[tuple[int, int]]], Sequence[NDArray[np.float32]]]
"""Logits `[V]` of an artifact that is run, for texts of token ids, at places: a text's number and an index in it."""


def write_fidelity(directory: Path, decoder: Decoder, floats: Weights, stored: Weights | Predict) -> Path:
    """Write `acceptance/fidelity.json` for the golden cases in `directory`: the float model's likeliest tokens there.

    The budget in it follows from what the numpy pass over `stored`, the artifact's own weights, differs by, or the
    artifact itself where it is run.
    """
    cases = [
        case
        for case in json.loads((directory / GOLDEN).read_text(encoding="utf-8"))["cases"]
        if case["positions"]  # a case may have ended at once
    ]
    chosen = _choose([[p["index"] for p in case["positions"]] for case in cases])
    tokens = [case["prompt_ids"] + case["continuation"] for case in cases]
    places: list[Position] = []
    divergences: list[float] = []
    found = stored(tokens, chosen) if callable(stored) else _logits(decoder, stored, tokens, chosen)
    rows = zip(_logits(decoder, floats, tokens, chosen), found, strict=True)
    for (_, index), (ours, theirs) in zip(chosen, rows, strict=True):
        place = _place(index, ours)
        places.append(place)
        divergences.append(divergence(place, theirs))
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
                "positions": [asdict(p) for (owner, _), p in zip(chosen, places, strict=True) if owner == i],
            }
            for i, case in enumerate(cases)
        ],
    }
    file = directory / FIDELITY
    file.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    return file


def _choose(indices: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Case and index of POSITIONS places at most, evenly spread, in order."""
    every = [(case, index) for case, each in enumerate(indices) for index in each]
    keep = np.unique(np.linspace(0, len(every) - 1, min(POSITIONS, len(every))).round().astype(int))
    return [every[i] for i in keep]


def _logits(
    decoder: Decoder, weights: Weights, tokens: Sequence[Sequence[int]], chosen: Sequence[tuple[int, int]]
) -> list[NDArray[np.float32]]:
    """Logits `[V]` at the chosen places of texts, by one pass over the weights."""
    with Pass(decoder, weights, len(tokens)) as run:
        hidden = run.extend(tokens)
        starts = list(accumulate((len(each) for each in tokens), initial=0))
        rows = [starts[case] + index for case, index in chosen]
        return list(np.concatenate(run.logits(hidden[rows], lambda first, logits: logits)).T)


def _place(index: int, logits: NDArray[np.float32]) -> Position:
    known = log_probabilities(logits)
    best = np.lexsort((np.arange(len(known)), -known))[: min(TOP, len(known))]
    values = tuple(round(float(v), 5) for v in known[best])
    return Position(index, tuple(best.tolist()), values, round(float(logits.std()), 4))
