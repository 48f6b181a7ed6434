"""A recipe and a config.json made into a Plan: every tensor's encoding, sizes, memory, and every conflict.

Plain frozen data, computed without weights: writers work from it, and `edgeship plan` prints it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from edgeship import archs, mixing
from edgeship.archs.base import ROPE_BLOCKS, Config, Decoder, Role, rope_block
from edgeship.conflicts import conflicts, notes
from edgeship.encodings import ENCODINGS, Encoding
from edgeship.errors import FidelityError, PlanError
from edgeship.footprint import Footprint, footprint
from edgeship.quant import mixes
from edgeship.recipe import Format, Recipe, RopeScaling
from edgeship.size_limit import over

ROPE_ROWS = 32768
"""Rows of the rotary tables at most, unless the recipe's context is longer: 16 MB at head size 128."""

MAX_LAYERS = 1024
"""No model has more by far; a plan lists every tensor, so the number must be bounded before it does."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the checkpoint and the form it will be stored in."""

    role: Role
    encoding: Encoding
    wanted: Encoding | None = None  # what its mix has for it, where that does not fit its rows

    @property
    def weights(self) -> int:
        return prod(self.role.shape)

    def nbytes(self, form: Format) -> int:
        """Bytes in the file of a format, scales included."""
        shape = self.role.shape
        return self.encoding.gguf_bytes(shape) if form == "gguf" else sum(self.encoding.onnx_bytes(shape))


@dataclass(frozen=True)
class Plan:
    """What an export will do; `conflicts` is empty when it can be done."""

    recipe: Recipe
    decoder: Decoder  # with the recipe's rope_scaling, and max_positions as far as YaRN extends it
    tensors: tuple[PlannedTensor, ...]  # in the order of decoder.roles()
    shared_head: bool  # tied, and embeddings and head in one encoding: the table is stored once
    rope_positions: int  # rows of the cos and sin tables
    conflicts: tuple[str, ...]
    notes: tuple[str, ...]
    chosen: Mapping[str, str] = field(default_factory=dict)  # encodings by role key that replace the scheme's
    recorded: Mapping[str, Any] = field(default_factory=dict)  # beside the recipe in the manifest: digests, choices

    @cached_property
    def head(self) -> PlannedTensor:
        """The output projection: the embedding's own entry where they share it, else a role `head.weight`."""
        if not self.decoder.tied:
            return next(t for t in self.tensors if t.role.part == "head")
        if self.shared_head:
            return self.tensors[0]
        role = replace(self.tensors[0].role, key="head.weight", part="head")
        chosen = self.chosen.get(role.key)
        return PlannedTensor(role, ENCODINGS[chosen] if chosen else self.recipe.scheme.encoding("head"))

    def stored(self) -> Iterator[PlannedTensor]:
        """Every tensor written: `tensors`, and the head of a tied model where it cannot share the table."""
        yield from self.tensors
        if self.decoder.tied and not self.shared_head:
            yield self.head

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats of the recipe: one set of tensors, stored in each."""
        return self.recipe.formats

    @cached_property
    def footprints(self) -> dict[Format, Footprint]:
        """Sizes and memory by format, of those that can hold every encoding."""
        return {f: footprint(self, f) for f in self.formats if all(t.encoding.in_format(f) for t in self.stored())}

    @cached_property
    def parameters(self) -> int:
        """Weights of the checkpoint; a tied table counts once."""
        return sum(t.weights for t in self.tensors)

    @cached_property
    def needing_importance(self) -> tuple[PlannedTensor, ...]:
        """The tensors whose types are too coarse to be of use without an importance matrix."""
        scheme = self.recipe.scheme
        coarse = mixes.MIXES[scheme.mix].most if scheme.mix and mixes.MIXES[scheme.mix].needs_importance else ""
        return tuple(
            t
            for t in self.stored()
            if t.encoding.needs_importance or (t.encoding.name == coarse and t.role.part == "body")
        )

    @cached_property
    def part_encodings(self) -> dict[str, str]:
        """What body, embeddings and head are stored as: `int4-32`, or `q4_k, q6_k` where tensors differ."""
        parts = {"body": [t for t in self.tensors if t.role.part == "body"], "embeddings": [self.tensors[0]]}
        parts["head"] = [self.head]
        return {part: ", ".join(dict.fromkeys(t.encoding.name for t in ts)) for part, ts in parts.items()}

    @property
    def bits_per_weight(self) -> float:
        """Bits stored per weight of the checkpoint, in the first format."""
        return self.footprints[self.formats[0]].bits_per_weight

    def require(self) -> None:
        """Raises PlanError listing the conflicts, if there are any; FidelityError where all are `accept.size_mb`."""
        if self.conflicts:
            listed = "\n".join(f"  - {c}" for c in self.conflicts)
            large = sum(over(self.recipe, made.size_bytes) for made in self.footprints.values())
            kind = FidelityError if large == len(self.conflicts) else PlanError
            raise kind(
                f"{self.recipe.name} cannot be exported; nothing was written.\n{listed}",
                hint="change the recipe as listed, then look at `edgeship plan` again",
            )

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; sizes in bytes."""
        d = self.decoder
        return {
            "recipe": self.recipe.resolved(),
            "architecture": {k: v for k, v in asdict(d).items() if isinstance(v, str | int | float)},
            "parameters": self.parameters,
            "shared_head": self.shared_head,
            "rope_positions": self.rope_positions,
            "formats": {form: made.to_json() for form, made in self.footprints.items()},
            "conflicts": list(self.conflicts),
            "notes": list(self.notes),
        }


