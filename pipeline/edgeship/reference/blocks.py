"""The float32 forward pass block by block over many tokens: calibration, perplexity, long texts.

`Pass` streams the weights past a few tokens that it continues; a `Walk` takes the hidden states of all tokens through
one block at a time, so each weight is read once however long the text. In memory are one block's matrices (those at
work), one batch's activations, and a hidden state per token.

Shapes in comments: T tokens of a batch, N of all sequences, D hidden size.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Decoder, block_bytes
from edgeship.blas import all_cores, each, product
from edgeship.calibration import BATCH_TOKENS, HEADS
from edgeship.kept import written_whole
from edgeship.progress import Progress, Silent
from edgeship.reference.arithmetic import Floats, attend, gate_by_silu, rms_norm, rotate
from edgeship.reference.weights import EMBED, Weights

CHUNK_WEIGHTS = 1 << 20  # weights widened at a time
GATED_ROWS = 32  # tokens whose gates are worked out at a time: they stay in a cache
QKV, OUT, GATE_UP, DOWN = ("attn.q", "attn.k", "attn.v"), ("attn.o",), ("mlp.gate", "mlp.up"), ("mlp.down",)
SITES = (QKV, OUT, GATE_UP, DOWN)
"""The linear layers of a block in running order; those of one site read the same input."""

See = Callable[[Sequence[str], Floats], None]
"""Takes the role keys of a site's weights and their input `[T, columns]`."""


