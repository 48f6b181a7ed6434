"""What an exporter is, and what is common to those that run in an environment of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx
import yaml

from edgeship import __version__
from edgeship.checkpoint.checkpoint import Checkpoint, read_config
from edgeship.checkpoint.files import INDEX, choose_weights, read_limited, require_tokenizer, side_files
from edgeship.checkpoint.hub import fetch
from edgeship.checkpoint.safetensors import check_shard
from edgeship.errors import CheckpointError
from edgeship.exporters.environment import Environment
from edgeship.formats.onnx.graph import operators
from edgeship.progress import Progress, downloads
from edgeship.recipe import Recipe
from edgeship.sizes import format_count, format_size
from edgeship_runtime.manifest import (
    Budgets,
    FileEntry,
    Hints,
    Manifest,
    ModelFacts,
    SamplingDefaults,
    SourceFacts,
    WeightFacts,
    describe_file,
)

MODEL = "model.onnx"
NEEDED = {"onnxruntime": ">=1.23"}


@dataclass(frozen=True)
class Job:
    """One export: everything is written into `directory`, which becomes the artifact when it is whole."""

    recipe: Recipe
    source: Checkpoint
    environment: Environment
    directory: Path
    scratch: Path  # for what does not go into the artifact
    threads: int
    progress: Progress


@dataclass(frozen=True)
class Made:
    """What an exporter wrote: the weights' bits, and how many there are."""

    bits_per_weight: float
    summary: str  # for people: how close the artifact is to the float model


class Exporter(Protocol):
    """A module of this package."""

    def check(self, recipe: Recipe, environment: Environment, progress: Progress) -> None:
        """Refuse the recipe's options before anything is downloaded. Raises EdgeshipError."""

    def write(self, job: Job) -> Made:
        """Write and seal the artifact. Raises EdgeshipError."""


def open_source(recipe: Recipe, checkpoint: Path | None, progress: Progress) -> Checkpoint:
    """The checkpoint given, or the recipe's own, without its tensors: what loads them has a mind of its own on these.

    Raises EdgeshipError as `fetch` and `open_checkpoint` do: weights that are pickles, or cut short, are refused.
    """
    path, revision = checkpoint, "local"
    if path is None:
        path, revision = fetch(recipe.source, "all", progress=downloads(progress))
    config = read_config(path)
    names = {file.name for file in path.iterdir() if file.is_file()}
    weights = choose_weights(names, str(path), lambda: read_limited(path / INDEX))
    require_tokenizer(names, str(path))
    for name in weights:
        check_shard(path / name)
    files = sorted({*side_files(names), *weights})
    return Checkpoint(path, config, {}, revision, tuple(path / name for name in files))


def ship(job: Job, names: list[str]) -> dict[str, FileEntry]:
    """Copy those of the checkpoint's files that exist into the artifact; every file that lies in it now."""
    for name in [*names, *(file.name for file in job.source.files if file.name.startswith("LICENSE"))]:
        found = job.source.path / name
        if found.is_file():
            (job.directory / name).write_bytes(found.read_bytes())
    return described(job.directory)


def described(directory: Path) -> dict[str, FileEntry]:
    """Size and digest of every file in a directory, by its name there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): describe_file(path) for path in files}


def manifest(
    job: Job,
    facts: ModelFacts,
    sampling: SamplingDefaults,
    files: Mapping[str, FileEntry],
    weights: WeightFacts,
    graphs: Sequence[str] = (MODEL,),
) -> Manifest:
    """The manifest of what another exporter made; `files` are those that are there so far."""
    used = {op for name in graphs for op in operators(onnx.load(job.directory / name, load_external_data=False))}
    source, recipe = job.source, job.recipe
    return Manifest(
        name=recipe.name,
        format="onnx",
        edgeship=__version__,
        source=SourceFacts(
            host="local" if source.revision == "local" else recipe.source.host,
            repo=recipe.source.repo,
            revision=source.revision,
        ),
        recipe=recipe.resolved(),
        model=facts,
        sampling=sampling,
        weights=weights,
        ops=tuple(sorted(used)),
        versions=NEEDED,
        budgets=Budgets(size_mb=recipe.accept.size_mb),
        files=files,
        hints=Hints(),
    )


def weight_bytes(files: Mapping[str, FileEntry]) -> int:
    """Bytes of the graphs and their weights."""
    return sum(entry.size for name, entry in files.items() if ".onnx" in name)


def whole(config: Mapping[str, Any], *keys: str) -> int:
    """A whole number above zero of config.json under the first of `keys` that it has. Raises CheckpointError."""
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"config.json: {keys[0]}: expected a whole number above zero, found {str(value)[:40]!r}.",
            hint="this exporter reads the fields of BERT and its kin; restore the file as it was published",
        )
    return value


CARD = """\
---
{front}---

# {name}

{description}{repo} ({kind}, {count} weights) as ONNX for CPUs, made by edgeship through {exporter}
from revision `{revision}`.

- size: {size}, {bits:.2f} bits per weight
- {summary}
{note}
```sh
pip install 'edgeship-runtime[ort]'
edgeship-runtime verify .
{example}
```

`acceptance/` holds what `verify` compares with; `edgeship.json` names every file with its size and sha256.
"""


def write_card(
    job: Job, kind: str, task: str, count: int, size: int, summary: str, example: str, note: str = ""
) -> None:
    """README.md of the artifact; `note`: what else is to be known of it."""
    recipe = job.recipe
    front = {
        "base_model": recipe.source.repo,
        "library_name": "onnxruntime",
        "pipeline_tag": task,
        "tags": ["onnx", "edgeship", recipe.exporter],
    }
    text = CARD.format(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        name=recipe.name,
        description=f"{recipe.description}\n\n" if recipe.description else "",
        repo=recipe.source.repo,
        kind=kind,
        count=format_count(count),
        exporter=recipe.exporter.capitalize(),
        revision=job.source.revision,
        size=format_size(size),
        bits=8 * size / count,
        summary=summary,
        note=f"- {note}\n" if note else "",
        example=example,
    )
    (job.directory / "README.md").write_text(text, encoding="utf-8")
