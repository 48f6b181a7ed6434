"""Compares finished artifacts with the checkpoint they were made from, each through its own engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from tokenizers import Tokenizer

from edgeship.archs.base import Decoder
from edgeship.checkpoint.adapters import Adapter, merge, open_adapters
from edgeship.checkpoint.checkpoint import Checkpoint, account, open_checkpoint
from edgeship.errors import ArtifactError, DependencyError, EdgeshipError, ResourceError, UsageError
from edgeship.evaluate.measures import NGRAM, SOURCE, Fidelity, repetition
from edgeship.evaluate.sources import PassLogits, compare, continue_engine, continue_pass, engine_logits, prompts
from edgeship.evaluate.tokens import same_tokenizer
from edgeship.evaluate.windows import Windows, read_windows
from edgeship.plan import read_decoder
from edgeship.progress import Progress
from edgeship.recipe import RopeScaling
from edgeship.reference.weights import CheckpointWeights, Weights
from edgeship.size_limit import directory_size
from edgeship.tokenizer import TOKENIZER, open_tokenizer, special_tokens
from edgeship_runtime.engines import open_engine
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.facts import GENERATE
from edgeship_runtime.gguf_model import read_model
from edgeship_runtime.manifest import FORMATS, MANIFEST_NAME, Manifest, locate, model_path, read_manifest

WINDOW = 512  # llama.cpp's own


@dataclass(frozen=True)
class Evaluated:
    """One artifact beside the float model; size of all its files in MB of 10^6 bytes."""

    artifact: str
    name: str
    engine: str
    size_mb: float
    bits_per_weight: float
    repetition: float | None  # of greedy text
    fidelity: Fidelity


@dataclass(frozen=True)
class Evaluation:
    """All artifacts given, on one text."""

    reference: str
    text: str
    text_sha256: str
    window: int
    reference_repetition: float | None
    artifacts: tuple[Evaluated, ...]

    def to_json(self) -> dict[str, Any]:
        artifacts = [asdict(each) | each.fidelity.to_json() for each in self.artifacts]
        for each in artifacts:
            del each["fidelity"]
        return asdict(self) | {
            "definitions": f"{SOURCE}; repetition: runs of {NGRAM} tokens, arXiv:1908.04319",
            "logits": {"reference": "float32 pass over the checkpoint", "artifacts": "the runtime's engine"},
            "artifacts": artifacts,
        }


@dataclass(frozen=True)
class _Reference:
    """The float model and the text, opened."""

    source: Checkpoint
    decoder: Decoder
    weights: Weights
    tokenizer: Tokenizer
    windows: Windows
    stop: tuple[int, ...]
    adapters: tuple[Adapter, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.source.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(prod(role.shape) for role in self.decoder.roles())


def evaluate(
    artifacts: Sequence[Path],
    reference: Path,
    *,
    text: Path | None,
    tokens: int,
    window: int | None,
    greedy: int,
    threads: int | None,
    progress: Progress,
    adapters: Sequence[Path] = (),
) -> Evaluation:
    """Compare artifacts with the checkpoint at `reference` over `tokens` tokens of a text, `window` at a time.

    `window` None: 512, or as many as the model has positions.
    A directory with both formats counts as two artifacts; `greedy` tokens are continued from the text's beginnings, 0
    for none. The float model is the checkpoint with the `adapters` merged, which have to be those that the artifacts
    were made with, and with their rope_scaling. Raises EdgeshipError of every kind but those of recipes.
    """
    with _as_ours():
        found = [each for path in artifacts for each in _formats(path)]
    opened = _open(reference, text, tokens, window, _scaling(found), adapters)
    for directory, manifest in found:
        _check_same_model(directory, manifest, opened)
        if not same_tokenizer(directory, reference, opened.tokenizer):
            progress.note(
                f"{directory}: its tokenizer.json is not the reference's; both are given the reference's tokens"
            )
    windows = opened.windows
    texts: list[list[int]] = []
    with _reference_logits(opened, progress) as logits:
        if greedy:
            progress.start(opened.nbytes * greedy, "float model: greedy text")
            texts = continue_pass(
                opened.decoder, opened.weights, prompts(windows), greedy, opened.stop,
                lambda steps: progress.advance(opened.nbytes * steps, "greedy text"),
            )  # fmt: skip
            progress.finish()
        evaluated = tuple(_evaluate(each, opened, logits, greedy, threads, progress) for each in found)
    return Evaluation(
        str(reference), windows.source, windows.sha256, windows.length, _rounded(repetition(texts)), evaluated
    )


def _open(
    reference: Path,
    text: Path | None,
    tokens: int,
    window: int | None,
    scaling: RopeScaling | None,
    paths: Sequence[Path],
) -> _Reference:
    source = open_checkpoint(reference)
    decoder = read_decoder(source.config, scaling, str(reference / "config.json"))
    adapters = open_adapters([str(path) for path in paths], decoder)
    tensors = merge(account(source, decoder.roles()), decoder.roles(), adapters)
    if window is None:
        window = min(WINDOW, decoder.max_positions)
    if window > decoder.max_positions:
        found = f"found a model of {decoder.max_positions} positions"
        raise UsageError(f"--window {window}: {found}.", hint=f"pass --window {decoder.max_positions} or less")
    tokenizer = open_tokenizer(reference / TOKENIZER, decoder.vocab_size)
    windows = read_windows(tokenizer, text, tokens, window, reference)
    stop = special_tokens(reference, source.config, tokenizer).eos
    return _Reference(source, decoder, CheckpointWeights(tensors), tokenizer, windows, stop, adapters)


def _scaling(found: Sequence[tuple[Path, Manifest]]) -> RopeScaling | None:
    """The rope_scaling that all artifacts were made with; raises UsageError where they differ."""
    scalings = [(directory, manifest.recipe.get("rope_scaling")) for directory, manifest in found]
    for directory, scaling in scalings:
        if scaling != scalings[0][1]:
            raise UsageError(
                f"{directory}: expected the rope_scaling of {scalings[0][0]}, {json.dumps(scalings[0][1])}, found "
                f"{json.dumps(scaling)}: they have no float model in common.",
                hint="evaluate them one after the other",
            )
    try:
        return RopeScaling.model_validate(scalings[0][1]) if scalings[0][1] else None
    except ValidationError:
        raise ArtifactError(
            f"{scalings[0][0]}: edgeship.json: recipe.rope_scaling: expected what a recipe says, found "
            f"{json.dumps(scalings[0][1])[:100]}.",
            hint="export the artifact again",
        ) from None


def _check_adapters(directory: Path, manifest: Manifest, adapters: Sequence[Adapter]) -> None:
    """What was merged into the artifact has to be merged into the float model; a bare GGUF file does not say."""
    if "adapters" not in manifest.recipe:
        return
    listed = manifest.recipe["adapters"] or []
    made = [each.get("sha256") if isinstance(each, dict) else None for each in listed]
    if made != [adapter.sha256 for adapter in adapters]:
        names = ", ".join(str(each.get("name") if isinstance(each, dict) else each) for each in listed) or "none"
        found = ", ".join(adapter.path.name for adapter in adapters) or "none"
        raise UsageError(
            f"{directory}: expected the adapters that were merged into it, {names}, found {found}.",
            hint="pass --adapter DIR for each, in the recipe's order" if listed else "leave --adapter out",
        )


@contextmanager
def _reference_logits(opened: _Reference, progress: Progress) -> Iterator[PassLogits]:
    tokens = opened.windows.ids.size
    progress.start(opened.nbytes, f"float model: {tokens} tokens")
    logits = PassLogits(
        opened.decoder,
        opened.weights,
        opened.windows,
        lambda done: progress.advance(opened.nbytes * done // tokens, "float model"),
    )
    progress.finish()
    with logits:
        yield logits


def _evaluate(
    artifact: tuple[Path, Manifest],
    opened: _Reference,
    reference: PassLogits,
    greedy: int,
    threads: int | None,
    progress: Progress,
) -> Evaluated:
    directory, manifest = artifact
    windows, row = opened.windows, opened.decoder.vocab_size * 4
    with _as_ours():
        context = min(windows.length + greedy, manifest.model.context_length)
        engine = open_engine(directory, manifest, context=context, threads=threads)
        with closing(engine):
            progress.start(windows.positions * row, f"{directory}: {windows.positions} positions")
            with engine_logits(engine, windows) as logits:
                fidelity = compare(
                    reference,
                    logits,
                    windows,
                    opened.decoder.vocab_size,
                    lambda done: progress.advance(done * row, "logits"),
                )
            texts = continue_engine(engine, prompts(windows), greedy, opened.stop) if greedy else []
            progress.finish()
            weights, whole = _sizes(directory, manifest)
            return Evaluated(
                artifact=str(directory),
                name=manifest.name,
                engine=engine.name,
                size_mb=round(whole / 1e6, 3),
                bits_per_weight=round(manifest.weights.bits_per_weight or 8 * weights / opened.parameters, 3),
                repetition=_rounded(repetition(texts)),
                fidelity=fidelity,
            )


def _formats(path: Path) -> list[tuple[Path, Manifest]]:
    """The artifacts meant by a path: a directory with formats in it holds one each."""
    inside = [path / name for name in FORMATS if (path / name / MANIFEST_NAME).is_file()]
    found = [(each, read_manifest(each)) for each in inside or [locate(path)]]
    for directory, manifest in found:
        if manifest.model.task != GENERATE:
            raise UsageError(
                f"{directory}: expected a model that generates text, found one for {manifest.model.task}.",
                hint="`edgeship-runtime verify` says how close it is to its float model",
            )
    return found


def _check_same_model(directory: Path, manifest: Manifest, opened: _Reference) -> None:
    facts, decoder = manifest.model, opened.decoder
    _check_adapters(directory, manifest, opened.adapters)
    pairs = {
        "tokens in the vocabulary": (decoder.vocab_size, facts.vocab_size),
        "layers": (decoder.layers, facts.layers),
        "hidden size": (decoder.hidden_size, facts.hidden_size),
    }
    wrong = [f"{what} {found} for {expected}" for what, (expected, found) in pairs.items() if expected != found]
    if wrong:
        raise UsageError(
            f"{directory}: expected an artifact of the reference model, found {', '.join(wrong)}.",
            hint="give --reference the checkpoint that the artifact was made from",
        )


def _sizes(directory: Path, manifest: Manifest) -> tuple[int, int]:
    """Bytes of the weights where the manifest does not know them, and of all files."""
    if directory.is_file():
        header = read_model(directory)
        return sum(each.size - each.data for each in header), directory.stat().st_size
    whole = directory_size(directory)
    name = model_path(directory, manifest).name
    return sum(p.stat().st_size for p in directory.glob(f"{name}*")), whole


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(float(np.float64(share)), 4)


@contextmanager
def _as_ours() -> Iterator[None]:
    """Errors of the runtime as the pipeline's of the same kind and exit code."""
    try:
        yield
    except EdgeshipRuntimeError as error:
        kinds: tuple[type[EdgeshipError], ...] = (UsageError, ResourceError, DependencyError)
        kind = next((each for each in kinds if each.exit_code == error.exit_code), ArtifactError)
        raise kind(f"{error.message}.", hint=error.hint) from None
