"""Whether an artifact's tokenizer is its reference's: token ids mean nothing to a model that knows them as others."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from edgeship.checkpoint.strict_json import show
from edgeship.errors import ArtifactError, CheckpointError, UsageError
from edgeship.tokenizer import TOKENIZER, open_tokenizer


def same_tokenizer(artifact: Path, reference: Path, tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer of an artifact, where it has one, does what `tokenizer`, the reference's, does.

    Raises UsageError where an id stands for two tokens, ArtifactError where the artifact's cannot be read.
    """
    file = artifact / TOKENIZER
    if not file.is_file() or file.read_bytes() == (reference / TOKENIZER).read_bytes():
        return True
    try:
        other = open_tokenizer(file, 1 << 31)
    except CheckpointError as error:
        raise ArtifactError(error.message, hint="export the artifact again, or copy it again") from None
    ours, theirs = _tokens(tokenizer), _tokens(other)
    wrong = [number for number in sorted(ours.keys() & theirs.keys()) if ours[number] != theirs[number]]
    if wrong:
        number = wrong[0]
        raise UsageError(
            f"{file}: expected the reference's tokens, found {len(wrong)} others, the first with id {number}: "
            f"{show(theirs[number])} for {show(ours[number])}.",
            hint="give --reference the checkpoint that the artifact was made from",
        )
    return bool(tokenizer.to_str() == other.to_str())


def _tokens(tokenizer: Tokenizer) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
