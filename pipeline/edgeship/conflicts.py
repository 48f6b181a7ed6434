"""Why a plan cannot be carried out, and what the user should know of one that can."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeship import mixing
from edgeship.calibration_stages import largest, stages
from edgeship.encodings import ENCODINGS, Encoding, encoding_of
from edgeship.errors import PlanError
from edgeship.quant.mixes import FALLBACKS
from edgeship.recipe import Format
from edgeship.size_limit import described, over
from edgeship.sizes import format_size
from edgeship.yaml_source import Problem

if TYPE_CHECKING:  # a plan is checked here, and not made
    from edgeship.plan import Plan, PlannedTensor


Conflict = tuple[str, str]
"""The recipe's key that it is about (empty: what the scheme makes of the weights), and what is said of it."""


def conflicts(plan: Plan) -> Iterator[str]:
    """What stands in the way of an export, each with what would help, and its line where the recipe is a file's."""
    return _placed(plan, _conflicts(plan))


def text_conflicts(plan: Plan) -> Iterator[str]:
    """The same of the calibration text alone, whatever looks at it."""
    return _placed(plan, _of_text(plan))


def _placed(plan: Plan, found: Iterable[Conflict]) -> Iterator[str]:
    for key, text in found:
        said = f"{key}: {text}" if key else text
        place = plan.recipe.place(key or "scheme")
        yield str(Problem(place, said)) if place else said


def _conflicts(plan: Plan) -> Iterator[Conflict]:
    yield from _of_formats(plan)
    yield from _of_groups(plan)
    yield from _of_mixed(plan)
    yield from _of_importance(plan)
    yield from _of_text(plan)
    yield from _of_calibration(plan)
    if plan.recipe.accept.repair and plan.recipe.scheme.mixed is not None:
        yield "accept.repair", "a mixed scheme spends its whole budget already; remove repair, and raise the budget"
    if plan.recipe.accept.text is not None and not Path(plan.recipe.accept.text).is_file():
        yield "accept.text", _no_file(plan.recipe.accept.text)
    for path in plan.recipe.adapters:
        if not Path(path).is_dir():
            yield "adapters", f"no such directory: {path}"
    d, r = plan.decoder, plan.recipe
    if r.context > d.max_positions:
        yield (
            "context",
            f"{r.context} is more than the {d.max_positions} positions that {d.model_type} was made for; "
            f"lower it{'' if d.rope.scaling else ', or set rope_scaling (YaRN)'}",
        )
    for form, made in plan.footprints.items():
        if over(r, made.size_bytes):
            found = f"{described(r, made.size_bytes)} for the {form} file alone"
            yield "accept.size_mb", f"{found}; raise it, or choose smaller types"


def _no_file(path: str | Path) -> str:
    return f"expected a file, found a directory: {path}" if Path(path).is_dir() else f"no such file: {path}"


def _of_formats(plan: Plan) -> Iterator[Conflict]:
    """Encodings that one of the recipe's formats has no name for, one line per format and encoding."""
    for form in plan.formats:
        for name, tensors in _by_encoding(plan.stored()).items():
            encoding = tensors[0].encoding
            if encoding.in_format(form):
                continue
            where = f"{form} has no {name} ({_parts(plan, tensors)})"
            if form == "gguf":
                remedy = "set group_size 32"
            elif plan.recipe.scheme.mix:
                remedy = f"name types instead of the mix {plan.recipe.scheme.mix}"
            else:
                remedy = "use int4, int8, float16 or float32"
            other: Format = "onnx" if form == "gguf" else "gguf"
            yield "formats", f"{where}; {remedy}" + (f", or formats: [{other}]" if encoding.in_format(other) else "")


def _of_groups(plan: Plan) -> Iterator[Conflict]:
    """Weights whose rows do not divide into groups, one line per shape and encoding."""
    alike: dict[tuple[int, str], list[PlannedTensor]] = defaultdict(list)
    for t in plan.stored():
        if not t.encoding.fits(t.role.shape[-1]):
            alike[t.role.shape[-1], t.encoding.name].append(t)
    for (columns, _), tensors in alike.items():
        first, others = tensors[0], len(tensors) - 1
        yield (
            "",
            f"{first.role.tensor} {list(first.role.shape)}{f' and {others} more' if others else ''}: rows of {columns} "
            f"do not divide into groups of {first.encoding.group}; "
            f"use {_fitting(plan, first.encoding, columns)}float16 for {_parts(plan, tensors)}",
        )


