"""Completes an artifact: tokenizer files, configurations for other runtimes, acceptance test, model card, manifest.

Everything written is a function of the plan, the checkpoint's files and the weights: no times, no host names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from tokenizers import Tokenizer

from edgeship import __version__
from edgeship.acceptance import (
    TIE_TOLERANCE_FLOAT,
    TIE_TOLERANCE_QUANTIZED,
    prompts,
    write_chats,
    write_golden,
)
from edgeship.card import model_card
from edgeship.checkpoint.checkpoint import Checkpoint
from edgeship.errors import CheckpointError
from edgeship.formats.onnx.genai import genai_config, inference_model
from edgeship.formats.onnx.graph import operators
from edgeship.formats.onnx.layout import Layout
from edgeship.plan import Plan
from edgeship.progress import Progress
from edgeship.reference.weights import StoredWeights
from edgeship.tokenizer import (
    GENERATION,
    TOKENIZER,
    TOKENIZER_CONFIG,
    SpecialTokens,
    chat_templates,
    open_tokenizer,
    read_limited,
    special_tokens,
)
from edgeship_runtime.acceptance import CHATS, DATE_STRING, GOLDEN
from edgeship_runtime.chat import ChatTemplate, load_template
from edgeship_runtime.errors import EdgeshipRuntimeError, TemplateError
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
    write_manifest,
)

GRAPH_FILE, DATA_FILE = "model.onnx", "model.onnx.data"

# The first onnxruntime that loads the graph: before it, GatherBlockQuantized knows no `bits`.
VERSIONS = {"onnxruntime": ">=1.23"}


@dataclass(frozen=True)
class TextSide:
    """A checkpoint's tokenizer, checked, its special tokens, and the files that go into the artifact as they are."""

    tokenizer: Tokenizer
    special: SpecialTokens
    files: Mapping[str, bytes]  # by name in the artifact


def open_text(source: Checkpoint, plan: Plan) -> TextSide:
    """Read and check everything of the checkpoint that is not weights, before the long work on those begins.

    Raises CheckpointError naming file and token at a tokenizer that does not load or does not fit the model, at
    special tokens that are none, and at a chat template that the runtime's sandbox does not take.
    """
    tokenizer = open_tokenizer(source.path / TOKENIZER, plan.decoder.vocab_size)
    special = special_tokens(source.path, source.config, tokenizer)
    names = [TOKENIZER, TOKENIZER_CONFIG, GENERATION]
    names += sorted(file.name for file in source.files if file.name.startswith("LICENSE"))
    files = {name: read_limited(source.path / name) for name in names if (source.path / name).is_file()}
    templates = chat_templates(source.path)
    with _said_of(source, "the chat template cannot be used"):
        for template in templates.values():
            ChatTemplate(template)
    return TextSide(tokenizer, special, files | {name: text.encode() for name, text in templates.items()})


def seal(
    directory: Path,
    plan: Plan,
    layout: Layout,
    source: Checkpoint,
    digests: Mapping[str, str],
    progress: Progress,
    text: TextSide | None = None,
) -> None:
    """Write everything but graph and weights into `directory`, which holds those two, and the manifest last.

    `digests` are sha256 sums already known, by file name; `text` is what `open_text` answered, if it was asked before.
    Raises CheckpointError where the checkpoint's tokenizer or template cannot be used.
    """
    text = text or open_text(source, plan)
    progress.note("acceptance test: rendering chats, continuing prompts in float32")
    for name, content in text.files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    files = {name: _entry(directory, name, digests) for name in (GRAPH_FILE, DATA_FILE, *text.files)}
    manifest = _manifest(plan, source, text.special, directory, files)
    with _said_of(source, "the chat template cannot be used"):
        template = load_template(directory, manifest)
    written = [
        _write_json(directory, "genai_config.json", genai_config(plan, text.special, text.tokenizer.token_to_id)),
        _write_json(directory, "inference_model.json", inference_model(plan.recipe.name, _foundry_prompt(template))),
        _write_card(directory, plan, manifest),
        *_write_acceptance(directory, plan, layout, text, template),
    ]
    files |= {name: _entry(directory, name, {}) for name in written}
    with _said_of(source, "the artifact's manifest would not be valid"):
        write_manifest(directory, replace(manifest, files=files))


