"""What a plan's calibration text is for, and the memory that each stage of the work on it takes at most.

The formulas count what is held at once; `tests/pipeline/test_calibrate_memory.py` measures beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeship.archs.base import Decoder, block_bytes
from edgeship.budget import Mixed
from edgeship.calibration import BATCH_TOKENS, CHOOSERS, CHUNK, HEADS, PROBE_CHUNK, PROBE_THREADS, STRIPE, Calibration
from edgeship.encodings import Encoding, encoding_of
from edgeship.errors import PlanError
from edgeship.memory import RESERVED
from edgeship.quant.gptq import PANEL
from edgeship.sizes import format_size

if TYPE_CHECKING:  # a plan says what it takes
    from edgeship.plan import Plan

ID_BYTES = 96  # of a token id in Python's lists, and in numpy's beside them


@dataclass(frozen=True)
class Stage:
    """A part of the work, as a noun, the bytes it takes at most, and what takes fewer."""

    what: str
    nbytes: int
    remedy: str


def calibrated(plan: Plan) -> dict[str, Encoding]:
    """The weights whose codes the recipe's algorithm chooses, by role key, with their encodings.

    Tables of 8 bits are not among them: rounding those to nearest costs next to nothing.
    """
    if plan.recipe.scheme.algorithm == "rtn":
        return {}
    return {
        t.role.key: t.encoding
        for t in plan.stored()
        if t.encoding.on_grid and (t.role.part == "body" or t.encoding.bits == 4)
    }


def by_ggml(plan: Plan) -> list[str]:
    """The tensors whose codes ggml chooses; all that are quantized where a mix of llama.cpp's is asked for."""
    stored = [t for t in plan.stored() if t.encoding.quantized]
    return [t.role.key for t in stored if not t.encoding.on_grid or plan.recipe.scheme.mix]


def decides(plan: Plan) -> bool:
    """Whether a plan with calibration text has anything to find out from it beside the codes of its algorithm."""
    if plan.recipe.calibration is None or plan.recipe.imatrix is not None:
        return False
    return plan.recipe.scheme.mixed is not None or any(by_ggml(plan))


def stages(plan: Plan) -> Iterator[Stage]:
    """What an export does with its calibration text; nothing without."""
    section, scheme, d = plan.recipe.calibration, plan.recipe.scheme, plan.decoder
    if section is None:
        return
    if decides(plan):
        yield from looking(section, d)
    if scheme.mixed is not None:
        what = f"measuring on {min(scheme.mixed.tokens, section.tokens)} tokens what each tensor costs"
        remedy = "measure on fewer tokens (scheme.mixed.tokens)"
        yield Stage(what, measuring_memory(section, scheme.mixed, d), remedy)
    if calibrated(plan) or (scheme.algorithm != "rtn" and _may_be_on_grid(plan)):
        what, remedy = f"{scheme.algorithm} with {section.tokens} calibration tokens", f"{FEWER}, or --algorithm rtn"
        yield from _writing(section, d)
        yield Stage(what, choosing_memory(section, d, scheme.algorithm), remedy)


def looking(section: Calibration, decoder: Decoder) -> Iterator[Stage]:
    """The stages of measuring what the inputs of each layer look like."""
    yield from _writing(section, decoder)
    what = f"importance from {section.tokens} calibration tokens"
    yield Stage(what, statistics_memory(section, decoder), FEWER)


def largest(of: Iterable[Stage]) -> Stage:
    """The stage that takes the most memory."""
    return max(of, key=lambda each: each.nbytes, default=Stage("no calibration", 0, ""))


def require_memory(of: Iterable[Stage], max_ram: int) -> None:
    """Raises PlanError where one of the stages would not stay under `max_ram` bytes."""
    most = largest(of)
    if most.nbytes > max_ram:
        needed = format_size(most.nbytes)
        raise PlanError(
            f"--max-ram: expected at least {needed} for {most.what}, found {format_size(max_ram)}.",
            hint=f"pass --max-ram {needed} or more, or none; or {most.remedy}",
        )


