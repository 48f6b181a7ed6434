"""Log probabilities of tokens, read from the logits as they pass between an engine and its model.

They are of the model's own distribution, before bias, penalties and temperature.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.engines import Engine
from edgeship_runtime.model import Model


@dataclass(frozen=True)
class TokenScore:
    """A token with its log probability (None for the first of a text), and the likeliest in its place."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Recorder:
    """An engine that keeps the scores of the tokens it is given; otherwise the engine it is put around."""

    def __init__(self, engine: Engine, top: int, *, prompt: bool) -> None:
        """`top`: how many of the likeliest to keep; `prompt`: score prompt tokens too, which runs them singly."""
        self.inner = engine
        self._top = top
        self._prompt = prompt
        self._row: NDArray[np.float32] | None = None  # log probabilities of the next token
        self._scores: dict[int, TokenScore] = {}  # by place in the KV cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """As `Engine.evaluate`."""
        if not self._prompt or len(tokens) < 2:
            return self._run(tokens)
        logits = self._run(tokens[:1])
        for token in tokens[1:]:
            logits = self._run([token])
        return logits

    def at(self, place: int, token: int) -> TokenScore:
        """The score of the token in a place of the KV cache, or of one that may come next."""
        if place == self.inner.length:
            return self._score(token)
        return self._scores.get(place, TokenScore(token, None))

    def _run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if len(tokens):
            self._scores[self.inner.length] = self._score(tokens[0])
        logits = self.inner.evaluate(tokens)
        row = logits - logits.max()
        row -= np.float32(np.log(np.exp(row).sum(dtype=np.float64)))
        self._row = row
        return logits

    def _score(self, token: int) -> TokenScore:
        row = self._row
        if row is None or not 0 <= token < len(row):
            return TokenScore(token, None)
        likely = np.argpartition(row, -self._top)[-self._top :] if self._top else np.empty(0, np.int64)
        order = likely[np.argsort(-row[likely], kind="stable")]
        return TokenScore(token, float(row[token]), tuple((int(each), float(row[each])) for each in order))


@contextmanager
def recording(model: Model, top: int, *, prompt: bool = False) -> Generator[Recorder, None, None]:
    """Record the answers of a model within the block; `prompt`: the KV cache is emptied, so that all of it is run."""
    prefixes = model.prefixes
    if prompt:
        model.forget()
        model.prefixes = None
    recorder = Recorder(model.engine, min(top, model.engine.vocab_size), prompt=prompt)
    model.engine = cast(Engine, recorder)
    try:
        yield recorder
    finally:
        model.engine, model.prefixes = recorder.inner, prefixes


def spell(model: Model, token: int) -> str:
    """Text of a single token; bytes that are no text by themselves are U+FFFD."""
    detokenizer = model.tokenizer.detokenizer()
    return detokenizer.push(token) + detokenizer.flush()
