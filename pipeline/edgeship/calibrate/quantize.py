"""Weights put on the grid layer by layer, each with the inputs that the layers quantized before it give.

Within a block the linear layers go in running order, by site: the inputs of a site are summed over all tokens, its
weights are quantized, and what comes behind sees their new values. Codes go to a store on disk, hidden states beside
them, so that an interrupted run goes on at its block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Literal

import numpy as np

from edgeship.archs.base import Decoder, block_bytes
from edgeship.blas import all_cores, each
from edgeship.calibrate.statistics import Sums
from edgeship.calibrate.store import StoredCodes
from edgeship.calibration import CHOOSERS, CHUNK
from edgeship.encodings import Encoding
from edgeship.errors import CheckpointError
from edgeship.progress import Progress
from edgeship.quant import gptq, search
from edgeship.reference.arithmetic import Floats
from edgeship.reference.blocks import DOWN, GATE_UP, OUT, QKV, Batch, Block, Walk, walk_blocks
from edgeship.reference.weights import EMBED, HEAD, CheckpointWeights, Weights
from edgeship.tensors import QuantizedRows

Algorithm = Literal["rtn-search", "gptq"]

Choose = Callable[[int, Floats], QuantizedRows]
"""Rounds rows `[n, columns]` of a weight, given the first one's number."""

Inputs = Callable[[Batch, int], Floats]
"""The input `[T, columns]` of a site for a batch of a copy of the hidden states; called in running order."""

DOUBT = 2.0  # columns' worth of tokens at which a correction by exact inputs is trusted by half


