"""The verdict of a validation: what the board measured, against the device's budgets and the artifact's limits."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from edgeship.device import Device
from edgeship.errors import HostError
from edgeship.ship.report import Agreement, Check, Sample, line
from edgeship.ship.sensors import read_sensors
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.manifest import Manifest
from edgeship_runtime.strict import Fields, parse_json

MAX_ANSWER = 1 << 20  # bytes of a JSON answer from the board
_BIG = 1e9
_SUSTAINED = 2  # samples in a quarter of a run that is called sustained
_SHOWN = 10  # failures of a verify that are kept


def read_sample(raw: bytes, at_s: float, sensors: str) -> Sample:
    """A `bench --json` from the board, with what the sensors said after it; raises HostError."""
    try:
        top = Fields(parse_json(raw, "the bench"), "the bench", "", (), open=True)
        sensed = read_sensors(sensors)
        return Sample(
            load_s=top.number("load_s", 0, _BIG),
            ttft_s=top.number("ttft_s", 0, _BIG),
            prefill_tokens_per_s=top.number("prefill_tokens_per_s", 0, _BIG),
            decode_tokens_per_s=top.number("decode_tokens_per_s", 0, _BIG),
            peak_rss_mb=top.number("peak_rss_mb", 0, _BIG) if "peak_rss_mb" in top else None,
            prompt_tokens=top.integer("prompt_tokens", 0, 1 << 32),
            decode_tokens=top.integer("decode_tokens", 0, 1 << 32),
            threads=top.integer("threads", 0, 1 << 20),
            at_s=round(at_s, 1),
            celsius=sensed.celsius,
            mhz=sensed.mhz,
            throttled=sensed.throttled,
            watts=sensed.watts,
            power_sensor=sensed.power_sensor,
        )
    except EdgeshipRuntimeError as error:
        raise _no_report(error) from None


def read_verify(raw: bytes) -> tuple[list[Check], Agreement | None]:
    """A `verify --json` from the board as checks; raises HostError for an answer that is none."""
    try:
        top = Fields(parse_json(raw, "the verdict"), "the verdict", "", (), open=True)
        verdict = top.text("verdict", choices=("pass", "fail", "unsealed"))
        checks = [_intact(top)]
        for name in ("templates", "tokens"):
            if name in top:
                count = top.object(name, ("cases", "equal"), open=True)
                cases, equal = count.integer("cases", 0, 1 << 30), count.integer("equal", 0, 1 << 30)
                checks.append(Check(name=name, passed=equal == cases, found=f"{equal} of {cases} equal"))
        agreement = _agreement(top) if "agreement" in top else None
        told = top.object("agreement", (), open=True) if agreement else None
        failures = [line(each) for each in top.items("failures", 100_000)[:_SHOWN]] if "failures" in top else []
        if agreement and told:
            good = agreement.wrong == 0 and not _of(failures, "agreement")
            checks.append(Check(name="fidelity", passed=good, found=_fidelity(agreement, told)))
            checks += _float_model(told)
    except EdgeshipRuntimeError as error:
        raise _no_report(error) from None
    said = "; ".join(failures) or verdict
    checks.append(Check(name="verify", passed=verdict == "pass", found=line(said)))
    return checks, agreement


def _of(failures: Sequence[str], check: str) -> bool:
    return any(each.startswith(f"{check}:") for each in failures)


def _intact(top: Fields) -> Check:
    intact = top.flag("intact") if "intact" in top else None
    found = {True: "every file has its sha256", False: "files differ from what was sealed", None: "not checked"}[intact]
    return Check(name="hashes", passed=bool(intact), found=found)


def _agreement(top: Fields) -> Agreement:
    told = top.object("agreement", (), open=True)
    return Agreement(
        positions=told.integer("positions", 0, 1 << 30),
        equal=told.integer("equal", 0, 1 << 30),
        near_ties=told.integer("near_ties", 0, 1 << 30),
        wrong=told.integer("wrong", 0, 1 << 30),
        max_logit_error_std=told.number("max_logit_error_std", 0, _BIG),
    )


def _fidelity(a: Agreement, told: Fields) -> str:
    if "cosine" in told:
        cosine = told.number("cosine", -2, 2)
        return f"{a.equal} of {a.positions} texts close to the float model, cosine at least {cosine:.4f}"
    found = f"{a.equal} of {a.positions} tokens equal, {a.near_ties} near ties, {a.wrong} wrong"
    return f"{found}; largest logit error {a.max_logit_error_std:.3f} deviations"


def _float_model(told: Fields) -> list[Check]:
    """What the artifact lost against the float model, where it carries what that one says."""
    if "float_model" not in told:
        return []
    there = told.object("float_model", (), open=True)
    equal, positions = (there.integer(name, 0, 1 << 30) for name in ("equal", "positions"))
    mean, budget = (there.number(name, -1, _BIG) for name in ("kl_mean", "kl_budget"))
    found = f"KL divergence {mean:.4g}, {equal} of {positions} tokens equal"
    return [Check(name="float model", passed=mean <= budget, found=found, wanted=f"KL at most {budget:g}")]


def judge(samples: Sequence[Sample], device: Device, manifest: Manifest, emulated: str) -> list[Check]:
    """Size, speed and memory against the artifact's limits and the device's budgets."""
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    checks = [_at_most("size MB", size, manifest.budgets.size_mb, "the recipe's accept.size_mb")]
    if not samples:
        return checks
    peak = max((s.peak_rss_mb for s in samples if s.peak_rss_mb is not None), default=None)
    checks.append(_at_most("RAM MB", peak, device.budget_bytes / 1e6, f"budget of {device.name}"))
    if manifest.budgets.ram_mb is not None:
        checks.append(_at_most("RAM MB (recipe)", peak, manifest.budgets.ram_mb, "the recipe's limit"))
    held = sorted({s.throttled for s in samples} - {"", "0x0"})
    if held:
        checks.append(Check(name="throttled", passed=None, found=line(f"vcgencmd get_throttled: {', '.join(held)}")))
    checks += _power(samples)
    if not any(s.decode_tokens for s in samples):  # a model that embeds or classifies
        found = f"{median(s.prefill_tokens_per_s for s in samples):.1f}"
        return [*checks, Check(name="prefill tokens/s", passed=None, found=found, wanted="no budget")]
    decode, least = median(s.decode_tokens_per_s for s in samples), device.budgets.min_decode
    quarter = len(samples) // 4
    if quarter >= _SUSTAINED:  # a long run is judged by where it ends, not by its cool beginning
        first, decode = (
            median(s.decode_tokens_per_s for s in part) for part in (samples[:quarter], samples[-quarter:])
        )
        said = f"{decode:.2f} in the last quarter, {first:.2f} in the first"
        checks.append(Check(name="sustained tokens/s", passed=None, found=said))
    if emulated:
        found = f"{decode:.2f}, emulated ({emulated}): says nothing about the board's speed"
        return [*checks, Check(name="decode tokens/s", passed=None, found=line(found), wanted=_wanted(least, device))]
    passed = None if least is None else decode >= least
    return [*checks, Check(name="decode tokens/s", passed=passed, found=f"{decode:.2f}", wanted=_wanted(least, device))]


def _power(samples: Sequence[Sample]) -> list[Check]:
    """What was drawn, where a sensor said it: told, and judged by nobody."""
    told = [(s.watts, s.watts / s.decode_tokens_per_s) for s in samples if s.watts and s.decode_tokens_per_s]
    if not told:
        return []
    watts, joules = (median(column) for column in zip(*told, strict=True))
    whose = next(s.power_sensor for s in samples if s.watts)
    found = f"{watts:.2f} ({whose}), at that {joules:.3g} J a token decoded"
    return [Check(name="power W", passed=None, found=line(found))]


def _wanted(least: float | None, device: Device) -> str:
    return "no budget" if least is None else f"at least {least:g}, budget of {device.name}"


def _at_most(name: str, found: float | None, limit: float | None, whose: str) -> Check:
    shown = "not known" if found is None else f"{found:.1f}"
    if limit is None:
        return Check(name=name, passed=None, found=shown, wanted="no limit")
    passed = None if found is None else found <= limit
    return Check(name=name, passed=passed, found=shown, wanted=f"at most {limit:.0f}, {whose}")


def answer_error(raw: bytes) -> str:
    """The message inside a `{"error": ...}` that a command of the runtime printed; empty when it is none."""
    try:
        value: Any = parse_json(raw, "the answer")
    except EdgeshipRuntimeError:
        return ""
    error = value.get("error") if isinstance(value, dict) else None
    return line(error["message"]) if isinstance(error, dict) and isinstance(error.get("message"), str) else ""


def _no_report(error: EdgeshipRuntimeError) -> HostError:
    hint = "the board runs the bundle's own runtime; see what answers in its place, and make the bundle again"
    return HostError(f"what came back is no report: {error.message}", hint=hint)
