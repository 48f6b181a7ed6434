"""Models through Optimum, encoders here: exported and quantized in its environment, compared, and sealed."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgeship.checkpoint.files import TOKENIZER
from edgeship.checkpoint.strict_json import show
from edgeship.errors import CheckpointError, RecipeError
from edgeship.exporter import Optimum
from edgeship.exporters import environment as environments
from edgeship.exporters import seq2seq
from edgeship.exporters.agreement import least_cosine, read_answers, too_far
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
from edgeship.exporters.pooling import Modules, module_files, read_modules, sequence_limit
from edgeship.exporters.prompts import read_prompts, told
from edgeship.exporters.texts import TEXTS
from edgeship.progress import Progress
from edgeship.recipe import Recipe
from edgeship.tokenizer import TOKENIZER_CONFIG, open_tokenizer
from edgeship_runtime.encoder import CONFIG, GOLDEN, Pair, Scores, cosine, read_reading, read_scores
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.facts import EMBED, REWRITE, ModelFacts, SamplingDefaults, WeightFacts
from edgeship_runtime.manifest import Manifest, write_manifest

CALIBRATION_TEXTS = 1024
CALIBRATION_BYTES = 16 << 20

# Positions of these begin after the padding token's id.
SHIFTED = ("camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod", "longformer", "data2vec-text")
SIDE_FILES = [CONFIG, TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json"]


def check(recipe: Recipe, environment: Environment, progress: Progress) -> None:
    """Refuse what can be refused without the checkpoint: calibration texts that are not there."""
    options = recipe.optimum or Optimum()
    if options.calibration is not None:
        _calibration_texts(Path(options.calibration))


def write(job: Job) -> Made:
    """Export, quantize, compare and seal. Raises FidelityError where the artifact is too far from the float model."""
    options = job.recipe.optimum or Optimum()
    if job.source.config.get("auto_map"):
        raise CheckpointError(
            f"{job.source.path}: config.json: auto_map asks to run code that lies in the checkpoint; it is not run.",
            hint="use a checkpoint that transformers knows by itself",
        )
    if options.task == REWRITE:
        return seq2seq.write(job, options)
    encoder = _read(job, options)
    if encoder.note:
        job.progress.note(encoder.note)
    asked = [encoder.tokenizer.encode(text).ids for text in TEXTS]
    answer = environments.run(job.environment, "encoder", _request(job, options, encoder, asked), job.progress)
    if encoder.modules is not None:
        found = module_files(encoder.modules, encoder.facts.hidden_size, encoder.facts.context_length)
        for name, content in found.items():
            (job.directory / name).parent.mkdir(exist_ok=True)
            (job.directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    files = ship(job, SIDE_FILES)
    size, count = weight_bytes(files), int(answer["parameters"])
    kind = "float32" if options.quantization == "none" else "int8"
    weights = WeightFacts(round(min(64.0, 8 * size / count), 4), {"body": kind, "embeddings": kind})
    made = manifest(job, encoder.facts, SamplingDefaults(), files, weights)
    close = _compare(job, made, asked, str(answer["made_with"]))
    example = f"edgeship-runtime {'embed' if options.task == EMBED else 'classify'} . 'A text.'"
    write_card(job, encoder.facts.type, options.task, count, size, close, example, encoder.note)
    made = replace(made, files=described(job.directory))
    write_manifest(job.directory, made)
    return Made(round(8 * size / count, 3), close)


@dataclass(frozen=True)
class _Encoder:
    facts: ModelFacts
    tokenizer: Tokenizer  # cuts texts as the runtime does
    modules: Modules | None  # None: it classifies
    note: str  # what people have to know of it


def _read(job: Job, options: Optimum) -> _Encoder:
    """Everything of the checkpoint but its weights, checked before the long work."""
    config, path = job.source.config, job.source.path
    if config.get("is_encoder_decoder"):
        classifies = "Classification" in str(config.get("architectures"))
        raise CheckpointError(
            f"{path}: expected an encoder, found one with a decoder ({str(config.get('model_type'))[:40]}).",
            hint="classifiers with a decoder are not exported; choose one that is an encoder, as BERT and its kin are"
            if classifies
            else f"set optimum.task: {REWRITE}",
        )
    vocab, hidden = whole(config, "vocab_size"), whole(config, "hidden_size", "dim", "d_model")
    heads = whole(config, "num_attention_heads", "n_heads")
    tokenizer = open_tokenizer(path / TOKENIZER, vocab)
    pad = config.get("pad_token_id")
    pad = pad if isinstance(pad, int) and 0 <= pad < vocab else None
    kind = str(config.get("model_type", ""))[:100]
    positions = whole(config, "max_position_embeddings") - ((pad or 0) + 1 if kind in SHIFTED else 0)
    length = sequence_limit(path, tokenizer, options, positions)
    tokenizer.enable_truncation(length)
    modules = read_modules(path, options) if options.task == EMBED else None
    note = told(read_prompts(path), pooled=modules.prompts) if modules else ""
    if modules is None:
        _check_labels(path, options)
    facts = ModelFacts(
        type=kind,
        vocab_size=vocab,
        layers=whole(config, "num_hidden_layers", "n_layers"),
        kv_heads=heads,
        head_dim=max(1, hidden // heads),
        hidden_size=hidden,
        context_length=length,
        default_context=length,
        bos_token_id=None,
        eos_token_ids=(),
        pad_token_id=pad,
        logits="all",
        task=options.task,
    )
    return _Encoder(facts, tokenizer, modules, note)


def _check_labels(path: Path, options: Optimum) -> None:
    """Raise CheckpointError where config.json does not say what the outputs mean."""
    try:
        read_scores(path / CONFIG, options.task)
    except EdgeshipRuntimeError as error:
        raise CheckpointError(
            f"{error.message}.",
            hint="name the labels in config.json as transformers does: id2label: {0: negative, 1: positive}",
        ) from None


def _request(job: Job, options: Optimum, encoder: _Encoder, asked: Sequence[Sequence[int]]) -> dict[str, Any]:
    found = _calibration_texts(Path(options.calibration)) if options.calibration else []
    return {
        "checkpoint": str(job.source.path.resolve()),
        "out": str(job.directory.resolve()),
        "answers": str(job.scratch),
        "task": options.task,
        "quantization": options.quantization,
        "per_channel": options.per_channel,
        "calibration": [encoder.tokenizer.encode(text).ids for text in found],
        "cases": list(asked),
        "threads": job.threads,
    }


def _calibration_texts(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = file.read(CALIBRATION_BYTES).split("\n")
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 (byte {error.start})"
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        found = [line.strip() for line in lines if line.strip()]
        reason = "" if found else "it holds none"
    if reason:
        raise RecipeError(
            f"optimum.calibration: {path}: expected texts, one per line, but: {reason}.", hint="give some 100 of them"
        )
    return found[:CALIBRATION_TEXTS]


def _compare(job: Job, made: Manifest, asked: Sequence[Sequence[int]], made_with: str) -> str:
    """Write the float model's answers as golden values; how close the artifact's are, in words."""
    try:
        reading = read_reading(job.directory, made)
        scores = reading if isinstance(reading, Scores) else None
        read = replace(scores, function="none") if scores else reading
        floats, found = (
            [np.asarray(read(rows), np.float32).ravel() for rows in read_answers(job.scratch / name)]
            for name in ("float.npz", "made.npz")
        )
    except EdgeshipRuntimeError as error:
        raise CheckpointError(f"{job.source.path}: {error.message}.", hint=error.hint) from None
    pairs = list(zip(floats, found, strict=True))
    close = _classified(scores, pairs, job.recipe) if scores else _embedded(pairs, job.recipe)
    kind = "<f4" if scores else "<f2"  # a regression's values can be large, and close together
    cases = [
        {"text": text, "token_ids": list(ids), "values": base64.b64encode(values.astype(kind).tobytes()).decode()}
        for text, ids, values in zip(TEXTS, asked, floats, strict=True)
    ]
    golden = {
        "schema": 2 if scores else 1,
        "made_with": f"float32, {made_with}",
        "least_cosine": least_cosine(job.recipe),
        "cases": cases,
    }
    (job.directory / GOLDEN).parent.mkdir(exist_ok=True)
    (job.directory / GOLDEN).write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return close


def _embedded(pairs: Sequence[Pair], recipe: Recipe) -> str:
    """How close each vector is to the float model's, in words. Raises FidelityError where one is too far."""
    cosines = [cosine(*pair) for pair in pairs]
    worst, mean = min(cosines), sum(cosines) / len(cosines)
    if worst < least_cosine(recipe):
        text = show(TEXTS[cosines.index(worst)])
        raise too_far(recipe, f"to the float model, found {worst:.4f} at {text} (mean {mean:.4f})")
    return f"cosine similarity to the float model {mean:.4f}, at least {worst:.4f} ({len(cosines)} texts)"


def _classified(scores: Scores, pairs: Sequence[Pair], recipe: Recipe) -> str:
    """How close the logits of all texts are to the float model's, in words. Raises FidelityError at too far."""
    found = scores.similarity(pairs)
    if found < least_cosine(recipe):
        apart = [float(np.abs(ours - theirs).max()) for ours, theirs in pairs]
        text = show(TEXTS[int(np.argmax(apart))])
        raise too_far(
            recipe,
            f"of the logits to the float model's, all texts together, found {found:.4f}; they differ most, by "
            f"{max(apart):.3g}, at {text}",
        )
    return f"cosine similarity of the logits to the float model's {found:.4f} ({len(pairs)} texts together)"