def _fitting(plan: Plan, encoding: Encoding, columns: int) -> str:
    """What of the same kind holds such rows, in words that go before the float that always does."""
    if encoding.on_grid:
        grid = [e for e in ENCODINGS.values() if e.on_grid and all(e.in_format(f) for f in plan.formats)]
        sizes = sorted({e.group for e in grid if e.fits(columns)})
        return f"group_size {' or '.join(map(str, sizes))}, or " if sizes else ""
    near = ENCODINGS[FALLBACKS.get(encoding.name, encoding.name)]
    return f"{near.name.removesuffix('-32')} or " if near.fits(columns) else ""


def _of_mixed(plan: Plan) -> Iterator[Conflict]:
    """Types to choose from that a format has no name for, and a budget below what the smallest take."""
    scheme, said = plan.recipe.scheme, {t.encoding for t in plan.stored()}
    for name in scheme.mixed.types if scheme.mixed else ():
        encoding = encoding_of(name, scheme.group_size)
        for form in plan.formats:
            if encoding not in said and not encoding.in_format(form):
                yield "scheme.mixed.types", f"{form} has no {name}; leave it out, or choose other formats"
    if scheme.mixed and plan.recipe.calibration is None:
        yield (
            "scheme.mixed",
            "what each tensor costs is measured on text; set calibration (text, chats, or {} for text "
            "that the model writes itself)",
        )
    if scheme.mixed and plan.recipe.imatrix is not None:
        yield "imatrix", "scheme.mixed weighs errors by what calibration shows; remove one of them"
    if scheme.mixed:
        try:
            mixing.choose(plan)
        except PlanError as error:
            key, _, reason = error.message.removesuffix(".").partition(": ")
            yield key, f"{reason}; {error.hint}"


def _of_importance(plan: Plan) -> Iterator[Conflict]:
    """Types that want an importance matrix and have none, or one that nothing would look at."""
    given = plan.recipe.imatrix
    if given is None and plan.recipe.guided:
        for name, tensors in _by_encoding(plan.needing_importance).items():
            if not plan.shared_head and any(t.role.part == "embeddings" for t in tensors):
                yield (
                    "scheme.embeddings",
                    f"{name} is garbage without an importance matrix, and calibration text shows none for a table "
                    f"whose rows are looked up; choose a larger type for the embeddings",
                )
        return
    if given is None:
        for name, tensors in _by_encoding(plan.needing_importance).items():
            yield (
                "",
                f"{name} ({_parts(plan, tensors)}) is garbage without an importance matrix; "
                f"set calibration, or give one as imatrix, or choose a larger type",
            )
        return
    if not Path(given).is_file():
        yield "imatrix", _no_file(given)
    for name, tensors in _by_encoding(plan.stored()).items():
        if name in ("int4-64", "int4-128"):
            yield (
                "imatrix",
                f"{name} ({_parts(plan, tensors)}) is rounded to nearest and would ignore it; "
                f"set group_size 32, or remove imatrix",
            )
    if _nothing_guided(plan):
        yield "imatrix", "none of the recipe's types makes use of one; remove it"


def _nothing_guided(plan: Plan) -> bool:
    """Whether no tensor is stored in a type that an importance matrix has a say in."""
    return all(not t.encoding.quantized or t.encoding.bits == 8 for t in plan.stored())


def _of_text(plan: Plan) -> Iterator[Conflict]:
    """Calibration text that is not there, or that the model cannot take."""
    section = plan.recipe.calibration
    if section is not None and section.file is not None and not section.file.is_file():
        yield "calibration", _no_file(section.file)
    if section is not None and section.length > plan.decoder.max_positions:
        yield (
            "calibration.sequence",
            f"{section.length} is more than the {plan.decoder.max_positions} positions that "
            f"{plan.decoder.model_type} was made for; lower it",
        )


