"""What the commands say about devices: `devices`, `recipes --device` and `plan --device`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeship import catalog
from edgeship.device import LOCAL, Device
from edgeship.errors import DeviceError
from edgeship.fit import ENGINE_WORDS, Fit, FormatFit, fit
from edgeship.measured import REPORTS, Measurements, read_measured
from edgeship.plan import Plan, read_plan
from edgeship.show import Table
from edgeship.sizes import format_size
from edgeship.speed import CACHED_TOKENS, Band

NOTE = (
    f"Speeds are estimates unless measured, {CACHED_TOKENS} tokens into a conversation, from the profile's bandwidth "
    "and cores; `edgeship devices --json` says where its numbers come from."
)


def all_devices() -> list[Device]:
    """The devices of the catalogue, and this machine where it can be detected."""
    devices = [catalog.find_device(name) for name in catalog.device_names()]
    try:
        return [*devices, catalog.find_device(LOCAL)]
    except DeviceError:
        return devices


def measured(reports: Path) -> Measurements:
    """What was measured, by the reports under a directory; says on standard error which files are none."""
    found, wrong = read_measured(reports)
    for each in wrong:
        print(f"left out: {each}", file=sys.stderr)
    return found


def fits_on(plan: Plan, devices: Sequence[Device], reports: Path) -> list[Fit]:
    """The fits of a plan, in the order of the devices."""
    found = measured(reports)
    return [fit(plan, device, found) for device in devices]


def fit_blocks(fits: Sequence[Fit]) -> list[Table | str]:
    """A table and advice for each device; nothing for none."""
    blocks: list[Table | str] = []
    for made in fits:
        blocks += [_fit_table(made), "\n".join([made.device.description, *made.advice])]
    return [*blocks, NOTE] if fits else []


def ranked_devices(plan: Plan, devices: Sequence[Device], reports: Path) -> list[Fit]:
    """The fits of a plan, the best first."""
    return sorted(fits_on(plan, devices, reports), key=lambda f: f.rank)


def device_blocks(devices: Sequence[Device], ranked: Sequence[Fit] | None) -> list[Table | str]:
    """The devices; or, where there are fits, these."""
    if ranked is not None:
        return [_ranking("device", [(f.device.name, f) for f in ranked]), NOTE]
    rows = [
        (
            d.name,
            " + ".join(f"{c.count} {c.kind}" for c in d.cores),
            " ".join(d.isa) or "–",
            format_size(d.ram_bytes),
            format_size(d.budget_bytes),
            f"{d.bandwidth_gbps:g}",
            ENGINE_WORDS[d.engines[0]],
        )
        for d in devices
    ]
    headers = ("name", "cores", "features", ">RAM", ">for an artifact", ">GB/s", "engine")
    return [Table("", headers, rows)]


def devices_json(devices: Sequence[Device], ranked: Sequence[Fit] | None) -> dict[str, Any]:
    """The profiles; or, where there are fits, these."""
    if ranked is None:
        return {"devices": [d.to_json() | {"ram_budget_bytes": d.budget_bytes} for d in devices]}
    return {"recipe": ranked[0].plan.recipe.name, "devices": [f.to_json() for f in ranked]}


def ranked_recipes(device: Device, reports: Path = REPORTS) -> list[Fit]:
    """Every recipe of the catalogue on a device: what fits first, and of that the largest model first."""
    found = measured(reports)
    fits = [fit(read_plan(catalog.find(name)), device, found) for name in catalog.names()]
    return sorted(fits, key=lambda f: (f.rank[0], -f.plan.parameters, f.rank[1]))


def recipe_blocks(ranked: Sequence[Fit]) -> list[Table | str]:
    """The catalogue ranked for a device."""
    return [_ranking("recipe", [(f.plan.recipe.name, f) for f in ranked]), NOTE]


def recipes_json(ranked: Sequence[Fit]) -> dict[str, Any]:
    """The catalogue ranked for a device."""
    recipes = [{"recipe": f.plan.recipe.name} | f.to_json() for f in ranked]
    return {"device": ranked[0].device.name, "recipes": recipes}


def _ranking(what: str, fits: Sequence[tuple[str, Fit]]) -> Table:
    rows = []
    for name, made in fits:
        best = made.best
        if best is None:
            rows.append((name, made.verdict, *["–"] * 6))
            continue
        cells = (best.form, format_size(best.memory.total), format_size(made.device.budget_bytes), str(best.context))
        rows.append((name, made.verdict, *cells, *_speeds(best)))
    headers = (what, "verdict", "format", ">RAM", ">of", ">context", ">prefill tok/s", ">decode tok/s")
    return Table("", headers, rows)


def _fit_table(made: Fit) -> Table:
    device, fits = made.device, made.formats
    title = f"{device.name}: {made.verdict}" + (f" as {made.best.form}" if made.best and made.usable else "")

    def row(name: str, cells: Sequence[str]) -> tuple[str, ...]:
        return (name, *cells)

    parts = (("weights, mapped", "weights"), ("weights, repacked", "repacked"), ("KV cache", "kv_total"))
    rows = [row("verdict", [f.verdict for f in fits])]
    rows += [row(name, [format_size(getattr(f.memory, key)) for f in fits]) for name, key in parts]
    rows += [
        row("runtime, tokenizer", [format_size(f.memory.runtime) for f in fits]),
        row(f"all, at context {made.plan.recipe.context}", [format_size(f.memory.total) for f in fits]),
        row("peak, with pages given back", [format_size(f.memory.total + f.passing) for f in fits]),
        row("may be taken", [format_size(device.budget_bytes)] * len(fits)),
        row("largest context", [str(f.context) for f in fits]),
        row("prefill, tok/s", [_speeds(f)[0] for f in fits]),
        row("decode, tok/s", [_speeds(f)[1] for f in fits]),
        row("load, s", [f"{f.measured.load:.1f} measured" if f.measured else _band(f.speed.load) for f in fits]),
    ]
    if any(f.measured for f in fits):
        rows.append(row("estimates were", [_errors(f) for f in fits]))
    headers = ("RAM of " + format_size(device.ram_bytes), *(f">{_column(f)}" for f in fits))
    os_words = f"the system holds {format_size(device.os_bytes)}"
    share = f"an artifact may take {device.budgets.ram_share:.0%} of the rest"
    return Table(f"{title} ({os_words}, {share})", headers, rows) if fits else Table(title, (), [("formats", "none")])


def _speeds(made: FormatFit) -> tuple[str, str]:
    if made.measured:
        return f"{_round(made.measured.prefill)} measured", f"{_round(made.measured.decode)} measured"
    return _band(made.speed.prefill), _band(made.speed.decode)


def _errors(made: FormatFit) -> str:
    """By how much the estimates' middles missed; empty where nothing was measured."""
    return ", ".join(f"{name} {error:+.0%}" for name, error in made.errors.items())


def _column(made: FormatFit) -> str:
    return f"{made.form}, {ENGINE_WORDS[made.engine]}"


def _band(band: Band) -> str:
    return f"{_round(band.low)} to {_round(band.high)}"


def _round(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