def make_plan(
    recipe: Recipe, config: Mapping[str, Any], file: str = "config.json", chosen: Mapping[str, str] | None = None
) -> Plan:
    """The plan for a recipe and the config.json of its checkpoint (`file` is its name in messages).

    `chosen` are names of encodings by role key that replace what the scheme has for these tensors. What cannot be
    exported is listed in `conflicts`. Raises ArchitectureError at a config that is not known.
    """
    decoder = read_decoder(config, recipe.rope_scaling, file)
    if decoder.layers > MAX_LAYERS:
        raise PlanError(
            f"{file}: num_hidden_layers: expected at most {MAX_LAYERS}, found {decoder.layers}.",
            hint="restore the value the model was published with",
        )
    chosen = chosen or {}
    tensors = tuple(_planned(recipe, decoder, chosen))
    if chosen and "onnx" in recipe.formats:
        tensors = tuple(mixing.together(tensors))
    plan = Plan(
        recipe=recipe,
        decoder=decoder,
        tensors=tensors,
        shared_head=decoder.tied and (recipe.scheme.mix is not None or _same_table(recipe)),
        rope_positions=max(recipe.context, min(decoder.max_positions, ROPE_ROWS)),
        conflicts=(),
        notes=(),
        chosen=chosen,
    )
    if recipe.scheme.mixed and not chosen:
        types = mixing.types_of(recipe.scheme.mixed, decoder, recipe.scheme.group_size)
        smallest = {key: kinds[0].name for key, kinds in types.items()}
        plan = replace(plan, tensors=tuple(_planned(recipe, decoder, smallest)), chosen=smallest)
        with suppress(PlanError):  # a conflict, and said there
            return make_plan(recipe, config, file, mixing.choose(plan))
    return replace(plan, conflicts=tuple(conflicts(plan)), notes=tuple(notes(plan)))


def _planned(recipe: Recipe, decoder: Decoder, chosen: Mapping[str, str]) -> Iterator[PlannedTensor]:
    scheme, importance = recipe.scheme, recipe.guided
    mixed = mixes.choose(decoder, scheme.mix, importance=importance) if scheme.mix else {}
    for role in decoder.roles():
        if role.part == "float":
            yield PlannedTensor(role, ENCODINGS["float32"])
        elif role.key in chosen:
            yield PlannedTensor(role, ENCODINGS[chosen[role.key]])
        elif scheme.mix:
            choice = mixed[role.key]
            yield PlannedTensor(role, choice.encoding, choice.wanted if choice.wanted != choice.encoding else None)
        else:
            yield PlannedTensor(role, scheme.encoding(role.part))


