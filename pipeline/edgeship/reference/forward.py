"""The float32 forward pass in numpy, weights streamed row chunk by row chunk: no torch, no artifact in memory.

One pass works for every `Decoder`: RMS norm, rotary grouped-query attention, gated SiLU. Every product with a weight
goes through `Pass.linear`, every logit through `Pass.logits`: where to watch a layer's inputs, or to score a text.

Sequences of different length run together, one after the other along the token axis: T is the number of new tokens
of all of them.
Shapes in comments: T new tokens, S one sequence's new tokens, L its tokens so far, D hidden size, V vocabulary.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Decoder
from edgeship.blas import one_thread
from edgeship.reference.arithmetic import attend, gate_by_silu, rms_norm, rotate
from edgeship.reference.weights import EMBED, HEAD, Floats, Weights

CHUNK_WEIGHTS = 1 << 19  # weights worked through at a time: 2 MB of float32 stays in cache, and threads meet rarely
THREADS = 2  # measured: four take as long as two, for a third more CPU seconds
CHUNK_ROWS = 64  # rows at least, however long: below that BLAS packs its other operand more often than it uses it
SMALL_PRODUCT = 1_000_000  # OpenBLAS (interface/gemm.c) does not pack at all up to this many multiply-adds

R = TypeVar("R")


@dataclass
class _Sequence:
    """One sequence's tokens so far, and its keys and values per layer, float32 `[L, kv_heads, head_dim]`.

    `room`: where they are kept, `[layers, 2, capacity, kv_heads, head_dim]`; without, in arrays that are replaced.
    """

    room: Floats | None = None
    length: int = 0
    keys: dict[int, Floats] = field(default_factory=dict)
    values: dict[int, Floats] = field(default_factory=dict)

    def store(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Append the new tokens' keys and values of a layer; returns those of all tokens."""
        if self.room is not None:
            end = self.length + len(keys)
            self.room[layer, 0, self.length : end], self.room[layer, 1, self.length : end] = keys, values
            return self.room[layer, 0, :end], self.room[layer, 1, :end]
        for kept, new in ((self.keys, keys), (self.values, values)):
            kept[layer] = np.concatenate([kept[layer], new]) if layer in kept else new.copy()
        return self.keys[layer], self.values[layer]


