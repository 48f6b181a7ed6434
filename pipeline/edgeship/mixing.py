"""A mixed scheme's type for each tensor, chosen under the recipe's budget.

Before an export nothing is measured: a plan then assumes that every weight matters alike, which comes to the same size.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, prod
from typing import TYPE_CHECKING

from edgeship.archs.base import Decoder, Role
from edgeship.budget import Mixed
from edgeship.encodings import ENCODINGS, Encoding, encoding_of
from edgeship.errors import PlanError
from edgeship.footprint import PAGE
from edgeship.quant import mixed

if TYPE_CHECKING:  # a plan has its choice made here
    from edgeship.plan import Plan, PlannedTensor

LAYER = re.compile(r"layers\.(\d+)\.")


def types_of(choices: Mixed, decoder: Decoder, group_size: int) -> dict[str, list[Encoding]]:
    """The types that each tensor may be stored as, fewest bytes first, by role key; those that hold its rows.

    A table that is embedding and head in one is one tensor; of one that is looked up only nothing shows which inputs
    matter, as the coarsest types have to know. Where no type holds the rows the smallest stands alone.
    """
    encodings = [encoding_of(each, group_size) for each in choices.types]

    def fitting(role: Role) -> list[Encoding]:
        by_size = sorted(encodings, key=lambda e: (_bytes(e, role.shape), e.name))
        looked_up = role.part == "embeddings" and not decoder.tied
        holding = [e for e in by_size if e.fits(role.shape[-1]) and not (looked_up and e.needs_importance)]
        return holding or by_size[:1]

    return {role.key: fitting(role) for role in decoder.roles() if role.part != "float"}


def choose(plan: Plan, measured: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, str]:
    """The names of the encodings for each tensor of a plan with a mixed scheme, within its budget, by role key.

    `measured` is the divergence that each type is expected to cause, by key and encoding name; without it every weight
    counts alike. Sizes are those of the format that takes more bytes, so that every format keeps the budget and all
    get the same choice. Raises PlanError where even the smallest types do not fit.
    """
    choices, units = plan.recipe.scheme.mixed, dict[str, list[Role]]()
    assert choices is not None
    for role in plan.decoder.roles():
        if role.part != "float":
            units.setdefault(unit(role.key) if "onnx" in plan.formats else role.key, []).append(role)
    types, options = types_of(choices, plan.decoder, plan.recipe.scheme.group_size), dict[str, list[mixed.Option]]()
    for name, roles in units.items():
        kinds, weights = types[roles[0].key], sum(prod(role.shape) for role in roles)
        sizes = {e.name: _size(plan, e, roles) for e in kinds}
        if measured is None:
            options[name] = mixed.assumed(kinds, sizes, weights)
        else:
            losses = {e.name: sum(measured[role.key][e.name] for role in roles) for e in kinds}
            options[name] = [mixed.Option(e.name, sizes[e.name], losses[e.name]) for e in kinds]
    least = sum(min(option.nbytes for option in each) for each in options.values())
    if least > _budget(plan):
        raise _too_little(plan, least)
    chosen = mixed.choose(options, _budget(plan))
    return {role.key: chosen[name].encoding for name, roles in units.items() for role in roles}


def unit(key: str) -> str:
    """The matrix a weight is part of in ONNX, by role key: q, k and v of a layer are one there, in one encoding."""
    owner, _, last = key.rpartition(".")
    return f"{owner[:-1]}qkv.{last}" if owner.endswith((".attn.q", ".attn.k", ".attn.v")) else key


def together(tensors: Sequence[PlannedTensor]) -> Iterator[PlannedTensor]:
    """The tensors of a plan for ONNX, those of one matrix in the largest encoding that any of them has."""
    largest: dict[str, Encoding] = {}
    for t in tensors:
        name = unit(t.role.key)
        if name not in largest or t.encoding.bits > largest[name].bits:
            largest[name] = t.encoding
    for t in tensors:
        yield replace(t, encoding=largest[unit(t.role.key)])


def described(plan: Plan) -> str:
    """The choice of a plan in one line: every tensor of each type, as `attn.v of layers 0-3, 7`; the commonest rest."""
    by_type: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for t in plan.stored():
        if t.role.part != "float":
            number = LAYER.match(t.role.key)
            kind = t.role.key[number.end() if number else 0 :].removesuffix(".weight")
            by_type[t.encoding.name][kind] += [int(number[1])] if number else [-1]
    counts = {name: sum(map(len, kinds.values())) for name, kinds in by_type.items()}
    said = []
    for name in sorted(by_type, key=lambda each: counts[each]):
        listed = ", ".join(kind if -1 in of else f"{kind} of {_ranges(of)}" for kind, of in by_type[name].items())
        named = "the rest" if name == max(counts, key=lambda each: counts[each]) else listed
        said.append(f"{name} for {counts[name]} tensors ({named})")
    return "mixed: " + "; ".join(said)


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers of layers, neighbours as one range."""
    runs: list[list[int]] = []
    for each in numbers:
        if runs and runs[-1][1] == each - 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    joined = " ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"layer{'s' if len(numbers) > 1 else ''} {joined}"


