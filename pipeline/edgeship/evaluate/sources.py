"""Where logits come from: the numpy pass over float or stored weights, or a runtime's engine as on the device.

Both answer for the judged positions of a text in order, a few at a time: logits of all positions and all tokens of a
vocabulary never exist at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Decoder
from edgeship.evaluate.measures import Comparison, Fidelity
from edgeship.evaluate.windows import Windows
from edgeship.reference.forward import Pass, top_logits
from edgeship.reference.weights import Weights
from edgeship_runtime.engines import Engine

Floats = NDArray[np.float32]
Tell = Callable[[int], None]  # is called with the number of tokens that were worked through

BATCH_TOKENS = 512  # run together through the numpy pass: 80 MB of activations at a feed-forward width of 9,000
BLOCK_BYTES = 16 << 20  # of logits held at once, by each of the two sides
PROMPTS = 4
PROMPT_TOKENS = 48


class Logits(Protocol):
    """One model's logits at the judged positions of a text."""

    def rows(self, a: int, b: int) -> Floats:
        """Logits `[b - a, V]` at positions [a, b); asked for in order."""


class PassLogits:
    """Logits of the numpy pass; keeps a hidden state for each judged position. Use it as a context manager."""

    def __init__(self, decoder: Decoder, weights: Weights, windows: Windows, tell: Tell = lambda tokens: None) -> None:
        self._run = Pass(decoder, weights)
        parts = []
        step = max(1, BATCH_TOKENS // windows.length)
        for a in range(0, len(windows.ids), step):
            batch = windows.ids[a : a + step].tolist()
            with Pass(decoder, weights, len(batch)) as run:
                hidden = run.extend(batch).reshape(len(batch), windows.length, -1)
            parts.append(hidden[:, windows.first : -1].reshape(-1, hidden.shape[-1]))
            tell(len(batch) * windows.length)
        self._hidden = np.concatenate(parts)  # [positions, D]

    def __enter__(self) -> Self:
        self._run.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._run.__exit__(kind, error, at)

    def rows(self, a: int, b: int) -> Floats:
        return np.ascontiguousarray(np.concatenate(self._run.logits(self._hidden[a:b], lambda first, logits: logits)).T)


class EngineLogits:
    """Logits of an engine, token by token, as on the device."""

    def __init__(self, engine: Engine, windows: Windows) -> None:
        self._engine, self._windows = engine, windows

    def rows(self, a: int, b: int) -> Floats:
        windows, engine = self._windows, self._engine
        out = np.empty((b - a, engine.vocab_size), np.float32)
        for row, position in zip(out, range(a, b), strict=True):
            window, index = windows.place(position)
            ids = windows.ids[window]
            if index == windows.first:
                engine.truncate(0)
            row[:] = engine.evaluate(ids[engine.length : index + 1].tolist())
        return out


@contextmanager
def engine_logits(engine: Engine, windows: Windows) -> Iterator[Logits]:
    """Logits of an engine in the way that takes it least time; to be left before the engine is closed."""
    if engine.name.startswith("llama-cpp-python"):
        from edgeship.evaluate.llama import LlamaLogits  # not at the top: a package that may be missing
        from edgeship_runtime.engines.llamacpp import LlamaEngine

        assert isinstance(engine, LlamaEngine)
        with closing(LlamaLogits(engine, windows, block(engine.vocab_size))) as logits:
            yield logits
    else:
        yield EngineLogits(engine, windows)


def block(vocabulary: int) -> int:
    """Positions whose logits are held at once."""
    return max(1, BLOCK_BYTES // (4 * vocabulary))


def compare(
    reference: Logits, found: Logits, windows: Windows, vocabulary: int, tell: Tell = lambda tokens: None
) -> Fidelity:
    """What `found` lost against `reference`, over the judged positions of a text. Raises ArtifactError at no number."""
    comparison = Comparison()
    step = block(vocabulary)
    for a in range(0, windows.positions, step):
        b = min(a + step, windows.positions)
        pairs = zip(reference.rows(a, b), found.rows(a, b), strict=True)
        for position, (ours, theirs) in enumerate(pairs, a):
            comparison.add(ours, theirs, windows.target(position))
        tell(b - a)
    return comparison.result()


def prompts(windows: Windows) -> list[list[int]]:
    """The beginnings of the first windows, to be continued."""
    return [[int(i) for i in ids[:PROMPT_TOKENS]] for ids in windows.ids[:PROMPTS]]


def continue_pass(
    decoder: Decoder,
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    stop: Collection[int],
    tell: Tell = lambda tokens: None,
) -> list[list[int]]:
    """The greedy continuations of prompts by the numpy pass, all together; a token of `stop` ends one."""
    new, texts = [list(prompt) for prompt in prompts], [[] for _ in prompts]  # type: tuple[list[list[int]], list[list[int]]]
    with Pass(decoder, weights, len(prompts)) as run:
        for _ in range(tokens):
            going = [i for i, ids in enumerate(new) if ids]
            if not going:
                break
            hidden = run.extend(new)
            ends = np.cumsum([len(ids) for ids in new])[going] - 1
            chosen = top_logits(run, hidden[ends], 1).ids[:, 0].tolist()
            new = [[] for _ in prompts]
            for i, token in zip(going, chosen, strict=True):
                texts[i].append(token)
                new[i] = [] if token in stop else [token]
            tell(1)
    return texts


def continue_engine(
    engine: Engine, prompts: Sequence[Sequence[int]], tokens: int, stop: Collection[int]
) -> list[list[int]]:
    """The greedy continuations of prompts by an engine; a token of `stop` ends one."""
    texts = []
    for prompt in prompts:
        engine.truncate(0)
        text: list[int] = []
        new = list(prompt)
        while len(text) < tokens and not (text and text[-1] in stop):
            text.append(int(engine.evaluate(new).argmax()))
            new = text[-1:]
        texts.append(text)
    return texts