class Pass:
    """A float32 forward pass over several sequences that are continued together.

    Use it as a context manager: it holds threads. Memory: `threads` chunks of weights, activations of the new tokens,
    and keys and values of all tokens. The same input gives the same bits on the same machine, whatever the threads.
    `capacity`: tokens that no sequence goes beyond, where many are continued token by token: their keys and values lie
    in one piece, which goes back to the operating system; of small pieces the allocator keeps most for itself.
    """

    def __init__(
        self, decoder: Decoder, weights: Weights, sequences: int = 1, threads: int | None = None, capacity: int = 0
    ) -> None:
        self.decoder, self.weights = decoder, weights
        shape = (sequences, decoder.layers, 2, capacity, decoder.kv_heads, decoder.head_dim)
        rooms = np.empty(shape, np.float32) if capacity else [None] * sequences
        self._sequences = [_Sequence(room) for room in rooms]
        self._shapes = {role.key: role.shape for role in decoder.roles()}
        self._threads = threads or min(THREADS, os.cpu_count() or 1)
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._held.enter_context(one_thread())
        self._pool = self._held.enter_context(ThreadPoolExecutor(self._threads))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.close()

    def extend(self, tokens: Sequence[Sequence[int]]) -> Floats:
        """Append tokens[i] to sequence i and return the new tokens' hidden states after the last norm, `[T, D]`.

        Rows are in the order of the sequences. Raises ValueError at a token id outside the vocabulary.
        """
        if len(tokens) != len(self._sequences):
            raise ValueError(f"{len(tokens)} lists of tokens for {len(self._sequences)} sequences")
        d = self.decoder
        x = self._embed([t for new in tokens for t in new])
        lengths = [s.length + len(new) for s, new in zip(self._sequences, tokens, strict=True)]
        positions = np.concatenate([np.arange(s.length, n) for s, n in zip(self._sequences, lengths, strict=True)])
        cos, sin = (table[positions][:, None, :] for table in d.rope.tables(0, max(lengths)))  # [T, 1, head_dim / 2]
        counts = [len(new) for new in tokens]
        for i in range(d.layers):
            p = f"layers.{i}."
            x = x + self._attention(i, self._norm(x, p + "attn_norm.weight"), counts, cos, sin)
            x = x + self._feed_forward(p + "mlp.", self._norm(x, p + "mlp_norm.weight"))
        for sequence, length in zip(self._sequences, lengths, strict=True):
            sequence.length = length
        return self._norm(x, "norm.weight")

    def linear(self, key: str, x: Floats) -> Floats:
        """x `[T, in]` times the weight `[out, in]` of `key`, plus its bias where the decoder has one: `[T, out]`."""
        shape = self._shapes[key + ".weight"]
        columns = np.ascontiguousarray(x.T)  # [in, T]
        out = np.empty((shape[0], x.shape[0]), np.float32)

        def multiply(a: int, b: int) -> None:
            _product(self.weights.weights(key + ".weight", a, b), columns, out[a:b])

        self._over_chunks(shape, multiply)
        if key + ".bias" in self._shapes:
            out += self.weights.vector(key + ".bias")[:, None]
        return out.T

    def logits(self, hidden: Floats, reduce: Callable[[int, Floats], R]) -> list[R]:
        """What `reduce(first token id, logits [ids, T])` makes of each piece of the vocabulary, in order.

        Called from several threads; logits of the whole vocabulary never exist at once.
        """
        columns = np.ascontiguousarray(hidden.T)

        def piece(a: int, b: int) -> R:
            out = np.empty((b - a, hidden.shape[0]), np.float32)
            _product(self.weights.weights(HEAD, a, b), columns, out)
            return reduce(a, out)

        return self._over_chunks(self._shapes[EMBED], piece)  # the head has the embedding's shape

    def _over_chunks(self, shape: tuple[int, ...], work: Callable[[int, int], R]) -> list[R]:
        """`work(a, b)` for consecutive row ranges [a, b) of a weight, on all threads; the results in order."""
        rows, columns = shape
        step = max(CHUNK_ROWS, CHUNK_WEIGHTS // columns)
        starts = range(0, rows, step)
        n = min(self._threads, len(starts))

        # Every n-th chunk to a thread: handing chunks over one by one costs more than the imbalance.
        def share(first: int) -> list[R]:
            return [work(a, min(a + step, rows)) for a in starts[first::n]]

        parts = list(self._pool.map(share, range(n))) if n > 1 else [share(0)]
        return [parts[i % n][i // n] for i in range(len(starts))]

    def _embed(self, tokens: Sequence[int]) -> Floats:
        out = np.empty((len(tokens), self.decoder.hidden_size), np.float32)
        for row, token in zip(out, tokens, strict=True):
            if not 0 <= token < self.decoder.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.decoder.vocab_size}")
            row[:] = self.weights.weights(EMBED, token, token + 1)[0]
        return out

    def _norm(self, x: Floats, key: str) -> Floats:
        return rms_norm(x, self.weights.vector(key), self.decoder.norm_eps)

    def _attention(self, i: int, x: Floats, counts: Sequence[int], cos: Floats, sin: Floats) -> Floats:
        d, p = self.decoder, f"layers.{i}.attn."
        q, k, v = (self.linear(p + name, x).reshape(len(x), -1, d.head_dim) for name in "qkv")  # [T, heads, head_dim]
        if d.qk_norm:
            q, k = self._norm(q, p + "q_norm.weight"), self._norm(k, p + "k_norm.weight")
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = np.empty((len(x), d.heads * d.head_dim), np.float32)
        starts = itertools.accumulate(counts, initial=0)
        for sequence, a, count in zip(self._sequences, starts, counts, strict=False):
            keys, values = sequence.store(i, k[a : a + count], v[a : a + count])
            if count:
                out[a : a + count] = attend(q[a : a + count], keys, values, sequence.length)
        return self.linear(p + "o", out)

    def _feed_forward(self, p: str, x: Floats) -> Floats:
        gated = self.linear(p + "gate", x)
        gate_by_silu(gated, self.linear(p + "up", x))
        return self.linear(p + "down", gated)


def _product(w: Floats, columns: Floats, out: Floats) -> None:
    """out `[rows, T]` = w `[rows, in]` times columns `[in, T]`."""
    step = max(1, min(len(w), SMALL_PRODUCT // columns.size)) if columns.shape[1] <= 8 else len(w)
    for a in range(0, len(w), step):
        np.matmul(w[a : a + step], columns, out=out[a : a + step])


@dataclass(frozen=True)
class Top:
    """The largest logits of each of T positions, and how wide all of them spread."""

    ids: NDArray[np.int64]  # [T, k], largest first; the smaller id first where two are equal
    values: Floats  # [T, k]
    std: NDArray[np.float64]  # [T], over the vocabulary
    whole: Floats  # [V, rows that were asked for whole]


def top_logits(run: Pass, hidden: Floats, k: int = 5, whole: Sequence[int] = ()) -> Top:
    """The k largest logits at each of the hidden states `[T, D]` (normed, as `Pass.extend` answers them).

    `whole`: indices of the states all of whose logits are wanted.
    """
    vocabulary = run.decoder.vocab_size
    pieces = run.logits(hidden, lambda first, logits: (*_top_of_piece(first, logits, k), logits[:, list(whole)]))
    ids = np.concatenate([p[0] for p in pieces])  # [pieces * k, T]
    values = np.concatenate([p[1] for p in pieces])
    order = np.lexsort((ids, -values), axis=0)[:k]
    mean = sum(p[2] for p in pieces) / vocabulary
    variance = sum(p[3] for p in pieces) / vocabulary - mean**2
    return Top(
        np.take_along_axis(ids, order, axis=0).T,
        np.take_along_axis(values, order, axis=0).T,
        np.sqrt(np.maximum(variance, 0)),
        np.concatenate([p[4] for p in pieces]),
    )


def _top_of_piece(first: int, logits: Floats, k: int) -> tuple[NDArray[Any], ...]:
    """Ids and values `[k, T]` of a piece's largest logits `[ids, T]`, and the sums of logits and of their squares."""
    k = min(k, len(logits))
    # Of two equal values at the boundary argpartition may take either: sorting the whole piece is exact, and slow.
    rows = np.argpartition(logits, len(logits) - k, axis=0)[-k:]
    wide = logits.astype(np.float64)
    return rows + first, np.take_along_axis(logits, rows, axis=0), wide.sum(axis=0), np.square(wide).sum(axis=0)