def _of_calibration(plan: Plan) -> Iterator[Conflict]:
    """An algorithm without text to look at, text that nothing looks at, and what the two cannot do."""
    section, algorithm = plan.recipe.calibration, plan.recipe.scheme.algorithm
    if section is not None and not plan.recipe.scheme.calibrates:
        yield (
            "calibration",
            "rounding to nearest looks at no text; set scheme.algorithm (rtn-search, gptq), or remove "
            "calibration (only `edgeship imatrix` reads it)",
        )
    elif section is not None and algorithm == "rtn" and not plan.recipe.scheme.mixed and _nothing_guided(plan):
        yield "calibration", "none of the recipe's types makes use of it; remove it (only `edgeship imatrix` reads it)"
    if algorithm == "rtn":
        return
    if section is None:
        yield (
            "scheme.algorithm",
            f"{algorithm} needs text to look at; set calibration (text, chats, or {{}} for text that "
            f"the model writes itself)",
        )
    if plan.recipe.imatrix is not None:
        yield "imatrix", f"{algorithm} weighs errors by what calibration shows; remove one of them"
    if not any(t.encoding.on_grid and t.role.part == "body" for t in plan.stored()):
        yield (
            "scheme.algorithm",
            f"{algorithm} chooses the codes of int4 and int8, which the body has none of; remove it",
        )


def notes(plan: Plan) -> Iterator[str]:
    """What an export does that its user might not expect."""
    d, scheme = plan.decoder, plan.recipe.scheme
    yield from _of_fallbacks(plan)
    if scheme.mixed:
        yield "scheme.mixed: which tensors get which type is measured when it is exported; here all weights count alike"
    if d.tied and not plan.shared_head and plan.footprints:
        yield (
            f"embeddings ({scheme.embeddings}) and head ({scheme.head}) are tied but stored twice, "
            f"since their types differ: {format_size(plan.head.nbytes(next(iter(plan.footprints))))} more"
        )
    most = largest(stages(plan))
    if most.nbytes:
        yield f"{most.what} needs --max-ram {format_size(most.nbytes)} or more"
    if "onnx" in plan.formats and plan.rope_positions < d.max_positions:
        yield (
            f"the {'ONNX ' if len(plan.formats) > 1 else ''}artifact runs with a context of up to "
            f"{plan.rope_positions} tokens, of the model's {d.max_positions}; raise context for more"
        )
    if "gguf" not in plan.formats and any(t.encoding.gguf is None for t in plan.tensors):
        yield f"groups of {scheme.group_size} exist in ONNX only; GGUF stores groups of 32"
    if d.rope.scaling is not None and d.rope.scaling["rope_type"] == "yarn":
        yield "YaRN scales every position, short texts included; leave rope_scaling out where context allows"
    if "onnx" in plan.formats and any(t.encoding.name == "float16" and t.role.part == "body" for t in plan.tensors):
        yield "float16 saves disk, not memory: onnxruntime widens it to float32 on the CPU"


def _of_fallbacks(plan: Plan) -> Iterator[str]:
    """Where a mix's type does not hold a tensor's rows, one line per row length and pair of types."""
    alike: dict[tuple[int, Encoding, Encoding], list[PlannedTensor]] = defaultdict(list)
    for t in plan.tensors:
        if t.wanted is not None:
            alike[t.role.shape[-1], t.wanted, t.encoding].append(t)
    for (columns, wanted, encoding), tensors in alike.items():
        kinds = dict.fromkeys(_kind(t.role.key) for t in tensors)
        count = f"{len(tensors)} tensors ({', '.join(kinds)}) are" if len(tensors) > 1 else f"{next(iter(kinds))} is"
        yield (
            f"rows of {columns} do not divide into blocks of {wanted.group}: "
            f"{count} {encoding.name} instead of {wanted.name}, as llama-quantize chooses"
        )


def _kind(key: str) -> str:
    """`attn.q` of `layers.0.attn.q.weight`, `embed` of `embed.weight`."""
    return ".".join(p for p in key.split(".")[:-1] if p != "layers" and not p.isdigit())


def _by_encoding(tensors: Iterable[PlannedTensor]) -> dict[str, list[PlannedTensor]]:
    out: dict[str, list[PlannedTensor]] = defaultdict(list)
    for t in tensors:
        out[t.encoding.name].append(t)
    return out


def _parts(plan: Plan, tensors: Iterable[PlannedTensor]) -> str:
    parts = sorted({t.role.part for t in tensors})
    if plan.shared_head and "embeddings" in parts:
        parts.append("head")
    return " and ".join(parts)
