"""A recipe and a config.json made into a Plan: every tensor's encoding, sizes, memory, and every conflict.

Plain frozen data, computed without weights: writers work from it, and `edgeship plan` prints it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from edgeship import archs
from edgeship.archs.base import Decoder, Part, Role
from edgeship.encodings import ENCODINGS, Encoding
from edgeship.errors import PlanError
from edgeship.recipe import Recipe
from edgeship.sizes import format_size

ROPE_ROWS = 32768
"""Rows of the rotary tables at most, unless the recipe's context is longer: 16 MB at head size 128."""

MAX_LAYERS = 1024
"""No model has more by far; a plan lists every tensor, so the number must be bounded before it does."""

RUNTIME_BYTES = 60_000_000
"""Python, numpy, onnxruntime and a session's bookkeeping (measured with onnxruntime 1.31: 43 MB imported)."""

TOKENIZER_BYTES = 600
"""Per vocabulary entry, in the tokenizers package (measured: 86 MB for Qwen's 151,665)."""


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the checkpoint and the form it will be stored in."""

    role: Role
    encoding: Encoding

    @property
    def weights(self) -> int:
        return prod(self.role.shape)

    @property
    def codes(self) -> int:
        """Bytes of codes, or of floats, in model.onnx.data."""
        return self.encoding.onnx_bytes(self.role.shape)[0]

    @property
    def scales(self) -> int:
        """Bytes of scales in model.onnx.data."""
        return self.encoding.onnx_bytes(self.role.shape)[1]


@dataclass(frozen=True)
class PartSize:
    """What one part of the model takes in one encoding; sizes in bytes."""

    part: str  # body, embeddings, head, "embeddings + head" (stored once), or float (norms and biases)
    encoding: str
    tensors: int
    weights: int
    codes: int
    scales: int

    @property
    def nbytes(self) -> int:
        return self.codes + self.scales

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True)
class Memory:
    """RAM the artifact takes at run time with its KV cache full, in bytes."""

    weights: int  # pages of model.onnx.data that stay in use: scales, norms, biases, rotary tables
    repacked: int  # onnxruntime's own copy of matrices, laid out for the CPU's instructions
    kv_per_token: int  # float32 K and V of all layers
    kv_total: int
    runtime: int  # interpreter, onnxruntime, tokenizer

    @property
    def total(self) -> int:
        return self.weights + self.repacked + self.kv_total + self.runtime


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

    @cached_property
    def head(self) -> PlannedTensor:
        """The output projection: the embedding's own entry where they share it, else a role `head.weight`."""
        if not self.decoder.tied:
            return next(t for t in self.tensors if t.role.part == "head")
        if self.shared_head:
            return self.tensors[0]
        role = replace(self.tensors[0].role, key="head.weight", part="head")
        return PlannedTensor(role, self.recipe.scheme.encoding("head"))

    def stored(self) -> Iterator[PlannedTensor]:
        """Every tensor written: `tensors`, and the head of a tied model where it cannot share the table."""
        yield from self.tensors
        if self.decoder.tied and not self.shared_head:
            yield self.head

    @cached_property
    def parts(self) -> tuple[PartSize, ...]:
        """Sizes by part and encoding, in the order body, embeddings, head, float."""
        groups: dict[tuple[str, str], list[PlannedTensor]] = defaultdict(list)
        for t in self.stored():
            part = "embeddings + head" if t.role.part == "embeddings" and self.shared_head else t.role.part
            groups[part, t.encoding.name].append(t)
        order = ("body", "embeddings", "embeddings + head", "head", "float")
        return tuple(
            PartSize(*key, len(ts), *(sum(getattr(t, f) for t in ts) for f in ("weights", "codes", "scales")))
            for key, ts in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
        )

    @cached_property
    def rope_bytes(self) -> int:
        """Bytes of the float32 cos and sin tables, each [rope_positions, head_dim / 2]."""
        return 2 * self.rope_positions * (self.decoder.head_dim // 2) * 4

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights, scales included."""
        return sum(t.codes + t.scales for t in self.stored())

    @cached_property
    def size_bytes(self) -> int:
        """Size of model.onnx.data, but for padding between tensors: weights with scales, and the rotary tables."""
        return self.weight_bytes + self.rope_bytes

    @cached_property
    def parameters(self) -> int:
        """Weights of the checkpoint; a tied table counts once."""
        return sum(t.weights for t in self.tensors)

    @cached_property
    def bits_per_weight(self) -> float:
        """Bits stored per weight of the checkpoint: all weights, scales included."""
        return 8 * self.weight_bytes / self.parameters

    @cached_property
    def memory(self) -> Memory:
        """RAM at run time in onnxruntime, with the KV cache at the recipe's context.

        The file's own codes are not counted: matrices are repacked, and of the embedding table only rows are read.
        """
        d = self.decoder
        matrices = [t for t in self.tensors if t.role.part == "body"] + [self.head]
        per_token = d.layers * 2 * d.kv_heads * d.head_dim * 4
        return Memory(
            weights=self.size_bytes - sum(t.codes for t in self.stored() if t.role.part != "float"),
            repacked=sum(_repacked(t) for t in matrices),
            kv_per_token=per_token,
            kv_total=per_token * self.recipe.context,
            runtime=RUNTIME_BYTES + TOKENIZER_BYTES * d.vocab_size,
        )

    def require(self) -> None:
        """Raises PlanError listing the conflicts, if there are any."""
        if self.conflicts:
            listed = "\n".join(f"  - {c}" for c in self.conflicts)
            raise PlanError(
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
            "parts": [asdict(p) | {"bytes": p.nbytes, "bits_per_weight": p.bits_per_weight} for p in self.parts],
            "shared_head": self.shared_head,
            "bits_per_weight": self.bits_per_weight,
            "size_bytes": self.size_bytes,
            "rope": {"positions": self.rope_positions, "bytes": self.rope_bytes},
            "ram_bytes": asdict(self.memory) | {"total": self.memory.total},
            "conflicts": list(self.conflicts),
            "notes": list(self.notes),
        }


def _repacked(t: PlannedTensor) -> int:
    """Bytes of onnxruntime's copy of a matrix: codes, scales and a float32 sum per group (MatMulNBits, level 4)."""
    if t.encoding.quantized:
        return t.codes + 2 * t.scales
    return 4 * t.weights  # float16 is widened when the model loads: the CPU multiplies float32


def make_plan(recipe: Recipe, config: Mapping[str, Any], file: str = "config.json") -> Plan:
    """The plan for a recipe and the config.json of its checkpoint (`file` is its name in messages).

    Raises ArchitectureError at a config that is not known. What cannot be exported is listed in `conflicts`.
    """
    decoder = _extended(archs.read(_with_scaling(recipe, config), file))
    if decoder.layers > MAX_LAYERS:
        raise PlanError(
            f"{file}: num_hidden_layers: expected at most {MAX_LAYERS}, found {decoder.layers}.",
            hint="restore the value the model was published with",
        )
    of_part: dict[Part, Encoding] = {p: recipe.scheme.encoding(p) for p in ("body", "embeddings", "head")}
    of_part["float"] = ENCODINGS["float32"]
    plan = Plan(
        recipe=recipe,
        decoder=decoder,
        tensors=tuple(PlannedTensor(r, of_part[r.part]) for r in decoder.roles()),
        shared_head=decoder.tied and of_part["head"] == of_part["embeddings"],
        rope_positions=max(recipe.context, min(decoder.max_positions, ROPE_ROWS)),
        conflicts=(),
        notes=(),
    )
    return replace(plan, conflicts=tuple(_conflicts(plan)), notes=tuple(_notes(plan)))


def plan_checkpoint(recipe: Recipe, config: Mapping[str, Any], file: str = "config.json") -> Plan:
    """The plan for a recipe and the config.json of a checkpoint that must agree with the recipe's `model:`.

    Raises PlanError listing every field that does not, and ArchitectureError as `make_plan` does.
    """
    differences = [
        f"  - {key}: the recipe says {json.dumps(expected)}, the checkpoint {json.dumps(found)}"
        for key, expected in (recipe.model or {}).items()
        if not _equal(expected, found := _field(config, key))
    ]
    if differences:
        raise PlanError(
            f"{file} is not the model that {recipe.name} describes under `model:`; nothing was written.\n"
            + "\n".join(differences),
            hint=f"give the checkpoint of {recipe.source.repo}, or write a recipe of your own "
            f"(`extends: {recipe.name}`) with `model: null`",
        )
    return make_plan(recipe, config, file)


def read_plan(recipe: Recipe, checkpoint: Path | None = None) -> Plan:
    """The plan for a recipe: from the checkpoint's config.json if given, else from `model:`, else from the source.

    Only config.json is read or downloaded. Raises EdgeshipError where that, or the plan, fails.
    """
    if checkpoint is None and recipe.model is not None:
        return make_plan(recipe, recipe.model, f"recipe {recipe.name}: model")
    from edgeship.checkpoint import hub  # not at the top: it brings the hub's client
    from edgeship.checkpoint.checkpoint import read_config

    path = checkpoint or hub.fetch(recipe.source, "config")[0]
    return plan_checkpoint(recipe, read_config(path), str(path / "config.json"))


def _with_scaling(recipe: Recipe, config: Mapping[str, Any]) -> Mapping[str, Any]:
    if recipe.rope_scaling is None:
        return config
    block, written = recipe.rope_scaling.block(), config.get("rope_parameters")
    if isinstance(written, Mapping):  # the layout of transformers 5: the base lies inside the block
        base = {k: v for k, v in written.items() if k == "rope_theta"}
        return {**config, "rope_parameters": base | block}
    return {**config, "rope_scaling": block}


def _extended(decoder: Decoder) -> Decoder:
    """The decoder with the positions that YaRN reaches: factor times the length it was trained with."""
    scaling = decoder.rope.scaling
    if scaling is None or scaling["rope_type"] != "yarn":
        return decoder
    reached = int(scaling["factor"] * scaling["original_max_position_embeddings"])
    return replace(decoder, max_positions=max(decoder.max_positions, reached))


def _field(config: Mapping[str, Any], key: str) -> Any:
    value = config.get(key)
    inner = config.get("rope_parameters")
    if value is None and isinstance(inner, Mapping):  # where transformers 5 writes rope_theta
        value = inner.get(key)
    return value


def _equal(a: Any, b: Any) -> bool:
    if a is False or a is None:  # writers leave these out
        return b is False or b is None
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _conflicts(plan: Plan) -> Iterator[str]:
    yield from _group_conflicts(plan)
    d, r = plan.decoder, plan.recipe
    if r.context > d.max_positions:
        yield (
            f"context: {r.context} is more than the {d.max_positions} positions that {d.model_type} was made for; "
            f"lower it{'' if d.rope.scaling else ', or set rope_scaling (YaRN)'}"
        )
    limit = r.accept.size_mb
    if limit is not None and plan.size_bytes > limit * 1e6:
        yield (
            f"accept.size_mb: the weights alone take {plan.size_bytes / 1e6:.0f} MB, over the limit of {limit:g} MB; "
            f"raise it, or choose smaller types"
        )


def _group_conflicts(plan: Plan) -> Iterator[str]:
    """Weights whose rows do not divide into groups, one line per shape and encoding."""
    alike: dict[tuple[int, str], list[PlannedTensor]] = defaultdict(list)
    for t in plan.stored():
        if t.encoding.quantized and t.role.shape[-1] % t.encoding.group:
            alike[t.role.shape[-1], t.encoding.name].append(t)
    sizes = sorted({e.group for e in ENCODINGS.values() if e.quantized})
    for (columns, _), tensors in alike.items():
        first, others = tensors[0], len(tensors) - 1
        fitting = [str(s) for s in sizes if columns % s == 0]
        parts = sorted({t.role.part for t in tensors})
        if plan.shared_head and "embeddings" in parts:
            parts.append("head")
        remedy = f"group_size {' or '.join(fitting)}, or " if fitting else ""
        yield (
            f"{first.role.tensor} {list(first.role.shape)}{f' and {others} more' if others else ''}: rows of {columns} "
            f"do not divide into groups of {first.encoding.group}; use {remedy}float16 for {' and '.join(parts)}"
        )


def _notes(plan: Plan) -> Iterator[str]:
    d, scheme = plan.decoder, plan.recipe.scheme
    if d.tied and not plan.shared_head:
        yield (
            f"embeddings ({scheme.embeddings}) and head ({scheme.head}) are tied but stored twice, "
            f"since their types differ: {format_size(plan.head.codes + plan.head.scales)} more"
        )
    if plan.rope_positions < d.max_positions:
        yield (
            f"the artifact runs with a context of up to {plan.rope_positions} tokens, "
            f"of the model's {d.max_positions}; raise context for more"
        )
    if any(t.encoding.quantized and t.encoding.gguf is None for t in plan.tensors):
        yield f"groups of {scheme.group_size} exist in ONNX only; GGUF stores groups of 32"
    if d.rope.scaling is not None and d.rope.scaling["rope_type"] == "yarn":
        yield "YaRN scales every position, short texts included; leave rope_scaling out where context allows"
    if scheme.body == "float16":
        yield "float16 saves disk, not memory: onnxruntime widens it to float32 on the CPU"
