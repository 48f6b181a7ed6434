"""Runs a plan: obtain the checkpoint, read, quantize, write, seal, publish. Resumable, atomic, in bounded memory."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeship import __version__, mixing
from edgeship.calibrate import deciding
from edgeship.calibrate.export import (
    STORE,
    choose_codes,
    obtain_tokens,
    record,
    store_bytes,
)
from edgeship.calibrate.store import StoredCodes
from edgeship.calibrate.text import Tokens
from edgeship.calibration_stages import calibrated, decides, largest, require_memory, stages
from edgeship.checkpoint.adapters import merge, open_adapters
from edgeship.checkpoint.checkpoint import Checkpoint, account, fingerprint, open_checkpoint
from edgeship.checkpoint.hub import fetch
from edgeship.errors import ArtifactError, FidelityError, ResourceError
from edgeship.evaluate.gate import Gate, measure, open_gate
from edgeship.formats import draw_up
from edgeship.formats.base import Format
from edgeship.memory import Budget, divide, peak_rss
from edgeship.output import Output
from edgeship.partial import PartialExport, kept_for_another_run
from edgeship.plan import Plan, plan_checkpoint
from edgeship.progress import Progress, downloads
from edgeship.quant import ggml
from edgeship.quant.importance import read_importance
from edgeship.recipe import Recipe
from edgeship.reference.weights import CheckpointWeights
from edgeship.seal import seal
from edgeship.size_limit import described, directory_size, over, require_size
from edgeship.sizes import format_size
from edgeship.stream import Job, stream
from edgeship.tensors import LazyTensor
from edgeship.text import TextSide, open_text

MEASURED = ".calibration"  # beside the formats while an export runs: what was found out before its first byte
DEFAULT_RAM = 600_000_000
REPAIRS = 4  # rounds of a repair: gains are estimates, and each round measures anew
SEAL_SPACE = 64 << 20  # bytes per format: tokenizer, graph and acceptance files, rounded up


@dataclass(frozen=True)
class ExportReport:
    """What an export did; sizes in MB of 10^6 bytes."""

    artifact: Path
    formats: tuple[str, ...]
    seconds: float
    peak_rss_mb: float
    size_mb: float
    bits_per_weight: float
    source_revision: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"artifact": str(self.artifact), "formats": list(self.formats)}


def export(
    recipe: Recipe,
    *,
    checkpoint: Path | None,
    out: Path,
    formats: Sequence[str],
    max_ram: int | None,
    force: bool,
    progress: Progress,
    fidelity: bool = True,
) -> ExportReport:
    """Export a recipe to `out/<recipe name>/<format>/` for each format and report what it took.

    `checkpoint` replaces the recipe's source by a local directory; `max_ram` is in bytes, None: DEFAULT_RAM, or what
    the recipe's calibration needs; without `fidelity` the acceptance test lacks the float model's predictions. Raises
    EdgeshipError of every kind; an artifact directory exists afterwards only if it is whole.
    """
    started = time.perf_counter()
    with storage_errors(out):
        finals = {name: out / recipe.name / name for name in formats}
        refuse_existing(finals.values(), force)
        with kept_for_another_run(out / recipe.name / MEASURED) as kept:
            work = replace(_prepare(recipe, checkpoint, formats, max_ram, kept, progress), fidelity=fidelity)
            work = _run_until_accepted(work, finals, force, progress)
    size = sum(directory_size(final) for final in finals.values())
    seconds, peak = time.perf_counter() - started, peak_rss()
    if peak > work.max_ram:
        progress.note(f"peak memory {format_size(peak)} went over --max-ram {format_size(work.max_ram)}")
    return ExportReport(
        artifact=out / recipe.name,
        formats=tuple(formats),
        seconds=round(seconds, 2),
        peak_rss_mb=round(peak / 1e6, 1),
        size_mb=round(size / 1e6, 2),
        bits_per_weight=round(work.plan.footprints[work.forms[0].name].bits_per_weight, 3),
        source_revision=work.source.revision,
    )


@dataclass(frozen=True)
class _Work:
    """Everything an export needs, read and checked, before its first byte is written."""

    plan: Plan
    source: Checkpoint
    tensors: Mapping[str, LazyTensor]  # by role key
    importance: Mapping[str, NDArray[np.float32]]  # by role key
    text: TextSide
    forms: Sequence[Format]
    budget: Budget
    max_ram: int  # bytes
    gate: Gate | None  # what the recipe accepts of the loss against the float model
    calibration: Tokens = field(default_factory=list)  # the token sequences that codes are chosen with
    fidelity: bool = True  # whether the float model's predictions go into the acceptance test

    def digest(self) -> str:
        """Identifies the bytes the export would write, so that only the same work is resumed."""
        imatrix = self.plan.recipe.imatrix
        guided = hashlib.sha256(Path(imatrix).read_bytes()).hexdigest() if imatrix else None
        work = [__version__, self.plan.recipe.resolved() | dict(self.plan.recorded), fingerprint(self.source), guided]
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()


def _prepare(
    recipe: Recipe, checkpoint: Path | None, formats: Sequence[str], asked: int | None, kept: Path, progress: Progress
) -> _Work:
    source = _open_source(recipe, checkpoint, progress)
    plan = plan_checkpoint(recipe, source.config, str(source.path / "config.json"))
    plan.require()
    searched = any(t.encoding.quantized and not t.encoding.on_grid for t in plan.stored())
    searched = searched or recipe.imatrix is not None or deciding.may_need_ggml(plan)
    if searched:
        ggml.library()  # the one package that may be missing, looked for before anything long
    required = [t.role.key for t in plan.needing_importance]
    importance: Mapping[str, NDArray[np.float32]] = (
        read_importance(Path(recipe.imatrix), plan.decoder, required) if recipe.imatrix else {}
    )
    roles, adapters = plan.decoder.roles(), open_adapters(recipe.adapters, plan.decoder)
    tensors = merge(account(source, roles), roles, adapters)
    if adapters:
        merged = [{"name": adapter.path.name, "sha256": adapter.sha256} for adapter in adapters]
        plan = replace(plan, recorded={**plan.recorded, "adapters": merged})
    widest = max(t.nbytes // (2 * t.shape[0]) for t in tensors.values())
    needed = max(DEFAULT_RAM, largest(stages(plan)).nbytes)
    max_ram = needed if asked is None else asked
    budget = divide(max_ram, widest, formats=len(formats), heavy=searched)
    require_memory(stages(plan), max_ram)
    text = open_text(source, plan)
    forms = [draw_up(name, plan, text, source.revision) for name in formats]
    for form in forms:
        require_size(recipe, f"weights and tokenizer of {form.name}", _least_size(form, text))
    _check_space(plan, forms, [PartialExport(kept.parent / form.name, "") for form in forms])
    gate = open_gate(recipe.accept, text.tokenizer, source.path, plan.rope_positions)
    calibration = obtain_tokens(plan, CheckpointWeights(tensors), text, progress, kept, _weights_digest(plan, source))
    if recipe.calibration:
        recorded = record(recipe.calibration, calibration)
        plan = replace(plan, recorded={**plan.recorded, "calibration": recorded})
    if decides(plan):
        plan, importance = _decide(plan, source, CheckpointWeights(tensors), calibration, kept, progress)
        forms = [draw_up(name, plan, text, source.revision) for name in formats]
    return _Work(plan, source, tensors, importance, text, forms, budget, max_ram, gate, calibration)


def _weights_digest(plan: Plan, source: Checkpoint) -> str:
    """Names the float weights, adapters merged."""
    named = json.dumps([fingerprint(source), plan.recorded.get("adapters")])
    return hashlib.sha256(named.encode()).hexdigest()


def _decide(
    plan: Plan, source: Checkpoint, weights: CheckpointWeights, tokens: Tokens, kept: Path, progress: Progress
) -> tuple[Plan, Mapping[str, NDArray[np.float32]]]:
    """The plan with the types that the text decides on, where its scheme is mixed, and the importance of inputs."""
    found = deciding.decide(plan, weights, tokens, kept, _weights_digest(plan, source), progress)
    if found.chosen:
        names = {role.key: role.tensor for role in plan.decoder.roles()}
        chosen = {names[key]: encoding for key, encoding in found.chosen.items()}
        recorded = {**plan.recorded, "chosen": chosen}
        plan = plan_checkpoint(plan.recipe, source.config, str(source.path / "config.json"), found.chosen)
        plan = replace(plan, recorded=recorded)
        plan.require()
        progress.note(mixing.described(plan))
    return plan, found.importance


def _least_size(form: Format, text: TextSide) -> int:
    """Bytes that an artifact has at least, known before the long work: without graph and acceptance test."""
    return form.size + sum(map(len, text.files.values()))


def _run_until_accepted(work: _Work, finals: Mapping[str, Path], force: bool, progress: Progress) -> _Work:
    """Run the export, and again with tensors raised while it is refused and its recipe has it repaired."""
    for _ in range(REPAIRS):
        try:
            _run(work, finals, force, progress)
            return work
        except FidelityError as refusal:
            if not (work.plan.recipe.accept.repair and refusal.raises):
                raise
            progress.note(refusal.message)
            work = _raise(work, refusal, progress)
    _run(work, finals, force, progress)
    return work


def _raise(work: _Work, refusal: FidelityError, progress: Progress) -> _Work:
    """The work with other encodings for some tensors, by role key; the manifest will say so."""
    old, config, raises = work.plan, str(work.source.path / "config.json"), refusal.raises
    names = {role.key: role.tensor for role in old.decoder.roles()}
    raised = {**old.recorded.get("raised", {}), **{names[key]: encoding for key, encoding in raises.items()}}
    progress.note(f"repair: raised to 8 bits: {len(raises)} more, {len(raised)} in all; exporting again")
    plan = plan_checkpoint(old.recipe, work.source.config, config, {**old.chosen, **raises})
    plan = replace(plan, recorded={**old.recorded, "raised": raised})
    forms = [draw_up(form.name, plan, work.text, work.source.revision) for form in work.forms]
    for form in forms:
        least = _least_size(form, work.text)
        if over(plan.recipe, least):
            raise FidelityError(
                f"{refusal.message}\nA repair, with {len(raised)} tensors raised to 8 bits, would go over "
                f"accept.size_mb: {described(plan.recipe, least)} for weights and tokenizer of {form.name}.",
                hint="raise accept.size_mb, or allow a larger loss",
            )
    plan.require()
    return replace(work, plan=plan, forms=forms)


def _run(work: _Work, finals: Mapping[str, Path], force: bool, progress: Progress) -> None:
    digest = work.digest()
    with ExitStack() as stack:
        partials = [stack.enter_context(PartialExport(finals[f.name], digest, force=force)) for f in work.forms]
        for form, partial in zip(work.forms, partials, strict=True):
            _tell_what_was_found(partial, form, progress)
        _check_space(work.plan, work.forms, partials)
        digests = _write_weights(work, partials, progress)
        plan, floats = work.plan, CheckpointWeights(work.tensors)
        if work.gate:
            with work.forms[0].weights(partials[0].directory) as stored:  # every format's numbers
                found = measure(work.gate, plan, floats, stored, progress)
            plan = replace(plan, recorded={**plan.recorded, "fidelity": work.gate.record(found)})
        for form, partial, data_digest in zip(work.forms, partials, digests, strict=True):
            # Every format holds the same numbers, so one acceptance test serves all of them.
            tested, asked = partials[0].directory, floats if work.fidelity else None
            seal(partial.directory, form, plan, work.source, work.text, data_digest, tested, progress, asked)
        shutil.rmtree(partials[0].directory / STORE, ignore_errors=True)
        for form, partial in zip(work.forms, partials, strict=True):
            require_size(plan.recipe, f"the {form.name} artifact", directory_size(partial.directory))
        for partial in partials:
            partial.publish()


def refuse_existing(finals: Iterable[Path], force: bool) -> None:
    """Before anything is read: the cheapest mistake to find."""
    for final in finals:
        if final.exists() and not final.is_dir():
            raise ArtifactError(
                f"{final}: expected a directory, or nothing yet, found a file; nothing was written.",
                hint="move it away, or pass another --out",
            )
        if final.exists() and not force:
            raise ArtifactError(
                f"{final} exists already; nothing was written.",
                hint="pass --force (make: FORCE=1) to replace it, --format for another one only, or another --out",
            )


def _open_source(recipe: Recipe, checkpoint: Path | None, progress: Progress) -> Checkpoint:
    if checkpoint is not None:
        return open_checkpoint(checkpoint)
    path, revision = fetch(recipe.source, "all", progress=downloads(progress))
    return open_checkpoint(path, revision)


def _tell_what_was_found(partial: PartialExport, form: Format, progress: Progress) -> None:
    if partial.found == "resumed":
        kept = len(partial.finished)
        progress.note(f"{form.name}: an interrupted export was found: {kept} of {len(form.starts)} tensors are kept")
    elif partial.found == "discarded":
        progress.note(
            f"{form.name}: an interrupted export of another recipe, checkpoint or version was found: starting over"
        )


def _check_space(plan: Plan, forms: Sequence[Format], partials: Sequence[PartialExport]) -> None:
    stores = (partials[0].final.parent / MEASURED, partials[0].directory / STORE)
    beside = max(0, store_bytes(plan) + deciding.store_bytes(plan) - sum(map(directory_size, stores)))
    files = [partial.directory / form.data_file for form, partial in zip(forms, partials, strict=True)]
    held = sum(file.stat().st_blocks * 512 for file in files if file.exists())
    needed = sum(form.size + SEAL_SPACE for form in forms) + beside - held
    free = shutil.disk_usage(partials[0].final.parent).free
    if free < needed:
        raise ResourceError(
            f"{partials[0].final.parent}: expected {format_size(needed)} of free disk, found {format_size(free)}. "
            f"The artifact would not fit; nothing was written.",
            hint="free some space or pass --out on another disk, then run the same command again",
        )


def _write_weights(work: _Work, partials: Sequence[PartialExport], progress: Progress) -> list[str]:
    """Stream every tensor that is not yet finished into the formats' data files; returns their sha256."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(Output(f, p)) for f, p in zip(work.forms, partials, strict=True)]
        codes = _chosen_before(work, outputs, progress)
        jobs = list(_jobs(work, outputs, codes))
        progress.start(sum(job.tensor.nbytes for job in jobs), work.plan.recipe.name)
        with closing(stream(jobs, work.budget)) as steps:
            for step in steps:
                progress.advance(step.nbytes, step.job.tensor.name)
                for output in outputs:
                    if output in step.job.sinks:
                        output.note(step.job.key, step.nbytes, step.done)
        digests = [output.finish() for output in outputs]
        progress.finish()
        return digests


