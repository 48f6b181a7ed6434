"""Calibration text that the model writes itself: no file is needed, and it is what the model deems likely.

Idea: arXiv:2305.17888 (LLM-QAT), section 3.1. A sequence begins with a token drawn from the whole vocabulary, or as a
conversation does, and goes on with draws from the model. A draw is the largest of logit + Gumbel noise, which needs no
probabilities: the vocabulary is worked through in pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeship.archs.base import Decoder, block_bytes
from edgeship.calibration import Calibration
from edgeship.progress import Progress
from edgeship.reference.arithmetic import Floats
from edgeship.reference.forward import Pass
from edgeship.reference.weights import Weights

BLOCK = 1 << 10  # ids that share a generator: noise does not depend on how the pass cuts the vocabulary


def sample(
    decoder: Decoder,
    weights: Weights,
    tokenizer: Tokenizer,
    section: Calibration,
    progress: Progress,
    conversation: Sequence[int] = (),
) -> list[list[int]]:
    """Sequences of `section.length` tokens, as many as make up `section.tokens`, drawn by its seed.

    Every second one begins with the tokens of `conversation`, if there are any.
    """
    count, rng = section.sequences, np.random.default_rng(section.seed)
    start: list[int] = tokenizer.encode("", add_special_tokens=True).ids
    written = [i for i in range(decoder.vocab_size) if tokenizer.id_to_token(i) is not None]
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    firsts = rng.choice([i for i in written if i not in special] or written, count)
    out = [[*start, int(first)] for first in firsts]
    if conversation:
        out[::2] = [list(conversation) for _ in out[::2]]
    size = decoder.layers * block_bytes(decoder)
    steps = section.length - min(map(len, out))
    progress.start(steps * size, "the model writes calibration text")
    with Pass(decoder, weights, count, capacity=max(map(len, out)) + steps) as run:
        new: Sequence[Sequence[int]] = out
        for step in range(steps):
            hidden = run.extend(new)
            last = np.cumsum([len(each) for each in new]) - 1
            drawn = _draw(run, hidden[last], section.seed, step)
            new = [[int(token)] for token in drawn]
            for sequence, each in zip(out, new, strict=True):
                sequence.extend(each)
            progress.advance(size, f"token {step + 1} of {steps}")
    progress.finish()
    return [sequence[: section.length] for sequence in out]


def _draw(run: Pass, hidden: Floats, seed: int, step: int) -> NDArray[np.int64]:
    """A token for each of the hidden states `[T, D]`, with the probabilities that the head gives."""

    def best(first: int, logits: Floats) -> tuple[NDArray[np.int64], Floats]:
        noisy = logits + _noise(seed, step, first, first + len(logits), logits.shape[1])
        rows = noisy.argmax(axis=0)
        return rows + first, np.take_along_axis(noisy, rows[None], axis=0)[0]

    pieces = run.logits(hidden, best)
    ids, values = np.stack([p[0] for p in pieces]), np.stack([p[1] for p in pieces])  # [pieces, T]
    chosen: NDArray[np.int64] = np.take_along_axis(ids, values.argmax(axis=0)[None], axis=0)[0]
    return chosen


def _noise(seed: int, step: int, a: int, b: int, count: int) -> Floats:
    """Gumbel noise for ids `[a, b)` and `count` sequences, `[b - a, count]`."""
    first = a // BLOCK
    blocks = [
        np.random.default_rng((seed, step, block)).gumbel(size=(BLOCK, count)) for block in range(first, -(-b // BLOCK))
    ]
    return np.concatenate(blocks)[a - first * BLOCK : b - first * BLOCK].astype(np.float32)
