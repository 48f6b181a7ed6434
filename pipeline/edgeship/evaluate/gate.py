"""What a recipe accepts: an export that lost more than that is not sealed, or is repaired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgeship.errors import FidelityError, RecipeError, UsageError
from edgeship.evaluate.measures import Fidelity
from edgeship.evaluate.sources import PassLogits, compare
from edgeship.evaluate.windows import Windows, read_windows
from edgeship.evaluate.worst import GAIN_TOKENS, Raise, choose, rank
from edgeship.plan import Plan
from edgeship.progress import Progress
from edgeship.recipe import Accept
from edgeship.reference.weights import Weights
from edgeship.sizes import format_size

WINDOW = 256
AIM = 0.85  # of what may be lost: gains add up only roughly, and another round costs another export
SHOWN = 5


@dataclass(frozen=True)
class Gate:
    """A recipe's limits and the text they hold for, read before the export begins."""

    accept: Accept
    windows: Windows

    def record(self, fidelity: Fidelity) -> Mapping[str, Any]:
        """What the manifest keeps of a measurement."""
        name = Path(self.accept.text).name if self.accept.text else self.windows.source
        where = {"text": name, "sha256": self.windows.sha256, "window": self.windows.length}
        return fidelity.to_json() | where


def open_gate(accept: Accept, tokenizer: Tokenizer, checkpoint: Path, context: int) -> Gate | None:
    """The gate of a recipe, None where it sets no limit. Raises RecipeError where its text cannot be used."""
    if not accept.fidelity:
        return None
    text = Path(accept.text) if accept.text else None
    try:
        return Gate(accept, read_windows(tokenizer, text, accept.tokens, min(WINDOW, context), checkpoint))
    except UsageError as error:
        raise RecipeError(
            f"accept.text: {error.message}", hint="give a longer text of UTF-8 as accept.text, or more of accept.tokens"
        ) from None


def measure(gate: Gate, plan: Plan, floats: Weights, stored: Weights, progress: Progress) -> Fidelity:
    """What the stored weights lost, by the float32 pass over both; raises FidelityError where that is too much.

    The error carries what a repair would raise.
    """
    size, windows = plan.parameters * 4, gate.windows
    tokens = windows.ids.size
    progress.start(2 * size, f"fidelity: {tokens} tokens")

    def tell(done: int) -> None:
        progress.advance(size * done // tokens, "fidelity")

    with PassLogits(plan.decoder, floats, windows, tell) as ours, PassLogits(plan.decoder, stored, windows, tell) as it:
        found = compare(ours, it, windows, plan.decoder.vocab_size)
    progress.finish()
    progress.note(f"fidelity: mean KL divergence {found.kl_mean:.5f}, top-1 agreement {100 * found.top1:.1f} %")
    problems = _problems(gate.accept, found)
    if problems:
        ranked = rank(plan, floats, stored, windows, found.kl_mean, progress.note)
        raise _refusal(plan, gate.accept, found, problems, ranked)
    return found


def _problems(accept: Accept, found: Fidelity) -> list[str]:
    out = []
    if accept.kl_mean is not None and found.kl_mean > accept.kl_mean:
        out.append(f"expected a mean KL divergence of at most {accept.kl_mean:g}, found {found.kl_mean:.5f}")
    if accept.top1 is not None and found.top1 < accept.top1:
        out.append(f"expected a top-1 agreement of at least {accept.top1:g}, found {found.top1:.4f}")
    return out


def _refusal(plan: Plan, accept: Accept, found: Fidelity, problems: list[str], ranked: list[Raise]) -> FidelityError:
    chosen = choose(ranked, found.kl_mean - AIM * _allowed(accept, found)) if ranked else []
    lines = [f"  - {_told(each)}" for each in ranked[:SHOWN]]
    listed = (
        f"\nWhat raising tensors to 8 bits costs in {plan.formats[0]} and gains, as {GAIN_TOKENS} tokens tell, the "
        "most for its bytes first:\n" + "\n".join(lines)
        if lines
        else ""
    )
    if not chosen:
        hint = "nothing below 8 bits is left to raise: choose float16 for a part, or allow more"
    elif plan.recipe.scheme.mixed is not None:
        hint = "raise the budget of scheme.mixed, or allow more"
    else:
        cost = format_size(sum(each.nbytes for each in chosen))
        count = sum(len(each.keys) for each in chosen)
        hint = (
            f"accept.repair: true raises {count} tensors first, for about {cost} more, then more until accepted; "
            "or choose larger types, or allow more"
        )
    return FidelityError(
        f"{plan.recipe.name}: {'; '.join(problems)}. The artifact was not sealed.{listed}",
        hint=hint,
        raises={key: each.encoding for each in chosen for key in each.keys},
    )


def _told(each: Raise) -> str:
    more = f" and {len(each.names) - 1} more" if len(each.names) > 1 else ""
    about = "" if each.measured else "about "
    return f"{each.names[0]}{more}: {format_size(each.nbytes)} more, KL divergence {about}{each.gain:.5f} less"


def _allowed(accept: Accept, found: Fidelity) -> float:
    """The mean KL divergence that meets every limit: tokens that flip grow with the noise, and it with its square."""
    limits = [found.kl_mean]
    if accept.kl_mean is not None:
        limits.append(accept.kl_mean)
    if accept.top1 is not None and found.top1 < 1:
        limits.append(found.kl_mean * ((1 - accept.top1) / (1 - found.top1)) ** 2)
    return min(limits)
