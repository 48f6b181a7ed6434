"""The text side of a checkpoint: tokenizer, special tokens, chat templates, read and checked before any weight is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tokenizers import Tokenizer

from edgeship.checkpoint.checkpoint import Checkpoint
from edgeship.errors import CheckpointError
from edgeship.plan import Plan
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
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.errors import EdgeshipRuntimeError


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
    with blamed_on(source, "the chat template cannot be used"):
        for template in templates.values():
            ChatTemplate(template)
    return TextSide(tokenizer, special, files | {name: text.encode() for name, text in templates.items()})


@contextmanager
def blamed_on(source: Checkpoint, what: str) -> Iterator[None]:
    """What the runtime's code finds wrong here is wrong with the checkpoint."""
    try:
        yield
    except EdgeshipRuntimeError as error:
        raise CheckpointError(f"{source.path}: {what}: {error.message}.", hint=error.hint) from None
