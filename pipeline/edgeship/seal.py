"""Completes an artifact: tokenizer files, configurations for other runtimes, acceptance test, model card, manifest.

Everything written is a function of the plan, the checkpoint's files and the weights: no times, no host names.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edgeship import __version__
from edgeship.acceptance.chats import prompts, write_chats
from edgeship.acceptance.fidelity import write_fidelity
from edgeship.acceptance.golden import TIE_TOLERANCE_FLOAT, TIE_TOLERANCE_QUANTIZED, write_golden
from edgeship.card import model_card
from edgeship.checkpoint.checkpoint import Checkpoint
from edgeship.formats.base import Format
from edgeship.plan import Plan
from edgeship.progress import Progress
from edgeship.reference.weights import Weights
from edgeship.text import TextSide, blamed_on
from edgeship_runtime.acceptance import CHATS, FIDELITY, GOLDEN
from edgeship_runtime.chat import ChatTemplate, load_template
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


def seal(
    directory: Path,
    form: Format,
    plan: Plan,
    source: Checkpoint,
    text: TextSide,
    digest: str,
    tested: Path,
    progress: Progress,
    floats: Weights | None = None,
) -> None:
    """Write everything but the weights into `directory`, which holds those, and the manifest last.

    `digest` is the sha256 of the data file; `tested` is the directory of the format whose acceptance test serves all;
    with `floats`, the float model's weights, that test has its predictions too.
    Raises CheckpointError where the checkpoint's template cannot be used.
    """
    model = form.write_model(directory)
    for name, content in text.files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    files = {name: describe_file(directory / name) for name in (*model, *text.files)}
    files[form.data_file] = FileEntry(form.size, digest)
    manifest = _manifest(form, plan, source, text, files)
    with blamed_on(source, "the chat template cannot be used"):
        template = load_template(directory, manifest)
    written = [
        *form.write_companions(directory, text, template, progress.note),
        _write_card(directory, form, plan, manifest),
        *_write_acceptance(directory, form, plan, text, template, tested, progress, floats),
    ]
    files |= {name: describe_file(directory / name) for name in written}
    with blamed_on(source, "the artifact's manifest would not be valid"):
        write_manifest(directory, replace(manifest, files=files))


def _write_card(directory: Path, form: Format, plan: Plan, manifest: Manifest) -> str:
    card = model_card(
        plan,
        form.name,
        host=manifest.source.host,
        revision=manifest.source.revision,
        license_file=next((directory / name for name in sorted(manifest.files) if name.startswith("LICENSE")), None),
        weight_bytes=sum(
            entry.size for name, entry in manifest.files.items() if name.startswith("model.") or name == form.data_file
        ),
    )
    (directory / "README.md").write_text(card, encoding="utf-8")
    return "README.md"


def _write_acceptance(
    directory: Path,
    form: Format,
    plan: Plan,
    text: TextSide,
    template: ChatTemplate | None,
    tested: Path,
    progress: Progress,
    floats: Weights | None,
) -> Sequence[str]:
    (directory / FIDELITY).unlink(missing_ok=True)  # of an interrupted export that was to have it
    if tested != directory:
        names = [name for name in (CHATS, GOLDEN, FIDELITY) if (tested / name).exists()]
        for name in names:
            (directory / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(tested / name, directory / name)
        return names
    progress.note("acceptance test: rendering chats, continuing prompts in float32")
    write_chats(directory, template, text.tokenizer, _ends(plan, text, progress))
    with form.weights(directory) as weights:
        found = write_golden(
            directory,
            plan.decoder,
            weights,
            prompts(template, text.tokenizer),
            stop=text.special.eos,
            context=plan.recipe.context,
            tie_tolerance=_tie_tolerance(plan),
        )
    if not (floats and found):
        return (CHATS, GOLDEN)
    progress.note("acceptance test: the float model's predictions")
    write_fidelity(directory, plan.decoder, floats, found)
    return (CHATS, GOLDEN, FIDELITY)


def _ends(plan: Plan, text: TextSide, progress: Progress) -> Mapping[str, int]:
    """What llama.cpp alone takes for the end of an answer; the user is told."""
    if "gguf" not in plan.formats:
        return {}
    from edgeship.formats.gguf.vocabulary import taken_for_ends  # needs the package gguf, which an ONNX export does not

    ends = taken_for_ends(text.tokenizer)
    for end, number in ends.items():
        progress.note(
            f"llama.cpp takes the text {end} (token {number}) for the end of an answer, which the tokenizer does not: "
            "programs that use the GGUF's own vocabulary may read it so"
        )
    return ends


def _manifest(form: Format, plan: Plan, source: Checkpoint, text: TextSide, files: Mapping[str, FileEntry]) -> Manifest:
    d, recipe, special = plan.decoder, plan.recipe, text.special
    return Manifest(
        name=recipe.name,
        format=form.name,
        edgeship=__version__,
        source=SourceFacts(
            host="local" if source.revision == "local" else recipe.source.host,
            repo=recipe.source.repo,
            revision=source.revision,
        ),
        recipe=recipe.resolved() | dict(plan.recorded),
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
        weights=WeightFacts(round(plan.footprints[form.name].bits_per_weight, 4), plan.part_encodings),
        ops=tuple(form.operators()),
        versions=form.versions,
        budgets=Budgets(size_mb=recipe.accept.size_mb),
        files=files,
        hints=Hints(),
    )


def _tie_tolerance(plan: Plan) -> float:
    quantized = any(tensor.encoding.quantized for tensor in plan.stored())
    return TIE_TOLERANCE_QUANTIZED if quantized else TIE_TOLERANCE_FLOAT
