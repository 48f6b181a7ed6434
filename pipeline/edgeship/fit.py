"""Whether an artifact fits a device, and why: memory against what may be taken, the context that would fit, speed.

All of it is computed from a plan, a profile and what was measured; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from edgeship.device import Device, EngineName
from edgeship.footprint import Memory, footprint, passing_bytes
from edgeship.measured import Measured, Measurements
from edgeship.plan import Plan
from edgeship.recipe import Format
from edgeship.sizes import format_size
from edgeship.speed import ENGINE_OF, Speed, speed

Verdict = Literal["fits", "slow", "less context", "too big", "no engine", "not exported"]

ORDER: tuple[Verdict, ...] = ("fits", "slow", "less context", "too big", "no engine", "not exported")
"""From the best to the worst."""

USABLE: frozenset[Verdict] = frozenset({"fits", "slow", "less context"})

LEAST_CONTEXT = 512
"""Tokens of context below which an artifact is called too big, unless its recipe asks for fewer still."""

CONTEXT_STEP = 64

ENGINE_WORDS: dict[EngineName, str] = {"ort": "onnxruntime", "llamacpp": "llama.cpp"}


@dataclass(frozen=True)
class FormatFit:
    """One format of an artifact on a device; sizes in bytes."""

    form: Format
    engine: EngineName
    verdict: Verdict
    reason: str
    memory: Memory  # with the KV cache of the recipe's context
    passing: int  # on top of it in the process's peak: pages of the file, which the system can take back
    context: int  # the longest that fits, at most what the artifact can do; 0 where not even the weights do
    speed: Speed
    measured: Measured | None = None

    @property
    def decode(self) -> float:
        """Tokens per second: measured, or the middle of the estimate."""
        return self.measured.decode if self.measured else self.speed.decode.middle

    @property
    def errors(self) -> dict[str, float]:
        """How far the middle of each estimate is from what was measured: 0.1 is ten per cent too high."""
        if self.measured is None:
            return {}
        pairs = [
            ("prefill", self.speed.prefill.middle, self.measured.prefill),
            ("decode", self.speed.decode.middle, self.measured.decode),
        ]
        return {name: estimate / measured - 1 for name, estimate, measured in pairs}

    @property
    def usable(self) -> bool:
        return self.verdict in USABLE

    def to_json(self) -> dict[str, Any]:
        """The fit as JSON values; sizes in bytes, bands as low and high."""
        return {
            "engine": self.engine,
            "verdict": self.verdict,
            "reason": self.reason,
            "ram_bytes": asdict(self.memory) | {"total": self.memory.total, "peak": self.memory.total + self.passing},
            "largest_context": self.context,
            "prefill_tokens_per_s": self.speed.prefill.to_json(),
            "decode_tokens_per_s": self.speed.decode.to_json(),
            "load_s": self.speed.load.to_json(),
            "bytes_per_token": self.speed.bytes_per_token,
            "kernels": self.speed.kernels,
            "measured": self.measured and self.measured.to_json() | {"estimate_errors": self.errors},
        }


@dataclass(frozen=True)
class Fit:
    """A plan on a device: each format, and the one to prefer."""

    plan: Plan
    device: Device
    formats: tuple[FormatFit, ...]  # the preferred first

    @property
    def best(self) -> FormatFit | None:
        """The format to prefer; None where the recipe makes none that could be stored."""
        return self.formats[0] if self.formats else None

    @property
    def verdict(self) -> Verdict:
        return self.best.verdict if self.best else "not exported"

    @property
    def usable(self) -> bool:
        return self.verdict in USABLE

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the best fit first: by verdict, then by expected decoding speed."""
        return ORDER.index(self.verdict), -(self.best.decode if self.best else 0.0)

    @cached_property
    def advice(self) -> tuple[str, ...]:
        """Which format and encoding to prefer, with the reason."""
        if self.best is None:
            return ("the recipe cannot be exported: see its conflicts",)
        return (*_format_advice(self.best, self.formats, self.device), *_encoding_advice(self.plan, self.device))

    def to_json(self) -> dict[str, Any]:
        """The fit as JSON values."""
        return {
            "device": self.device.name,
            "verdict": self.verdict,
            "format": self.best.form if self.best else None,
            "ram_budget_bytes": self.device.budget_bytes,
            "advice": list(self.advice),
            "formats": {f.form: f.to_json() for f in self.formats},
        }


