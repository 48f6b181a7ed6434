"""What every engine refuses before it runs anything: ids outside the vocabulary, and more than the cache holds."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.cpu import usable_cores
from edgeship_runtime.errors import ContextError, DependencyError, EngineError, UsageError
from edgeship_runtime.manifest import Manifest

MOST_SEQUENCES = 64


def check_context(context: int, manifest: Manifest) -> None:
    """Raise UsageError for a KV cache of no tokens, or of more than the model was made for."""
    facts = manifest.model
    if not 1 <= context <= facts.context_length:
        raise UsageError(
            f"a context of {context} tokens was asked for; the model was made for 1 to {facts.context_length}",
            hint=f"leave it out for the default of {facts.default_context}",
        )


def check_sequences(sequences: int) -> None:
    """Raise UsageError for fewer than one, or more than llama.cpp knew in its older versions."""
    if not 1 <= sequences <= MOST_SEQUENCES:
        raise UsageError(f"{sequences} sequences were asked for; expected 1 to {MOST_SEQUENCES}")


def choose_threads(threads: int | None, manifest: Manifest) -> int:
    """`threads`, or the manifest's hint or the physical cores when None; raises UsageError for less than one."""
    if threads is None:
        cores = usable_cores()
        return min(manifest.hints.threads or cores, cores)
    if threads < 1:
        raise UsageError(f"{threads} threads were asked for; expected at least 1, or nothing to let edgeship choose")
    return threads


def check_version(package: str, found: str, manifest: Manifest) -> None:
    """Raise DependencyError for a version below what the artifact needs (">=1.23"; other forms are not checked)."""
    wanted = manifest.versions.get(package, "")
    if wanted.startswith(">=") and _numbers(found) < _numbers(wanted[2:]):
        raise DependencyError(
            f"the artifact needs {package} {wanted} and {found} is installed, which lacks what the model is made of",
            hint=f"pip install --upgrade '{package}{wanted}'",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def check_ids(tokens: Sequence[int], vocab_size: int) -> NDArray[np.int64]:
    """The ids as an array; raises EngineError for none, and for any outside the vocabulary."""
    if not len(tokens):
        raise EngineError("no tokens were given to evaluate; expected at least one")
    try:
        ids = np.asarray(tokens, dtype=np.int64)
    except (OverflowError, ValueError, TypeError):
        raise EngineError("token ids are expected to be whole numbers of 64 bits") from None
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if outside.size:
        raise foreign_id(int(ids[outside[0]]), vocab_size)
    return ids


def foreign_id(token: int, vocab_size: int) -> EngineError:
    """The error for an id outside the vocabulary."""
    return EngineError(
        f"token id {token} is outside the vocabulary of {vocab_size} (0 to {vocab_size - 1})",
        hint="tokenizer and model do not belong together, or the ids were made by another tokenizer",
    )


def check_room(count: int, length: int, context: int) -> None:
    """Raise ContextError when `count` more tokens do not fit beside the `length` that are held."""
    if length + count > context:
        raise ContextError(
            f"{count} tokens do not fit: the context is {context} tokens and {length} are in use",
            hint="load the artifact with a larger context, or shorten the conversation",
        )


def check_length(length: int, held: int) -> None:
    """Raise EngineError unless `length` of the `held` tokens can be kept."""
    if not 0 <= length <= held:
        raise EngineError(f"cannot keep {length} tokens of the KV cache: it holds {held}")