FEWER = "look at fewer tokens (calibration.tokens)"


def _writing(section: Calibration, decoder: Decoder) -> Iterator[Stage]:
    if section.file is None:
        what = f"calibration text of {section.tokens} tokens that the model writes"
        yield Stage(what, writing_memory(section, decoder), f"{FEWER}, or give a text of your own (calibration.text)")


def _may_be_on_grid(plan: Plan) -> bool:
    scheme = plan.recipe.scheme
    return any(encoding_of(name, scheme.group_size).on_grid for name in (scheme.mixed.types if scheme.mixed else ()))


def writing_memory(section: Calibration, decoder: Decoder) -> int:
    """Bytes that the model takes to write the text itself, most of them keys and values."""
    d = decoder
    cache = 2 * section.tokens * d.layers * d.kv_heads * d.head_dim  # once more of one layer, while it grows
    wide = 4 * section.sequences * max(d.feed_forward, d.heads * d.head_dim)
    return RESERVED + 4 * (cache + cache // d.layers + wide + 4 * CHUNK)


def statistics_memory(section: Calibration, decoder: Decoder) -> int:
    """Bytes that a pass takes which sums up the inputs of each layer: a block and the hidden states of all tokens."""
    states = 4 * section.tokens * decoder.hidden_size + ID_BYTES * section.tokens
    batch = max(BATCH_TOKENS, section.length)
    return RESERVED + block_bytes(decoder) + states + _activations(decoder, batch, section.length)


def measuring_memory(section: Calibration, choices: Mixed, decoder: Decoder) -> int:
    """Bytes that measuring sensitivity takes: hidden states for each layer of a block, some of them at work at once."""
    d, tokens = decoder, min(choices.tokens, section.tokens)
    length = min(section.length, tokens)
    active = _activations(d, min(tokens, max(BATCH_TOKENS, length)), length)
    rounded = min(PROBE_CHUNK, max(d.vocab_size, d.feed_forward, d.heads * d.head_dim) * d.hidden_size)
    logits = (2 + 3 * PROBE_THREADS) * PROBE_CHUNK
    at_work = max(PROBE_THREADS * active, PROBE_THREADS * 48 * rounded, 4 * logits)
    return RESERVED + at_work + (48 * d.hidden_size + 2 * ID_BYTES) * tokens + 5 * block_bytes(d) // 4


def choosing_memory(section: Calibration, decoder: Decoder, algorithm: str) -> int:
    """Bytes that choosing codes takes at most; measured from 1.5B to 8B: 6 to 19 % less."""
    d = decoder
    batch, wide = max(BATCH_TOKENS, section.length), max(d.feed_forward, d.hidden_size, d.heads * d.head_dim)
    states = 2 * section.tokens * (d.hidden_size + d.heads * d.head_dim) + ID_BYTES // 4 * section.tokens
    scores = HEADS * section.length**2 * d.heads // d.kv_heads
    matrix = d.hidden_size * d.feed_forward
    # Behind the widest layer: gate, up, down and its cross sums while inputs are summed, then the last two.
    summing = 4 * matrix + batch * 5 * d.feed_forward + scores + STRIPE * wide
    at_once = min(CHOOSERS * CHUNK, max(d.feed_forward, d.vocab_size, d.heads * d.head_dim) * d.hidden_size)
    choosing = 2 * matrix + 6 * PANEL * wide + 4 * at_once
    hessian = wide * wide if algorithm == "gptq" else 0
    return RESERVED + 4 * (states + hessian + max(summing, choosing))


def _activations(decoder: Decoder, batch: int, length: int) -> int:
    """Bytes that a batch of so many tokens takes in a block, in sequences of `length`: the larger of its two halves.

    Scores are those of a few keys' heads, worked out at once.
    """
    d, attention = decoder, max(decoder.hidden_size, decoder.heads * decoder.head_dim)
    widest = max(4 * d.feed_forward, 6 * attention) + 2 * d.hidden_size
    return 4 * (batch * widest + HEADS * length**2 * d.heads // d.kv_heads)
