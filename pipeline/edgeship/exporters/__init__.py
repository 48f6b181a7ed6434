"""Other exporters than our own: each a module satisfying `Exporter`, whose tools run in an environment of their own.

To add one: write its module and worker, an extra of its name in pyproject.toml, its fields in `edgeship.exporter`, and
a line in `EXPORTERS`.
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from pathlib import Path

from edgeship.build import ExportReport, refuse_existing, storage_errors
from edgeship.exporters import olive, optimum
from edgeship.exporters.base import Exporter, Job, open_source
from edgeship.exporters.environment import Environment, require
from edgeship.memory import peak_rss
from edgeship.partial import PartialExport
from edgeship.progress import Progress
from edgeship.recipe import Recipe
from edgeship.size_limit import directory_size, require_size
from edgeship_runtime.cpu import usable_cores

EXPORTERS: dict[str, Exporter] = {"optimum": optimum, "olive": olive}
FORMAT = "onnx"


def check(recipe: Recipe, progress: Progress) -> Environment:
    """The environment for a recipe. Raises EdgeshipError where it is missing, or the options are not taken."""
    environment = require(recipe.exporter)
    EXPORTERS[recipe.exporter].check(recipe, environment, progress)
    return environment


def export(recipe: Recipe, *, checkpoint: Path | None, out: Path, force: bool, progress: Progress) -> ExportReport:
    """Export a recipe of another exporter to `out/<recipe name>/onnx/` and report what it took.

    The peak is that of the exporter's process, which no limit holds. Raises EdgeshipError of every kind; an artifact
    directory exists afterwards only if it is whole.
    """
    started = time.perf_counter()
    final = out / recipe.name / FORMAT
    with storage_errors(out, resumes=False):
        refuse_existing([final], force)
        environment = check(recipe, progress)
        source = open_source(recipe, checkpoint, progress)
        # Nothing that an interrupted run left is of use to another: the exporters start over.
        digest = f"{recipe.exporter} {time.time_ns()}"
        with PartialExport(final, digest, force=force, resumable=False) as partial:
            progress.start(0, f"{recipe.name} through {recipe.exporter}")
            with partial.scratch() as scratch:
                environment = replace(environment, scratch=scratch)
                job = Job(recipe, source, environment, partial.directory, scratch, usable_cores(), progress)
                made = EXPORTERS[recipe.exporter].write(job)
            progress.finish()
            progress.note(made.summary)
            require_size(recipe, f"the {FORMAT} artifact", directory_size(partial.directory))
            partial.publish()
    size = directory_size(final)
    peak = max(peak_rss(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
    return ExportReport(
        artifact=out / recipe.name,
        formats=(FORMAT,),
        seconds=round(time.perf_counter() - started, 2),
        peak_rss_mb=round(peak / 1e6, 1),
        size_mb=round(size / 1e6, 2),
        bits_per_weight=made.bits_per_weight,
        source_revision=source.revision,
    )