def _same_table(recipe: Recipe) -> bool:
    return recipe.scheme.encoding("head") == recipe.scheme.encoding("embeddings")


def plan_checkpoint(
    recipe: Recipe, config: Mapping[str, Any], file: str = "config.json", chosen: Mapping[str, str] | None = None
) -> Plan:
    """The plan for a recipe and the config.json of a checkpoint that must agree with the recipe's `model:`.

    Raises PlanError listing every field that does not, and ArchitectureError as `make_plan` does.
    """
    differences = [
        f"  - {key}: the recipe says {json.dumps(expected)}, the checkpoint {json.dumps(found)}"
        for key, expected in (recipe.model or {}).items()
        if not _equal(expected, found := _field(Config(config, file), key))
    ]
    if differences:
        raise PlanError(
            f"{file} is not the model that {recipe.name} describes under `model:`; nothing was written.\n"
            + "\n".join(differences),
            hint=f"give the checkpoint of {recipe.source.repo}, or write a recipe of your own: a copy of {recipe.name} "
            "with `model: null`",
        )
    return make_plan(recipe, config, file, chosen)


def read_plan(recipe: Recipe, checkpoint: Path | None = None) -> Plan:
    """The plan for a recipe: from the checkpoint's config.json if given, else from `model:`, else from the source.

    Only config.json is read or downloaded. Raises EdgeshipError where that, or the plan, fails.
    """
    if recipe.exporter != "native":
        raise PlanError(
            f"{recipe.name}: expected a recipe of our own exporter, found exporter: {recipe.exporter}: what it makes "
            f"is known when it is made.",
            hint=f"`edgeship plan {recipe.name}` without a device checks its options",
        )
    if checkpoint is None and recipe.model is not None:
        return make_plan(recipe, recipe.model, f"recipe {recipe.name}: model")
    from edgeship.checkpoint import hub  # not at the top: it brings the hub's client
    from edgeship.checkpoint.checkpoint import read_config

    path = checkpoint or hub.fetch(recipe.source, "config")[0]
    return plan_checkpoint(recipe, read_config(path), str(path / "config.json"))


def read_decoder(config: Mapping[str, Any], scaling: RopeScaling | None, file: str) -> Decoder:
    """The decoder of a config.json, its rotary embedding scaled as a recipe says, positions as YaRN extends them.

    Raises ArchitectureError at a config that is not known.
    """
    return _extended(archs.read(_with_scaling(scaling, Config(config, file)), file))


def _with_scaling(scaling: RopeScaling | None, config: Config) -> Mapping[str, Any]:
    """The config with a recipe's scaling as its only block; what else the block said of the rotation stays."""
    if scaling is None:
        return config.values
    replaced = (*ROPE_BLOCKS, "original_max_position_embeddings")
    kept = {k: v for k, v in rope_block(config).values.items() if k in ("rope_theta", "partial_rotary_factor")}
    others = {k: v for k, v in config.values.items() if k not in replaced}
    return {**others, "rope_scaling": kept | scaling.block()}


def _extended(decoder: Decoder) -> Decoder:
    """The decoder with the positions that YaRN reaches: factor times the length it was trained with."""
    scaling = decoder.rope.scaling
    if scaling is None or scaling["rope_type"] != "yarn":
        return decoder
    reached = int(scaling["factor"] * scaling["original_max_position_embeddings"])
    return replace(decoder, max_positions=max(decoder.max_positions, reached))


def _field(config: Config, key: str) -> Any:
    value = rope_block(config).values.get(key) if key == "rope_theta" else None
    return config.values.get(key) if value is None else value


def _equal(a: Any, b: Any) -> bool:
    if a is False or a is None:  # writers leave these out
        return b is False or b is None
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
