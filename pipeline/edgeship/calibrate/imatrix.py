"""An importance matrix of a checkpoint, measured on a recipe's calibration text and written for llama-quantize."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from edgeship.calibrate.export import obtain_tokens
from edgeship.calibrate.statistics import statistics
from edgeship.calibration_stages import looking, require_memory
from edgeship.checkpoint.adapters import merge, open_adapters
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.checkpoint.hub import fetch
from edgeship.conflicts import text_conflicts
from edgeship.errors import ArtifactError, PlanError, RecipeError
from edgeship.memory import peak_rss
from edgeship.plan import plan_checkpoint
from edgeship.progress import Progress, downloads
from edgeship.quant.importance import write_importance
from edgeship.recipe import Recipe
from edgeship.reference.weights import CheckpointWeights
from edgeship.text import open_text

CHANGE = "change the recipe as listed"


@dataclass(frozen=True)
class ImatrixReport:
    """What was written; the peak in MB of 10^6 bytes."""

    file: Path
    matrices: int
    tokens: int
    seconds: float
    peak_rss_mb: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"file": str(self.file)}


def make_imatrix(
    recipe: Recipe, *, checkpoint: Path | None, out: Path, max_ram: int | None, force: bool, progress: Progress
) -> ImatrixReport:
    """Measure the inputs of every linear layer on the recipe's calibration text and write them to the file `out`.

    `checkpoint` replaces the recipe's source; `max_ram` is in bytes, None: whatever it takes. Raises RecipeError
    without calibration text, ArtifactError where the file exists or cannot be written, and EdgeshipError as an export
    does.
    """
    started, section = time.perf_counter(), recipe.calibration
    if recipe.exporter != "native":
        raise RecipeError(
            f"{recipe.name}: expected a recipe of our own exporter, found exporter: {recipe.exporter}.",
            hint="an importance matrix is measured by our own pass: take a recipe without exporter",
        )
    if section is None:
        raise RecipeError(
            f"{recipe.name}: expected calibration text to measure on, found none.",
            hint="set calibration in the recipe: text, chats, or {} for text that the model writes itself",
        )
    if out.exists() and not force:
        raise ArtifactError(f"{out} exists already; nothing was written.", hint="pass --force, or another --out")
    _require_writable(out)
    source = open_checkpoint(*((checkpoint,) if checkpoint else fetch(recipe.source, progress=downloads(progress))))
    plan = plan_checkpoint(recipe, source.config, str(source.path / "config.json"))
    if problems := list(text_conflicts(plan)):
        listed = "\n".join(f"  - {each}" for each in problems)
        raise PlanError(f"{recipe.name} cannot be measured on; nothing was written.\n{listed}", hint=CHANGE)
    if max_ram is not None:
        require_memory(looking(section, plan.decoder), max_ram)
    roles = plan.decoder.roles()
    adapters = open_adapters(recipe.adapters, plan.decoder)
    weights = CheckpointWeights(merge(account(source, roles), roles, adapters))
    tokens = obtain_tokens(plan, weights, open_text(source, plan), progress)
    found = statistics(plan.decoder, weights, tokens, progress=progress)
    dataset = section.file.name if section.file else "text the model wrote"
    write_importance(out, found, plan.decoder, dataset=dataset, chunk=section.length)
    return ImatrixReport(
        file=out,
        matrices=sum(role.part == "body" for role in roles),
        tokens=sum(map(len, tokens)),
        seconds=round(time.perf_counter() - started, 2),
        peak_rss_mb=round(peak_rss() / 1e6, 1),
    )


def _require_writable(out: Path) -> None:
    """Before the long work: ArtifactError where no file can be made beside `out`, or it is a directory."""
    if not out.parent.is_dir():
        raise ArtifactError(f"{out}: its directory does not exist.", hint="give --out a file in one that does")
    if out.is_dir():
        raise ArtifactError(f"{out}: expected a file, found a directory.", hint="give --out a file in it")
    try:
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise ArtifactError(
            f"{out}: cannot be written: {error.strerror or error}.",
            hint="give a file in a directory that you may write to",
        ) from error
