"""The calibrated part of an export: its tokens, and the codes it chooses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeship.calibrate.quantize import Calibrator
from edgeship.calibrate.sampler import sample
from edgeship.calibrate.store import StoredCodes
from edgeship.calibrate.text import Tokens, conversation_start, digest, read_tokens
from edgeship.calibration import Calibration
from edgeship.calibration_stages import calibrated
from edgeship.kept import keep_json, read_json
from edgeship.plan import Plan
from edgeship.progress import Progress
from edgeship.reference.weights import CheckpointWeights, Weights
from edgeship.text import TextSide

ID_BYTES = 8  # that a token takes in a file of text that the model wrote
STORE = "calibration"
"""The directory of the codes within a partial export; no artifact has it."""


def obtain_tokens(
    plan: Plan, weights: Weights, text: TextSide, progress: Progress, kept: Path | None = None, digest: str = ""
) -> Tokens:
    """The calibration text of a recipe that has some, as token sequences; none without.

    What the model writes itself is written into `kept`, and read from there by a later run for the same weights, which
    `digest` names. Raises RecipeError where the recipe's file is not what it should be.
    """
    section = plan.recipe.calibration
    if section is None:
        return []
    if section.file is None:
        return _written(plan, section, weights, text, progress, kept, digest)
    found = read_tokens(section, text)
    count = sum(map(len, found))
    if count < section.sequences * section.length:
        progress.note(f"calibration: {section.file.name} holds {count} tokens of the {section.tokens} asked for")
    return found


def _written(
    plan: Plan,
    section: Calibration,
    weights: Weights,
    text: TextSide,
    progress: Progress,
    kept: Path | None,
    digest: str,
) -> Tokens:
    asked = hashlib.sha256(json.dumps([digest, section.resolved()], sort_keys=True).encode()).hexdigest()[:16]
    file = kept / f"text-{asked}.json" if kept else None
    found: Tokens | None = read_json(file) if file else None
    if found:
        return found
    made = sample(plan.decoder, weights, text.tokenizer, section, progress, conversation_start(text))
    if file:
        keep_json(file, made)
    return made


def record(section: Calibration, tokens: Tokens) -> dict[str, Any]:
    """What the manifest says of the calibration: the recipe's section, the tokens there were, and their digest."""
    return section.resolved() | {"tokens": sum(map(len, tokens)), "sha256": digest(tokens)}


def choose_codes(
    plan: Plan, weights: CheckpointWeights, tokens: Tokens, directory: Path, progress: Progress
) -> Mapping[str, StoredCodes]:
    """The codes of every calibrated weight, in a store below the partial export's `directory`; resumes at a block."""
    wanted, algorithm = calibrated(plan), plan.recipe.scheme.algorithm
    if not wanted or algorithm == "rtn":
        return {}
    return Calibrator(
        plan.decoder, weights, tokens, wanted, algorithm, directory / STORE, progress, plan.shared_head
    ).run()


def store_bytes(plan: Plan) -> int:
    """Bytes on the disk that the store takes at most, and text that the model writes."""
    section, wanted = plan.recipe.calibration, calibrated(plan)
    if section is None:
        return 0
    codes = sum(t.nbytes("onnx") for t in plan.stored() if t.role.key in wanted)
    widest = 16 * plan.decoder.hidden_size + 8 * plan.decoder.feed_forward
    written = 0 if section.file else ID_BYTES * section.tokens
    return written + (codes + section.tokens * widest if wanted else 0)
