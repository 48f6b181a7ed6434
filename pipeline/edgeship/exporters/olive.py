"""Olive's passes: a workflow written from the recipe, checked by Olive's own schema before it starts, then sealed.

What it makes has to be what onnxruntime-genai reads: a graph with a KV cache, and genai_config.json beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeship import archs
from edgeship.acceptance.chats import Prompt, prompts, write_chats
from edgeship.acceptance.fidelity import write_fidelity
from edgeship.acceptance.files import SCHEMA
from edgeship.acceptance.golden import LAST_POSITIONS, TIE_TOLERANCE_QUANTIZED, TOP, Sample, golden_tokens, places_of
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.checkpoint.files import TOKENIZER
from edgeship.errors import ArchitectureError, CheckpointError, DependencyError, ExporterError
from edgeship.exporter import Olive
from edgeship.exporters import environment as environments
from edgeship.exporters.base import (
    Job,
    Made,
    described,
    manifest,
    ship,
    weight_bytes,
    whole,
    write_card,
)
from edgeship.exporters.environment import Environment
from edgeship.progress import Progress
from edgeship.recipe import Recipe
from edgeship.reference.weights import CheckpointWeights
from edgeship.tokenizer import GENERATION, TOKENIZER_CONFIG, chat_templates, open_tokenizer, special_tokens
from edgeship_runtime.acceptance import GOLDEN
from edgeship_runtime.chat import load_template
from edgeship_runtime.engines import Engine, open_engine
from edgeship_runtime.errors import DependencyError as MissingPackage
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.facts import SamplingDefaults, WeightFacts
from edgeship_runtime.manifest import GENAI_NAME, Manifest, read_manifest, write_manifest

# Of what Olive writes this is the model; tokenizer and templates are the checkpoint's own.
KEPT = ("model.onnx", "model.onnx.data", GENAI_NAME)


def check(recipe: Recipe, environment: Environment, progress: Progress) -> None:
    """Let Olive's schema check passes and data sets. Raises ExporterError listing what it does not take."""
    progress.note("olive: checking the workflow")
    environments.run(environment, "workflow", _request(recipe), progress)


def _request(recipe: Recipe) -> dict[str, Any]:
    options = recipe.olive or Olive()
    return {"passes": list(options.passes), "data_configs": list(options.data_configs)}


def write(job: Job) -> Made:
    """Run the workflow, and seal what it made."""
    vocab = whole(job.source.config, "vocab_size")
    tokenizer = open_tokenizer(job.source.path / TOKENIZER, vocab)
    special = special_tokens(job.source.path, job.source.config, tokenizer)
    templates = chat_templates(job.source.path)
    made = job.scratch / "made"
    where = {
        "checkpoint": str(job.source.path.resolve()),
        "out": str(made),
        "cache": str(job.scratch / "cache"),
    }
    answer = environments.run(job.environment, "workflow", _request(job.recipe) | where, job.progress)
    _take(made, job.directory)
    for name, text in templates.items():
        (job.directory / name).parent.mkdir(exist_ok=True)
        (job.directory / name).write_text(text, encoding="utf-8")
    files = ship(job, [TOKENIZER, TOKENIZER_CONFIG, GENERATION])
    try:
        facts = read_manifest(job.directory).model
    except EdgeshipRuntimeError as error:
        raise ExporterError(f"exporter: olive: {error.message}.", hint="its output is no generating model") from None
    facts = replace(
        facts,
        default_context=min(job.recipe.context, facts.context_length),
        bos_token_id=special.bos,
        eos_token_ids=special.eos,
        pad_token_id=special.pad,
    )
    size, count = weight_bytes(files), _parameters(job)
    weights = WeightFacts(round(min(64.0, 8 * size / count), 4), {"body": "by Olive"})
    sampling = SamplingDefaults(**job.recipe.sampling.model_dump())
    found = manifest(job, facts, sampling, files, weights)
    with _blamed():
        template = load_template(job.directory, found)
        write_chats(job.directory, template, tokenizer)
        _write_golden(job, found, prompts(template, tokenizer), str(answer["made_with"]), count)
    summary = f"passes: {', '.join(str(each['type']) for each in (job.recipe.olive or Olive()).passes)}"
    write_card(
        job, facts.type, "text-generation", count, size, summary, 'edgeship-runtime run . "Once upon a time" --raw'
    )
    found = replace(found, files=described(job.directory))
    write_manifest(job.directory, found)
    return Made(round(8 * size / count, 3), summary)


