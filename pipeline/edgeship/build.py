"""Runs a plan: obtain the checkpoint, read, quantize, write, seal, publish. Resumable, atomic, in bounded memory."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeship import __version__
from edgeship.checkpoint.checkpoint import Checkpoint, account, fingerprint, open_checkpoint
from edgeship.checkpoint.hub import fetch
from edgeship.errors import ArtifactError, ResourceError
from edgeship.formats.onnx.graph import make_model
from edgeship.formats.onnx.layout import Layout, lay_out
from edgeship.formats.onnx.write import DataFile, TrailingHash, final_before
from edgeship.memory import Budget, divide, peak_rss
from edgeship.partial import PartialExport
from edgeship.plan import Plan, plan_checkpoint
from edgeship.progress import Progress, downloads
from edgeship.recipe import Recipe
from edgeship.seal import DATA_FILE, GRAPH_FILE, open_text, seal
from edgeship.sizes import format_size
from edgeship.stream import Job, stream
from edgeship.tensors import LazyTensor

SYNC_EVERY = 256 << 20  # bytes of the checkpoint between two syncs: what a power cut costs at most
SEAL_SPACE = 64 << 20  # tokenizer, graph and acceptance files, rounded up


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
    max_ram: int,
    force: bool,
    progress: Progress,
) -> ExportReport:
    """Export a recipe to `out/<recipe name>/<format>/` and report what it took.

    `checkpoint` replaces the recipe's source by a local directory; `max_ram` is in bytes. Raises EdgeshipError of
    every kind; an artifact directory exists afterwards only if it is whole.
    """
    started = time.perf_counter()
    final = out / recipe.name / "onnx"
    with _storage_errors(out):
        _refuse_before_work(final, force)
        source = _open_source(recipe, checkpoint, progress)
        plan = plan_checkpoint(recipe, source.config, str(source.path / "config.json"))
        plan.require()
        tensors = account(source, plan.decoder.roles())
        budget = divide(max_ram, max(t.nbytes // (2 * t.shape[0]) for t in tensors.values()))
        layout = lay_out(plan)
        text = open_text(source, plan)
        with PartialExport(final, _digest(plan, source), force=force) as partial:
            _tell_what_was_found(partial, plan, progress)
            _check_space(partial, layout)
            data_digest = _write_weights(partial, plan, layout, tensors, budget, progress)
            _write_graph(partial.directory, plan, layout)
            seal(partial.directory, plan, layout, source, {DATA_FILE: data_digest}, progress, text)
            partial.publish()
    size = sum(p.stat().st_size for p in final.rglob("*") if p.is_file())
    seconds, peak = time.perf_counter() - started, peak_rss()
    if peak > max_ram:
        progress.note(f"peak memory {format_size(peak)} went over --max-ram {format_size(max_ram)}")
    return ExportReport(
        artifact=final.parent,
        formats=tuple(formats),
        seconds=round(seconds, 2),
        peak_rss_mb=round(peak / 1e6, 1),
        size_mb=round(size / 1e6, 2),
        bits_per_weight=round(plan.bits_per_weight, 3),
        source_revision=source.revision,
    )


def _refuse_before_work(final: Path, force: bool) -> None:
    if final.exists() and not force:
        raise ArtifactError(
            f"{final} exists already; nothing was written.",
            hint="pass --force (make: FORCE=1) to replace it, or another --out",
        )


def _open_source(recipe: Recipe, checkpoint: Path | None, progress: Progress) -> Checkpoint:
    if checkpoint is not None:
        return open_checkpoint(checkpoint)
    path, revision = fetch(recipe.source, "all", progress=downloads(progress))
    return open_checkpoint(path, revision)


def _digest(plan: Plan, source: Checkpoint) -> str:
    """Identifies the bytes an export would write, so that only the same work is resumed."""
    work = [__version__, plan.recipe.resolved(), fingerprint(source)]
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()


def _tell_what_was_found(partial: PartialExport, plan: Plan, progress: Progress) -> None:
    if partial.found == "resumed":
        total = sum(1 for _ in plan.stored())
        progress.note(f"an interrupted export was found: {len(partial.finished)} of {total} tensors are kept")
    elif partial.found == "discarded":
        progress.note("an interrupted export of another recipe, checkpoint or version was found: starting over")


def _check_space(partial: PartialExport, layout: Layout) -> None:
    data = partial.directory / DATA_FILE
    held = data.stat().st_blocks * 512 if data.exists() else 0
    needed, free = layout.size - held + SEAL_SPACE, shutil.disk_usage(partial.directory).free
    if free < needed:
        raise ResourceError(
            f"{partial.final.parent}: expected {format_size(needed)} of free disk, found {format_size(free)}. "
            f"The artifact would not fit; nothing was written.",
            hint="free some space or pass --out on another disk, then run the same command again",
        )


def _write_weights(
    partial: PartialExport,
    plan: Plan,
    layout: Layout,
    tensors: dict[str, LazyTensor],
    budget: Budget,
    progress: Progress,
) -> str:
    """Stream every tensor that is not yet finished into the data file; returns the file's sha256."""
    jobs = [
        Job(p.role.key, tensors.get(p.role.key) or tensors["embed.weight"], p.encoding)
        for p in layout.places
        if p.role.key not in partial.finished
    ]
    data = DataFile(partial.directory / DATA_FILE, layout)
    hashing = TrailingHash(data)
    try:
        progress.start(sum(job.tensor.nbytes for job in jobs), plan.recipe.name)
        unfinished = {job.key: data.places[job.key] for job in jobs}
        fresh, unsynced = [], 0
        for step in stream(jobs, [data], budget):
            progress.advance(step.nbytes, step.job.tensor.name)
            unsynced += step.nbytes
            if step.done:
                fresh.append(step.job.key)
                del unfinished[step.job.key]
                hashing.advance(final_before(list(unfinished.values()), layout.cos.offset))
            if unsynced >= SYNC_EVERY and fresh:
                data.sync()
                partial.record(fresh)
                fresh, unsynced = [], 0
        data.put_rope(plan.decoder.rope)
        data.sync()
        partial.record(fresh)
        progress.finish()
        return hashing.finish()
    finally:
        hashing.abandon()
        data.close()


def _write_graph(directory: Path, plan: Plan, layout: Layout) -> None:
    model = make_model(plan, layout, DATA_FILE)
    (directory / GRAPH_FILE).write_bytes(model.SerializeToString(deterministic=True))


@contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    """Full disks, unwritable directories and exhausted memory, said as what they are."""
    try:
        yield
    except MemoryError as error:
        raise ResourceError(
            "memory ran out during the export. What was finished is kept.",
            hint="close other programs or pass a smaller --max-ram, then run the same command again",
        ) from error
    except OSError as error:
        where = error.filename or out
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"{where}: {error.strerror}. No artifact was written; what was finished is kept.",
                hint="free some space, then run the same command again: it resumes",
            ) from error
        raise ArtifactError(
            f"{where}: {error.strerror or error}. No artifact was written.",
            hint="check that --out names a directory you may write to, and that its disk is healthy",
        ) from error
