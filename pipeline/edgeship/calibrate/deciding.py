"""What calibration text decides before the first weight is written: importance for ggml's types, and mixed types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship import mixing
from edgeship.calibrate.sensitivity import Probe
from edgeship.calibrate.statistics import Moments, statistics
from edgeship.calibrate.text import Tokens
from edgeship.calibration_stages import by_ggml, decides
from edgeship.encodings import encoding_of
from edgeship.plan import Plan
from edgeship.progress import Progress
from edgeship.reference.weights import EMBED, HEAD, Weights

ENTRY = 1 << 10  # bytes of the statistics of a tensor beside their values


@dataclass(frozen=True)
class Decided:
    """What was found out, by role key."""

    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # mean squares of the input `[columns]`
    chosen: Mapping[str, str] = field(default_factory=dict)  # encodings of a mixed scheme, by name


def may_need_ggml(plan: Plan) -> bool:
    """Whether ggml's quantizer may be called for a tensor, whatever is decided."""
    scheme = plan.recipe.scheme
    types = [encoding_of(name, scheme.group_size) for name in (scheme.mixed.types if scheme.mixed else ())]
    return any(e.quantized and not e.on_grid for e in types) or (decides(plan) and scheme.mix is not None)


def decide(plan: Plan, weights: Weights, tokens: Tokens, directory: Path, digest: str, progress: Progress) -> Decided:
    """The importance of inputs, and the types of a mixed scheme; an interrupted run goes on in `directory`.

    `digest` names the weights. What is on the shared grid gets no importance: its algorithm has its own.
    """
    decoder, choices = plan.decoder, plan.recipe.scheme.mixed
    found = statistics(decoder, weights, tokens, progress=progress, directory=directory, digest=digest)
    moments = {key: _seen(each.second_moments) for key, each in found.items()}
    if plan.shared_head:  # the table multiplies what the head does
        moments[EMBED] = moments[HEAD]
    importance = {key: each.astype(np.float32) for key, each in moments.items()}
    if choices is None:
        return Decided({key: importance[key] for key in by_ggml(plan) if key in importance})
    types = mixing.types_of(choices, decoder, plan.recipe.scheme.group_size)
    shown = _first(tokens, choices.tokens)
    nearest = plan.recipe.scheme.algorithm == "rtn"
    measured = Probe(decoder, weights, shown, types, moments, progress, directory, digest, nearest).run()
    chosen = mixing.choose(plan, measured)
    on_grid = {e.name for kinds in types.values() for e in kinds if e.on_grid}
    return Decided({k: v for k, v in importance.items() if chosen.get(k) not in on_grid}, chosen)


def store_bytes(plan: Plan) -> int:
    """Bytes on the disk that what is kept for another run takes at most."""
    section, d = plan.recipe.calibration, plan.decoder
    if section is None or not decides(plan):
        return 0
    states = 4 * section.tokens * d.hidden_size  # behind a block, until those behind the next are there
    return 2 * states + sum(8 * role.shape[-1] + ENTRY for role in d.roles() if role.part == "body")


def _seen(moments: Moments) -> Moments:
    """Mean squares that weigh errors: an input that is always zero would erase its weight, so all count alike there."""
    return moments if moments.any() else np.ones_like(moments)


def _first(tokens: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The first sequences, `count` tokens in all, the last one cut."""
    out, left = list[list[int]](), count
    for each in tokens:
        if left > 0:
            out.append(list(each[:left]))
            left -= len(each)
    return out
