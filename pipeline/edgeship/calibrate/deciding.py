"""What calibration text decides before the first weight is written: importance for ggml's types, and mixed types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship import mixing
from edgeship.calibrate.sensitivity import CHUNK, THREADS, Probe
from edgeship.calibrate.statistics import statistics
from edgeship.calibrate.text import Tokens
from edgeship.encodings import encoding_of
from edgeship.errors import PlanError
from edgeship.memory import RESERVED
from edgeship.plan import Plan
from edgeship.progress import Progress
from edgeship.reference.blocks import BATCH_TOKENS, block_bytes
from edgeship.reference.weights import EMBED, HEAD, Weights
from edgeship.sizes import format_size

ENTRY = 1 << 10  # bytes of the statistics of a tensor beside their values


@dataclass(frozen=True)
class Decided:
    """What was found out, by role key."""

    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # mean squares of the input `[columns]`
    chosen: Mapping[str, str] = field(default_factory=dict)  # encodings of a mixed scheme, by name


def wanted(plan: Plan) -> bool:
    """Whether a plan with calibration text has anything to find out from it beside the codes of its algorithm."""
    if plan.recipe.calibration is None or plan.recipe.imatrix is not None:
        return False
    return plan.recipe.scheme.mixed is not None or any(_by_ggml(plan))


def may_need_ggml(plan: Plan) -> bool:
    """Whether ggml's quantizer may be called for a tensor, whatever is decided."""
    scheme = plan.recipe.scheme
    types = [encoding_of(name, scheme.group_size) for name in (scheme.mixed.types if scheme.mixed else ())]
    return any(e.quantized and not e.on_grid for e in types) or (wanted(plan) and scheme.mix is not None)


def decide(plan: Plan, weights: Weights, tokens: Tokens, directory: Path, digest: str, progress: Progress) -> Decided:
    """The importance of inputs, and the types of a mixed scheme; an interrupted run goes on in `directory`.

    `digest` names the weights. What is on the shared grid gets no importance: its algorithm has its own.
    """
    decoder, choices = plan.decoder, plan.recipe.scheme.mixed
    found = statistics(decoder, weights, tokens, progress=progress, directory=directory, digest=digest)
    moments = {key: each.second_moments for key, each in found.items()}
    if plan.shared_head:  # the table multiplies what the head does
        moments[EMBED] = moments[HEAD]
    importance = {key: each.astype(np.float32) for key, each in moments.items() if each.any()}
    if choices is None:
        return Decided({key: importance[key] for key in _by_ggml(plan) if key in importance})
    types = mixing.types_of(choices, decoder, plan.recipe.scheme.group_size)
    shown = _first(tokens, choices.tokens)
    measured = Probe(decoder, weights, shown, types, moments, progress, directory, digest).run()
    chosen = mixing.choose(plan, measured)
    on_grid = {e.name for kinds in types.values() for e in kinds if e.on_grid}
    return Decided({k: v for k, v in importance.items() if chosen.get(k) not in on_grid}, chosen)


def needed_memory(plan: Plan) -> int:
    """Bytes that measuring sensitivity takes at most; 0 where nothing is measured."""
    d, choices = plan.decoder, plan.recipe.scheme.mixed
    if choices is None:
        return 0
    wide = max(d.feed_forward, d.heads * d.head_dim, d.hidden_size)
    scores = 2 * (plan.recipe.calibration.length if plan.recipe.calibration else BATCH_TOKENS) ** 2
    active = THREADS * (min(choices.tokens, BATCH_TOKENS) * 5 * wide + scores * d.heads // d.kv_heads + 12 * CHUNK)
    return RESERVED + 4 * (active + 10 * choices.tokens * d.hidden_size) + 5 * block_bytes(d) // 4


def require_memory(plan: Plan, max_ram: int) -> None:
    """Raises PlanError where measuring sensitivity would not stay under `max_ram` bytes."""
    needed = needed_memory(plan)
    if needed > max_ram:
        raise PlanError(
            f"--max-ram: expected at least {format_size(needed)} to measure what each tensor of the mixed scheme "
            f"costs, found {format_size(max_ram)}.",
            hint=f"pass --max-ram {format_size(needed)} or more, or measure on fewer tokens (scheme.mixed.tokens)",
        )


def store_bytes(plan: Plan) -> int:
    """Bytes on the disk that what is kept for another run takes at most."""
    section, d = plan.recipe.calibration, plan.decoder
    if section is None or not wanted(plan):
        return 0
    states = 4 * section.tokens * d.hidden_size  # behind a block, until those behind the next are there
    return 2 * states + sum(8 * role.shape[-1] + ENTRY for role in d.roles() if role.part == "body")


def _by_ggml(plan: Plan) -> list[str]:
    """The tensors whose codes ggml chooses; all that are quantized where a mix of llama.cpp's is asked for."""
    stored = [t for t in plan.stored() if t.encoding.quantized]
    return [t.role.key for t in stored if not t.encoding.on_grid or plan.recipe.scheme.mix]


def _first(tokens: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The first sequences, `count` tokens in all, the last one cut."""
    out, left = list[list[int]](), count
    for each in tokens:
        if left > 0:
            out.append(list(each[:left]))
            left -= len(each)
    return out
