"""A mixed scheme's type for each tensor, chosen under the recipe's budget.

Before an export nothing is measured: a plan then assumes that every weight matters alike, which comes to the same size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from edgeship.archs.base import Decoder, Role
from edgeship.budget import Mixed
from edgeship.encodings import Encoding, encoding_of
from edgeship.errors import PlanError
from edgeship.quant import mixed

if TYPE_CHECKING:  # a plan has its choice made here
    from edgeship.plan import Plan, PlannedTensor

LISTED = 12  # names in a line


def types_of(choices: Mixed, decoder: Decoder, group_size: int) -> dict[str, list[Encoding]]:
    """The types that each tensor may be stored as, fewest bytes first, by role key; those that hold its rows.

    A table that is embedding and head in one is one tensor. Where no type holds the rows the smallest stands alone.
    """
    encodings = [encoding_of(each, group_size) for each in choices.types]

    def fitting(role: Role) -> list[Encoding]:
        by_size = sorted(encodings, key=lambda e: (_bytes(e, role.shape, ("onnx", "gguf")), e.name))
        return [e for e in by_size if e.fits(role.shape[-1])] or by_size[:1]

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
        sizes = {e.name: sum(_bytes(e, role.shape, plan.formats) for role in roles) for e in kinds}
        if measured is None:
            options[name] = mixed.assumed(kinds, sizes, weights)
        else:
            losses = {e.name: sum(measured[role.key][e.name] for role in roles) for e in kinds}
            options[name] = [mixed.Option(e.name, sizes[e.name], losses[e.name]) for e in kinds]
    try:
        chosen = mixed.choose(options, _budget(plan))
    except ValueError as error:
        raise PlanError(
            f"scheme.mixed: {error}.", hint="raise the budget, or add a smaller type to scheme.mixed.types"
        ) from None
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
    """The choice of a plan in one line: the tensors of each type, the rarer ones by name."""
    by_type: dict[str, list[str]] = defaultdict(list)
    for t in plan.tensors:
        if t.role.part != "float":
            by_type[t.encoding.name].append(t.role.key.removesuffix(".weight").replace("layers.", ""))
    ranked = sorted(by_type.items(), key=lambda item: len(item[1]))
    said = [f"{name} for {len(keys)} tensors" for name, keys in ranked]
    for i, (_, keys) in enumerate(ranked[:-1]):
        more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
        said[i] += f" ({', '.join(keys[:LISTED])}{more})"
    return "mixed: " + "; ".join(said)


def _budget(plan: Plan) -> int:
    """Bytes for the tensors that have a choice."""
    choices = plan.recipe.scheme.mixed
    assert choices is not None
    floats = sum(4 * t.weights for t in plan.tensors if t.role.part == "float")
    if choices.bits_per_weight is not None:
        return int(choices.bits_per_weight * plan.parameters / 8) - floats
    assert choices.budget_mb is not None
    return int(choices.budget_mb * 1e6) - floats - max((made.overhead for made in plan.footprints.values()), default=0)


def _bytes(encoding: Encoding, shape: tuple[int, ...], formats: Sequence[str]) -> int:
    """Bytes of a tensor in the format, of those that can hold it, where it takes more."""
    sizes = [sum(encoding.onnx_bytes(shape))] if "onnx" in formats and encoding.onnx else []
    sizes += [encoding.gguf_bytes(shape)] if "gguf" in formats and encoding.gguf else []
    return max(sizes, default=0)