def _budget(plan: Plan) -> int:
    """Bytes for the tensors that have a choice; below zero where the others take more."""
    choices = plan.recipe.scheme.mixed
    assert choices is not None
    if choices.bits_per_weight is not None:
        return int(choices.bits_per_weight * plan.parameters / 8) - _beside(plan)
    assert choices.budget_mb is not None
    return int(choices.budget_mb * 1e6) - _beside(plan)


def _beside(plan: Plan) -> int:
    """Bytes of a budget that go to what has no choice: float tensors, and a file's tables where they count."""
    units: dict[str, list[Role]] = defaultdict(list)
    for t in plan.tensors:
        if t.role.part == "float":
            units[unit(t.role.key)].append(t.role)
    floats = sum(_size(plan, ENCODINGS["float32"], roles) for roles in units.values())
    if not _of_file(plan):
        return floats
    padding = 2 * PAGE if "onnx" in plan.formats else 0  # of the rotary tables
    return floats + padding + max((made.overhead for made in plan.footprints.values()), default=0)


def _of_file(plan: Plan) -> bool:
    """Whether the budget is a file's, and not the weights' alone."""
    choices = plan.recipe.scheme.mixed
    return choices is not None and choices.budget_mb is not None


def _size(plan: Plan, encoding: Encoding, roles: Sequence[Role]) -> int:
    """Bytes of tensors that are one matrix in ONNX, in the format where they take more; in a file, at most so many."""
    sizes = []
    if "onnx" in plan.formats and encoding.onnx:
        parts = zip(*(encoding.onnx_bytes(role.shape) for role in roles), strict=True)
        page = PAGE if _of_file(plan) else 1
        sizes.append(sum(-(-sum(part) // page) * page for part in parts))
    if "gguf" in plan.formats and encoding.gguf:
        sizes.append(sum(encoding.gguf_bytes(role.shape) for role in roles))
    return max(sizes, default=0)


def _too_little(plan: Plan, least: int) -> PlanError:
    """The smallest types take `least` bytes: what the budget has to be for that, rounded up."""
    choices, whole = plan.recipe.scheme.mixed, least + _beside(plan)
    assert choices is not None
    if choices.bits_per_weight is not None:
        bits = ceil(8 * whole / plan.parameters * 1000) / 1000
        said = f"bits_per_weight: expected at least {bits:g}, which the smallest types take, found"
        return PlanError(f"scheme.mixed.{said} {choices.bits_per_weight:g}.", hint=_MORE)
    said = f"budget_mb: expected at least {ceil(whole / 1e3) / 1e3:g}, which the smallest types take, found"
    return PlanError(f"scheme.mixed.{said} {choices.budget_mb:g}.", hint=_MORE)


_MORE = "raise it, or add a smaller type to scheme.mixed.types"


def _bytes(encoding: Encoding, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in the format, of those that can hold it, where it takes more."""
    sizes = [sum(encoding.onnx_bytes(shape))] if encoding.onnx else []
    return max(sizes + ([encoding.gguf_bytes(shape)] if encoding.gguf else []), default=0)