def fit(plan: Plan, device: Device, measurements: Measurements | None = None) -> Fit:
    """How the artifact of a plan does on a device, in every format that the plan can store.

    What was measured of that artifact on that device takes the place of the estimates.
    """
    found = measurements or {}
    key = (device.name, plan.recipe.name)
    made = [_format_fit(plan, form, device, found.get((*key, form))) for form in plan.footprints]
    preference = {engine: i for i, engine in enumerate(device.engines)}
    made.sort(key=lambda f: (ORDER.index(f.verdict), preference.get(f.engine, len(preference))))
    return Fit(plan, device, tuple(made))


def _format_fit(plan: Plan, form: Format, device: Device, measured: Measured | None) -> FormatFit:
    memory = footprint(plan, form, device.isa).memory  # with llama.cpp's copies as that processor takes them
    expected = speed(plan, form, device)
    fixed = memory.total - memory.kv_total
    longest = plan.decoder.max_positions if form == "gguf" else plan.rope_positions
    room = max(0, device.budget_bytes - fixed) // memory.kv_per_token
    context = min(longest, room if room < CONTEXT_STEP else room // CONTEXT_STEP * CONTEXT_STEP)
    engine, wanted, slowest = ENGINE_OF[form], plan.recipe.context, device.budgets.min_decode
    allowed = f"{format_size(device.budget_bytes)} may be taken"
    verdict: Verdict = "fits"
    reason = f"{format_size(memory.total)} needed, {allowed}"
    if engine not in device.engines:
        verdict, reason = "no engine", f"{ENGINE_WORDS[engine]} does not run there"
    elif memory.total > device.budget_bytes:
        enough = context >= min(LEAST_CONTEXT, wanted)
        verdict = "less context" if enough else "too big"
        instead = f"a context of {context} would fit" if enough else "no useful context would fit"
        reason = f"{reason}; {instead}"
    elif slowest is not None and (measured.decode if measured else expected.decode.middle) < slowest:
        verdict = "slow"
        was = f"was measured at {measured.decode:.1f} tokens/s, below" if measured else "is likely below"
        reason = f"{reason}; decoding {was} the {slowest:g} wanted there"
    passing = passing_bytes(plan, form, device.isa)
    return FormatFit(form, engine, verdict, reason, memory, passing, context, expected, measured)


def _format_advice(best: FormatFit, all_fits: Sequence[FormatFit], device: Device) -> list[str]:
    others = [f for f in all_fits if f is not best]
    named = f"{best.form} ({ENGINE_WORDS[best.engine]})"
    if not best.usable:
        return [f"none of its formats can be used there: {best.reason}"]
    first = device.engines[0]
    if best.engine != first:
        missed = next((f for f in others if f.engine == first), None)
        why = f"{missed.form}: {missed.reason}" if missed else f"the recipe makes nothing for {ENGINE_WORDS[first]}"
        return [f"prefer {named}; {why}"]
    return [f"prefer {named}: {device.engines_reason}"]


def _encoding_advice(plan: Plan, device: Device) -> list[str]:
    scheme = plan.recipe.scheme
    name = scheme.mix or (scheme.mixed.types[0] if scheme.mixed else scheme.body)
    if name == device.encodings[0]:
        return []
    known = "" if name in device.encodings else f"; {name} is not among those known to run well"
    return [f"of the encodings prefer {device.encodings[0]} there{known}"]