def _take(made: Path, directory: Path) -> None:
    """Move the model out of what Olive wrote; raises ExporterError where it is not one that can be run."""
    missing = [name for name in (KEPT[0], GENAI_NAME) if not (made / name).is_file()]
    if missing:
        there = ", ".join(sorted(path.name for path in made.glob("*"))[:12]) or "nothing"
        raise ExporterError(
            f"exporter: olive: expected {' and '.join(missing)} from the workflow, found {there}.",
            hint="a workflow ends with a model that onnxruntime-genai runs: let its first pass that writes ONNX be "
            "ModelBuilder",
        )
    data = sorted(path.name for path in made.glob("*.data"))
    if set(data) - set(KEPT):
        raise ExporterError(
            f"exporter: olive: expected the weights in {KEPT[1]}, found {', '.join(data)}.",
            hint="leave the names of files to Olive",
        )
    for name in KEPT:
        if (made / name).exists():
            (made / name).replace(directory / name)


def _parameters(job: Job) -> int:
    """Weights of the checkpoint; a head beside tied embeddings is stored again and counts not."""
    tensors = open_checkpoint(job.source.path).tensors.values()
    tied = job.source.config.get("tie_word_embeddings") is True
    return sum(math.prod(t.shape) for t in tensors if not (tied and t.name == "lm_head.weight")) or 1


@contextmanager
def _blamed() -> Iterator[None]:
    """What the runtime finds wrong here is wrong with what was exported, or with its own packages."""
    try:
        yield
    except MissingPackage as error:
        raise DependencyError(f"{error.message}.", hint=error.hint) from None
    except EdgeshipRuntimeError as error:
        hint = "change olive.passes or their options; what each does: https://microsoft.github.io/Olive"
        raise ExporterError(f"exporter: olive: its output does not run: {error.message}.", hint=hint) from None


def _write_golden(job: Job, made: Manifest, asked: Sequence[Prompt], made_with: str, parameters: int) -> None:
    """Golden values from the artifact itself, run here: a board is compared with this machine."""
    tokens = golden_tokens(parameters)
    fitting = [prompt for prompt in asked if len(prompt.ids) + tokens <= made.model.default_context]
    context = max((len(prompt.ids) + tokens for prompt in fitting), default=1)
    with closing(open_engine(job.directory, made, context=context, threads=job.threads)) as engine:
        sample = Sample(sum(places_of(len(prompt.ids), tokens) for prompt in fitting))
        cases = [
            _continue(engine, prompt, tokens, made.model.eos_token_ids, sample, number)
            for number, prompt in enumerate(fitting)
        ]
        with_engine = f"{engine.name} on the exporting machine, {made_with}"
        golden = {"schema": SCHEMA, "made_with": with_engine, "tie_tolerance": TIE_TOLERANCE_QUANTIZED, "cases": cases}
        file = job.directory / GOLDEN
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    if sample.logits:
        _write_fidelity(job, sample)


def _write_fidelity(job: Job, sample: Sample) -> None:
    """The float model's predictions, by our own pass over the checkpoint, where its architecture is known."""
    path = job.source.path
    try:
        decoder = archs.read(job.source.config, str(path / "config.json"))
    except ArchitectureError:
        job.progress.note("acceptance test: the architecture is not known here, so there are no float predictions")
        return
    job.progress.note("acceptance test: the float model's predictions")
    floats = CheckpointWeights(account(open_checkpoint(path), decoder.roles()))
    write_fidelity(job.directory, decoder, floats, sample.logits)


def _continue(
    engine: Engine, prompt: Prompt, tokens: int, stop: Sequence[int], sample: Sample, number: int
) -> dict[str, Any]:
    """A prompt's greedy continuation, and the largest logits of its last positions; `number`: the case's."""
    engine.truncate(0)
    continuation: list[int] = []
    positions: list[dict[str, Any]] = []
    first = max(0, len(prompt.ids) - LAST_POSITIONS)
    for index in range(first, len(prompt.ids) + tokens - 1):
        every = [*prompt.ids, *continuation]
        logits = engine.evaluate(every[engine.length : index + 1])
        if not np.isfinite(logits).all():
            raise CheckpointError(
                "expected finite logits from the model, found NaN or infinity. The artifact would answer with garbage.",
                hint="the checkpoint is damaged, or a pass lost its weights",
            )
        if sample.choose(1):
            sample.logits[number, index] = logits.copy()
        best = np.argsort(-logits, kind="stable")[:TOP]
        positions.append(
            {
                "index": index,
                "top_ids": best.tolist(),
                "top_logits": [round(float(each), 4) for each in logits[best]],
                "std": round(float(logits.std()), 4),
            }
        )
        if index >= len(prompt.ids) - 1:
            continuation.append(int(best[0]))
            if continuation[-1] in stop:
                break
    return {
        "name": prompt.name,
        "prompt_ids": list(prompt.ids),
        "continuation": continuation,
        "positions": positions,
    }