@dataclass(frozen=True)
class Calibrator:
    """What a calibration works on: the model, the tokens, and what its weights are to become."""

    decoder: Decoder
    weights: CheckpointWeights
    tokens: Sequence[Sequence[int]]
    encodings: Mapping[str, Encoding]  # by role key, of the weights to choose codes for
    algorithm: Algorithm
    directory: Path  # of the store
    progress: Progress
    shared_head: bool = False  # the embedding is the head too

    def run(self) -> dict[str, StoredCodes]:
        """The codes of every weight of `encodings`, by its key.

        Raises CheckpointError at weights or hidden states that are not finite.
        """
        with all_cores():  # all of it: codes do not depend on how many threads BLAS would run by itself
            return self._run()

    def _run(self) -> dict[str, StoredCodes]:
        tables = [key for key in (EMBED, HEAD) if key in self.encodings]
        self.directory.mkdir(parents=True, exist_ok=True)
        if EMBED in tables:
            self._table()
        seen = Overlay(self.weights, {EMBED: self.stored(EMBED)} if EMBED in tables else {})
        walk = Walk(self.decoder, seen, self.tokens, copies=self._copies, directory=self.directory)
        if not all(self.stored(key).whole for key in self._of_blocks(walk.done)):
            walk.start_over()
        if walk.done:
            self.progress.note(f"{self.algorithm}: {walk.done} of {self.decoder.layers} blocks were done before")
        self.progress.start((self.decoder.layers - walk.done) * block_bytes(self.decoder), self.algorithm)
        while walk.done < self.decoder.layers:
            self._block(walk)
            walk.finish_block()
        self.progress.finish()
        if HEAD in tables:
            self._head(walk)
        return {key: self.stored(key) for key in self.encodings}

    def stored(self, key: str) -> StoredCodes:
        """Where a weight's codes are kept."""
        rows, columns = self._shapes[key]
        return StoredCodes(self.directory / f"{key}.codes", self.encodings[key], (rows, columns))

    def _of_blocks(self, count: int) -> list[str]:
        """The keys of the weights of so many first blocks."""
        prefixes = tuple(f"layers.{index}." for index in range(count))
        return [key for key in self.encodings if key.startswith(prefixes)]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {role.key: role.shape for role in self.decoder.roles()}
        return {HEAD: shapes[EMBED]} | shapes

    def _block(self, walk: Walk) -> None:
        """Quantize a block, and take the hidden states through it: copy 0 as quantized, copy 1 in float.

        Copy 1 passes a site before its weights are quantized, so that no matrix is held twice.
        """
        block, tokens = walk.block(), walk.batches[-1].b
        heads = np.empty((self._copies, tokens, self.decoder.heads * self.decoder.head_dim), np.float32)

        def qkv(batch: Batch, copy: int) -> Floats:
            normed = block.attention_input(walk.hidden(batch, copy))
            if copy == 1:
                heads[1, batch.a : batch.b] = block.attention(normed, batch.lengths)
            return normed

        def out(batch: Batch, copy: int) -> Floats:
            answers = heads[copy, batch.a : batch.b]
            if copy == 0:
                answers[:] = block.attention(block.attention_input(walk.hidden(batch)), batch.lengths)
            else:
                walk.advance(batch, block.after_attention(walk.hidden(batch, 1), answers), 1)
            return answers

        def gate_up(batch: Batch, copy: int) -> Floats:
            if copy == 0:
                walk.advance(batch, block.after_attention(walk.hidden(batch), heads[0, batch.a : batch.b]))
            normed = block.mlp_input(walk.hidden(batch, copy))
            if copy == 1:
                exact.put(batch, block.gated(normed))
            return normed

        def down(batch: Batch, copy: int) -> Floats:
            if copy == 0:
                gated = block.gated(block.mlp_input(walk.hidden(batch)))
                kept.put(batch, gated)
            else:
                gated = exact.take(batch)
                walk.advance(batch, block.after_mlp(walk.hidden(batch, 1), gated), 1)
            return gated

        self._site(block, QKV, walk, qkv)
        self._site(block, OUT, walk, out, behind=QKV)
        with TemporaryFile(dir=self.directory) as a, TemporaryFile(dir=self.directory) as b:
            kept, exact = Kept(a, self.decoder.feed_forward), Kept(b, self.decoder.feed_forward)
            self._site(block, GATE_UP, walk, gate_up, behind=OUT)
            self._site(block, DOWN, walk, down, behind=GATE_UP)
            for batch in walk.batches:
                walk.advance(batch, block.after_mlp(walk.hidden(batch), kept.take(batch)))

    @property
    def _copies(self) -> int:
        return 2 if self.algorithm == "gptq" else 1

    def _site(self, block: Block, names: Sequence[str], walk: Walk, inputs: Inputs, behind: Sequence[str] = ()) -> None:
        """Sum up the inputs of a site over all tokens and quantize its weights; those `behind` are needed no more."""
        keys = {block.key(name): name for name in names if block.key(name) in self.encodings}
        matrices = [block.matrix(name) for name in names]
        rows, columns = matrices[0].shape
        narrows = len(names) == 1 and rows < columns
        sums = Sums(columns, hessian=self._feeds(keys), through=matrices[0] if narrows else None)
        for batch in walk.batches:
            given = [inputs(batch, copy) for copy in range(self._copies)]
            sums.add(given[0], given[1] if keys and len(given) == 2 else None)
        block.release(behind)
        chosen = self._inputs(keys, sums, block.prefix)
        for key, name in keys.items():
            matrix = block.matrix(name)
            self._quantize(key, chosen(key), partial(_rows, matrix), matrix)
        for name in names:
            self.progress.advance(block.matrix(name).nbytes, block.prefix + name)

    def _feeds(self, keys: Collection[str]) -> bool:
        return self.algorithm == "gptq" and bool(keys)

    def _head(self, walk: Walk) -> None:
        if not self.stored(HEAD).whole:
            self._quantize(HEAD, self._of_head(HEAD, walk), lambda a, b: self.weights.weights(HEAD, a, b))

    def _of_head(self, key: str, walk: Walk) -> Choose:
        """How a table is to be rounded for what the head multiplies behind the blocks that were walked through."""
        sums = Sums(self.decoder.hidden_size, hessian=self._feeds([key]))
        for batch in walk.batches:
            sums.add(walk.final(batch))
        return self._inputs([key], sums, "head")(key)

    def _table(self) -> None:
        """Choose the codes of the embedding, before the blocks that then make up for its errors.

        Rows that are looked up multiply nothing: all columns of such a table weigh the same. One that is the head too
        is rounded for what the float model's head multiplies, which takes a pass of its own.
        """
        stored = self.stored(EMBED)
        if stored.whole:
            return

        def evenly(a: int, rows: Floats) -> QuantizedRows:
            return search.quantize(rows, np.ones(stored.shape[1]), stored.encoding.bits, stored.encoding.group)

        choose: Choose = evenly
        if self.shared_head:
            walk = Walk(self.decoder, self.weights, self.tokens, directory=self.directory, digest="float")
            for _ in walk_blocks(walk, progress=self.progress):
                pass
            choose = self._of_head(EMBED, walk)
        self._quantize(EMBED, choose, lambda a, b: self.weights.weights(EMBED, a, b))

    def _inputs(self, keys: Collection[str], sums: Sums, where: str) -> Callable[[str], Choose]:
        """How each of `keys` is to be rounded, for the inputs that they share."""
        if not np.isfinite(sums.moments()).all():
            raise CheckpointError(
                f"{where}: expected finite numbers from the model, found NaN or infinity in what its weights multiply. "
                f"The artifact would answer with garbage.",
                hint="the checkpoint or an adapter is damaged, or the config.json belongs to another model",
            )
        feedback: dict[int, gptq.Feedback] = {}
        if self._feeds(keys):
            hessian = sums.take_upper()
            for group in {self.encodings[key].group for key in keys}:
                feedback[group] = gptq.prepare(hessian, group)
        moments = sums.moments()
        # What few tokens say of many columns is chance in part: measured, a whole correction then does harm.
        trust = np.float32(sums.count / (sums.count + DOUBT * len(moments)))

        def correction(lacking: Floats | None, inputs: gptq.Feedback) -> Floats | None:
            if lacking is None:
                return None
            lacking *= trust
            return gptq.correction(lacking, inputs)

        def chosen(key: str) -> Choose:
            e = self.encodings[key]
            if e.group not in feedback:
                return lambda a, rows: search.quantize(rows, moments, e.bits, e.group)
            inputs = feedback[e.group]

            return lambda a, rows: gptq.quantize(rows, inputs, e.bits, correction(sums.missing(rows, a), inputs))

        return chosen

    def _quantize(
        self, key: str, choose: Choose, rows: Callable[[int, int], Floats], into: Floats | None = None
    ) -> None:
        """Put a weight on the grid, rows at a time, into the store, and its new values into `into`."""
        stored = self.stored(key)

        def put(some: slice) -> None:
            a, b = some.start, some.stop
            made = choose(a, rows(a, b))
            if not np.isfinite(made.scales).all():
                raise CheckpointError(
                    f"{self.weights.place(key)}: expected finite weights within the range of float16, found NaN, "
                    f"infinity or a larger value. The artifact would answer with garbage.",
                    hint="it is damaged or was saved mid-divergence: fetch it again",
                )
            store.put(a, made)
            if into is not None:
                into[a:b] = made.dequantize()

        with stored.writing() as store:
            each(put, _pieces(*stored.shape), CHOOSERS)