class Block:
    """One block over whole sequences; matrices are read as float32 when first needed and kept until `release`."""

    def __init__(self, decoder: Decoder, index: int, weights: Weights) -> None:
        self.decoder, self.weights = decoder, weights
        self.prefix = f"layers.{index}."
        self._shapes = {r.key: r.shape for r in decoder.roles() if r.key.startswith(self.prefix)}
        self._held: dict[str, Floats] = {}

    def key(self, name: str) -> str:
        """The role key of the weight of a linear layer: "attn.q" to "layers.0.attn.q.weight"."""
        return f"{self.prefix}{name}.weight"

    def matrix(self, name: str) -> Floats:
        """The weight of a linear layer, float32 `[out, in]`."""
        if name not in self._held:
            self._held[name] = out = np.empty(self._shapes[self.key(name)], np.float32)
            step = max(1, CHUNK_WEIGHTS // out.shape[1])
            for a in range(0, len(out), step):
                out[a : a + step] = self.weights.weights(self.key(name), a, min(a + step, len(out)))
        return self._held[name]

    def replace(self, name: str, values: Floats) -> None:
        """From now on the layer multiplies by `values` `[out, in]`."""
        self._held[name] = values

    def release(self, names: Sequence[str]) -> None:
        """Forget matrices that are not needed for now."""
        for name in names:
            self._held.pop(name, None)

    def linear(self, name: str, x: Floats) -> Floats:
        """x `[T, in]` through a linear layer, its bias included: `[T, out]`."""
        out = product(x, self.matrix(name).T)
        bias = f"{self.prefix}{name}.bias"
        if bias in self._shapes:
            out += self.weights.vector(bias)
        return out

    def attention_input(self, x: Floats) -> Floats:
        """What q, k and v multiply, `[T, D]`, for the block's input x `[T, D]`."""
        return self._norm(x, "attn_norm")

    def attention(self, normed: Floats, lengths: Sequence[int]) -> Floats:
        """The heads' answers, `[T, heads * head_dim]`, for whole sequences of `lengths` one after the other."""
        d = self.decoder
        q, k, v = (self.linear(name, normed).reshape(len(normed), -1, d.head_dim) for name in QKV)
        if d.qk_norm:
            q, k = self._norm(q, "attn.q_norm"), self._norm(k, "attn.k_norm")
        cos, sin = (t[:, None, :] for t in d.rope.tables(0, max(lengths)))  # [S, 1, head_dim / 2]
        out = np.empty(q.shape, np.float32)
        share, starts = d.heads // d.kv_heads, itertools.accumulate(lengths, initial=0)

        def answer(sequence: slice, head: int) -> None:
            n, own, one = sequence.stop - sequence.start, slice(head * share, (head + 1) * share), slice(head, head + 1)
            queries, keys = (rotate(x, cos[:n], sin[:n]) for x in (q[sequence, own], k[sequence, one]))
            out[sequence, own] = attend(queries, keys, v[sequence, one], 0).reshape(n, share, d.head_dim)

        sequences = [slice(a, a + n) for a, n in zip(starts, lengths, strict=False)]
        # A few at a time: scores grow with the square of the sequence.
        each(lambda one: answer(*one), list(itertools.product(sequences, range(d.kv_heads))), HEADS)
        return out.reshape(len(normed), -1)

    def after_attention(self, x: Floats, heads: Floats) -> Floats:
        """The residual stream `[T, D]` behind the attention."""
        return x + self.linear("attn.o", heads)

    def mlp_input(self, x: Floats) -> Floats:
        """What gate and up multiply, `[T, D]`."""
        return self._norm(x, "mlp_norm")

    def gated(self, normed: Floats) -> Floats:
        """What down multiplies, `[T, feed_forward]`."""
        out, up = self.linear("mlp.gate", normed), self.linear("mlp.up", normed)
        rows = [slice(a, a + GATED_ROWS) for a in range(0, len(out), GATED_ROWS)]
        each(lambda some: gate_by_silu(out[some], up[some]), rows, len(rows))
        return out

    def after_mlp(self, x: Floats, gated: Floats) -> Floats:
        """The block's output, `[T, D]`."""
        return x + self.linear("mlp.down", gated)

    def forward(self, x: Floats, lengths: Sequence[int], see: See | None = None) -> Floats:
        """The block's output `[T, D]`; `see` is shown the input of each linear layer on the way."""

        def shown(names: Sequence[str], value: Floats) -> Floats:
            if see is not None:
                see([self.key(name) for name in names], value)
            return value

        heads = self.attention(shown(QKV, self.attention_input(x)), lengths)
        x = self.after_attention(x, shown(OUT, heads))
        return self.after_mlp(x, shown(DOWN, self.gated(shown(GATE_UP, self.mlp_input(x)))))

    def _norm(self, x: Floats, name: str) -> Floats:
        return rms_norm(x, self.weights.vector(f"{self.prefix}{name}.weight"), self.decoder.norm_eps)


@dataclass(frozen=True)
class Batch:
    """Rows `[a, b)` of the hidden states: whole sequences of these lengths."""

    a: int
    b: int
    lengths: tuple[int, ...]


class Walk:
    """The hidden states of all sequences on their way through the blocks.

    Of `copies` (two where models are compared block by block) all begin alike and go on as they are advanced. With
    `directory` they are kept there behind every block, and a walk over the same tokens goes on where an earlier one
    ended. `digest` names the model and all that changes its weights on the way: only the same walk is resumed.
    """

    def __init__(
        self,
        decoder: Decoder,
        weights: Weights,
        tokens: Sequence[Sequence[int]],
        *,
        batch_tokens: int = BATCH_TOKENS,
        copies: int = 1,
        directory: Path | None = None,
        digest: str = "",
    ) -> None:
        """Raises ValueError where there is no token, a sequence is empty, or an id is outside the vocabulary."""
        if not tokens or not all(len(t) for t in tokens):
            raise ValueError("expected sequences of at least one token")
        self.decoder, self.weights = decoder, weights
        self.batches = tuple(_batches([len(t) for t in tokens], batch_tokens))
        self.done = 0  # blocks
        self._ids = ids = np.concatenate([np.asarray(t, np.int64) for t in tokens])
        self._copies, self._directory = copies, directory
        self.digest = hashlib.sha256(
            f"{digest} {copies} {[len(t) for t in tokens]}".encode() + ids.tobytes()
        ).hexdigest()[:16]
        kept = self._resume()
        self._states: Floats = self._embed(ids) if kept is None else kept  # [copies, N, D]

    def block(self) -> Block:
        """The next block."""
        return Block(self.decoder, self.done, self.weights)

    @property
    def states(self) -> Floats:
        """The first copy's hidden states, `[N, D]`."""
        first: Floats = self._states[0]
        return first

    def hidden(self, batch: Batch, copy: int = 0) -> Floats:
        """The batch's hidden states, `[T, D]`."""
        states: Floats = self._states[copy, batch.a : batch.b]
        return states

    def advance(self, batch: Batch, states: Floats, copy: int = 0) -> None:
        """Replace the batch's hidden states by `[T, D]`, as a part of the block at hand leaves them."""
        self._states[copy, batch.a : batch.b] = states

    def finish_block(self) -> None:
        """All batches are behind the block at hand; from here on the next one is."""
        self.done += 1
        if self._directory is None:
            return
        with written_whole(self._file(self.done)) as file:
            # As np.save does, which does not say that a disk is full.
            header = np.lib.format.header_data_from_array_1_0(self._states)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(self._states.data)
        self._file(self.done - 1).unlink(missing_ok=True)

    def start_over(self) -> None:
        """Back to the first block, where what else was kept of the others is not there."""
        self.done, self._states = 0, self._embed(self._ids)

    def final(self, batch: Batch) -> Floats:
        """What the head multiplies, `[T, D]`, once all blocks are done."""
        assert self.done == self.decoder.layers
        return rms_norm(self.hidden(batch), self.weights.vector("norm.weight"), self.decoder.norm_eps)

    def _file(self, done: int) -> Path:
        assert self._directory is not None
        return self._directory / f"states-{self.digest}-{done}.npy"

    def _resume(self) -> Floats | None:
        if self._directory is None:
            return None
        for done in range(self.decoder.layers, 0, -1):
            try:
                states: Floats = np.load(self._file(done))
            except (OSError, ValueError, EOFError):
                continue  # not there, or damaged
            if states.shape == (self._copies, len(self._ids), self.decoder.hidden_size):
                self.done = done
                return states
        return None

    def _embed(self, ids: NDArray[np.int64]) -> Floats:
        outside = ids[(ids < 0) | (ids >= self.decoder.vocab_size)]
        if outside.size:
            raise ValueError(f"token id {outside[0]} is outside the vocabulary of {self.decoder.vocab_size}")
        out = np.empty((self._copies, len(ids), self.decoder.hidden_size), np.float32)
        for row, token in zip(out[0], ids, strict=True):
            row[:] = self.weights.weights(EMBED, token, token + 1)[0]
        out[1:] = out[0]
        return out


def _batches(lengths: Sequence[int], most: int) -> Iterator[Batch]:
    """Neighbouring sequences of at most `most` tokens together, or one that is longer."""
    first, held = 0, list[int]()
    for length in lengths:
        if held and sum(held) + length > most:
            yield Batch(first, first + sum(held), tuple(held))
            first, held = first + sum(held), []
        held.append(length)
    yield Batch(first, first + sum(held), tuple(held))


def walk_blocks(walk: Walk, see: See | None = None, progress: Progress | None = None) -> Generator[int, None, None]:
    """Take all batches through the blocks that are left, yielding each block's index when all are through it."""
    progress, size = progress or Silent(), block_bytes(walk.decoder)
    progress.start((walk.decoder.layers - walk.done) * size, "reference pass")
    while walk.done < walk.decoder.layers:
        index, block = walk.done, walk.block()
        with all_cores():
            for i, batch in enumerate(walk.batches):
                walk.advance(batch, block.forward(walk.hidden(batch), batch.lengths, see))
                share = (i + 1) * size // len(walk.batches) - i * size // len(walk.batches)
                progress.advance(share, f"block {index}")
        yield index
        walk.finish_block()
    progress.finish()


def hidden_states(
    decoder: Decoder, weights: Weights, tokens: Sequence[Sequence[int]], progress: Progress | None = None
) -> Iterator[tuple[Batch, Floats]]:
    """Each batch of the sequences with its hidden states after the last norm, `[T, D]`, for `Pass.logits`.

    Raises ValueError as `Walk` does.
    """
    walk = Walk(decoder, weights, tokens)
    for _ in walk_blocks(walk, progress=progress):
        pass
    for batch in walk.batches:
        yield batch, walk.final(batch)