def _chosen_before(work: _Work, outputs: Sequence[Output], progress: Progress) -> Mapping[str, StoredCodes]:
    """The codes that a calibrated algorithm chose, where a file still misses some."""
    if not any(output.wants(key) for output in outputs for key in calibrated(work.plan)):
        return {}
    weights, directory = CheckpointWeights(work.tensors), outputs[0].partial.directory
    return choose_codes(work.plan, weights, work.calibration, directory, progress)


def _jobs(work: _Work, outputs: Sequence[Output], codes: Mapping[str, StoredCodes]) -> Iterator[Job]:
    for planned in work.plan.stored():
        key = planned.role.key
        sinks = [output for output in outputs if output.wants(key)]
        if sinks:
            # A head of its own in a tied model is made from the embedding's weights.
            tensor = work.tensors.get(key) or work.tensors["embed.weight"]
            yield Job(key, tensor, planned.encoding, sinks, work.importance.get(key), codes.get(key))


@contextmanager
def storage_errors(out: Path, *, resumes: bool = True) -> Iterator[None]:
    """Full disks, unwritable directories and exhausted memory, said as what they are."""
    kept, again = (" What was finished is kept.", ": it resumes") if resumes else ("", "")
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            f"memory ran out during the export.{kept}",
            hint="close other programs or pass a smaller --max-ram, then run the same command again",
        ) from error
    except OSError as error:
        where = error.filename or out
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"{where}: {error.strerror}. No artifact was written.{kept}",
                hint=f"free some space, then run the same command again{again}",
            ) from error
        raise ArtifactError(
            f"{where}: {error.strerror or error}. No artifact was written.",
            hint="check that --out names a directory you may write to, and that its disk is healthy",
        ) from error