def _pieces(rows: int, columns: int) -> list[slice]:
    """The rows of a matrix in pieces of one size, a multiple of `CHOOSERS` where one would be too large."""
    count = -(-rows * columns // CHUNK)
    if count > 1:
        count = -(-count // CHOOSERS) * CHOOSERS
    step = -(-rows // count)
    return [slice(a, min(a + step, rows)) for a in range(0, rows, step)]


def _rows(matrix: Floats, a: int, b: int) -> Floats:
    return matrix[a:b]


@dataclass(frozen=True)
class Kept:
    """Activations `[N, columns]` in a file.

    Computing them again would take a tenth of the time that a block does, and memory has no room for them.
    """

    file: IO[bytes]
    columns: int

    def put(self, batch: Batch, values: Floats) -> None:
        """Write those of a batch, `[T, columns]`; raises OSError (ENOSPC) where the disk is full."""
        self.file.seek(4 * self.columns * batch.a)
        self.file.write(np.ascontiguousarray(values).data)

    def take(self, batch: Batch) -> Floats:
        """Those of a batch, `[T, columns]`."""
        self.file.seek(4 * self.columns * batch.a)
        return np.fromfile(self.file, np.float32, (batch.b - batch.a) * self.columns).reshape(-1, self.columns)


class Overlay:
    """The weights of a model, some of them as their stored codes have them."""

    def __init__(self, weights: Weights, codes: Mapping[str, StoredCodes]) -> None:
        self._weights, self._codes = weights, codes

    def weights(self, key: str, a: int, b: int) -> Floats:
        if key in self._codes:
            return self._codes[key].rows(a, b).dequantize()
        return self._weights.weights(key, a, b)

    def vector(self, key: str) -> Floats:
        return self._weights.vector(key)