def _write_card(directory: Path, plan: Plan, manifest: Manifest) -> str:
    card = model_card(
        plan,
        host=manifest.source.host,
        revision=manifest.source.revision,
        license_file=next((directory / name for name in sorted(manifest.files) if name.startswith("LICENSE")), None),
        weight_bytes=manifest.files[GRAPH_FILE].size + manifest.files[DATA_FILE].size,
    )
    (directory / "README.md").write_text(card, encoding="utf-8")
    return "README.md"


def _write_acceptance(
    directory: Path, plan: Plan, layout: Layout, text: TextSide, template: ChatTemplate | None
) -> tuple[str, str]:
    write_chats(directory, template, text.tokenizer)
    with StoredWeights(directory / DATA_FILE, {place.role.key: place for place in layout.places}) as weights:
        write_golden(
            directory,
            plan.decoder,
            weights,
            prompts(template, text.tokenizer),
            stop=text.special.eos,
            context=plan.recipe.context,
            tie_tolerance=_tie_tolerance(plan),
        )
    return CHATS, GOLDEN


def _manifest(
    plan: Plan, source: Checkpoint, special: SpecialTokens, directory: Path, files: Mapping[str, FileEntry]
) -> Manifest:
    d, recipe, scheme = plan.decoder, plan.recipe, plan.recipe.scheme
    graph = onnx.load(str(directory / GRAPH_FILE), load_external_data=False)
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
        model=ModelFacts(
            type=d.model_type,
            vocab_size=d.vocab_size,
            layers=d.layers,
            kv_heads=d.kv_heads,
            head_dim=d.head_dim,
            hidden_size=d.hidden_size,
            context_length=plan.rope_positions,
            default_context=recipe.context,
            bos_token_id=special.bos,
            eos_token_ids=special.eos,
            pad_token_id=special.pad,
            logits=recipe.logits,
        ),
        sampling=SamplingDefaults(**recipe.sampling.model_dump()),
        weights=WeightFacts(
            round(plan.bits_per_weight, 4),
            {
                "body": scheme.encoding("body").name,
                "embeddings": scheme.encoding("embeddings").name,
                "head": scheme.encoding("head").name,
            },
        ),
        ops=tuple(operators(graph)),
        versions=VERSIONS,
        budgets=Budgets(size_mb=recipe.accept.size_mb),
        files=files,
        hints=Hints(),
    )


@contextmanager
def _said_of(source: Checkpoint, what: str) -> Iterator[None]:
    """What the runtime's code finds wrong here is wrong with the checkpoint."""
    try:
        yield
    except EdgeshipRuntimeError as error:
        raise CheckpointError(f"{source.path}: {what}: {error.message}.", hint=error.hint) from None


def _foundry_prompt(template: ChatTemplate | None) -> str:
    """One chat turn with {Content} where the user's text goes; just that where no template takes it."""
    if template is None:
        return "{Content}"
    try:
        return template.render([{"role": "user", "content": "{Content}"}], date_string=DATE_STRING)
    except TemplateError:
        return "{Content}"


def _tie_tolerance(plan: Plan) -> float:
    quantized = any(tensor.encoding.quantized for tensor in plan.stored())
    return TIE_TOLERANCE_QUANTIZED if quantized else TIE_TOLERANCE_FLOAT


def _entry(directory: Path, name: str, digests: Mapping[str, str]) -> FileEntry:
    file = directory / name
    return FileEntry(file.stat().st_size, digests[name]) if name in digests else describe_file(file)


def _write_json(directory: Path, name: str, value: Any) -> str:
    (directory / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return name
