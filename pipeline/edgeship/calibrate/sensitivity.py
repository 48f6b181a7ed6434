"""What storing a tensor with fewer bits costs the model: the divergence it causes when it alone is rounded.

Each tensor in turn is rounded to its smallest type, the calibration text goes through the model from there on, and the
Kullback-Leibler divergence of the next-token distribution from the float model's is averaged over the positions. For
small roundings it is quadratic in them, so tensors add up, and another type of the same tensor costs less by the ratio
of the squared rounding errors, weighted by the mean squares of what the tensor multiplies.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Decoder, block_bytes
from edgeship.blas import one_thread
from edgeship.calibration import PROBE_CHUNK as CHUNK
from edgeship.calibration import PROBE_THREADS as THREADS
from edgeship.encodings import Encoding
from edgeship.kept import keep_json, read_json
from edgeship.progress import Progress
from edgeship.quant import ggml, rtn, search
from edgeship.reference.arithmetic import Floats, rms_norm
from edgeship.reference.blocks import SITES, Block, Walk
from edgeship.reference.weights import EMBED, HEAD, Weights

Moments = NDArray[np.float64]

NAMES = tuple(name for site in SITES for name in site)


@dataclass(frozen=True)
class Probe:
    """A model, a text, and the types in question for each tensor."""

    decoder: Decoder
    weights: Weights
    tokens: Sequence[Sequence[int]]
    types: Mapping[str, Sequence[Encoding]]  # by role key, the smallest first; a tied table's are of the head too
    moments: Mapping[str, Moments]  # mean squares of the input `[columns]`, by role key; missing: all alike
    progress: Progress
    directory: Path | None = None  # what is measured is kept there: an interrupted run goes on at its block
    digest: str = ""  # names the weights: only what was measured of them is taken up again
    nearest: bool = False  # the grid's weights are written rounded to nearest, not with scales that are searched for

    def run(self) -> dict[str, dict[str, float]]:
        """The divergence each type of each tensor is expected to cause, in nats per token, by key and type."""
        found, size = self._kept(), block_bytes(self.decoder)
        with one_thread(), ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            self.progress.start(self._passes(found) * size, "sensitivity")
            measure = _Measure(self, pool)
            states = self._walk.states
            for index in range(self.decoder.layers):
                names = [name for name in NAMES if self._key(index, name) in self.types]
                states, ends = measure.block(index, states, [n for n in names if self._key(index, n) not in found])
                losses = measure.divergences([(self.weights, end) for end in ends.values()])
                found |= {self._key(index, name): loss for name, loss in zip(ends, losses, strict=True)}
                self._keep(found)
                self.progress.advance(size, f"block {index}")
            for key in (EMBED, HEAD):
                if key in self.types and key not in found:
                    found[key] = measure.table(key)
            self._keep(found)
            self.progress.finish()
            errors = dict(zip(self.types, pool.map(self._errors, self.types), strict=True))
        return {key: _scaled(found[key], errors[key]) for key in self.types}

    @cached_property
    def _walk(self) -> Walk:
        return Walk(self.decoder, self.weights, self.tokens)

    def _passes(self, found: Collection[str]) -> int:
        """Blocks that states are still to be taken through, one or several at a time."""
        layers = self.decoder.layers
        missing = [i for i in range(layers) if any(self._key(i, n) in self.types.keys() - set(found) for n in NAMES)]
        tables = layers if EMBED in self.types and EMBED not in found else 0
        return 2 * layers + sum(layers - 1 - i for i in missing) + tables

    def _key(self, index: int, name: str) -> str:
        return f"layers.{index}.{name}.weight"

    def _errors(self, key: str) -> dict[str, float]:
        """The weighted squared error of a tensor in each of its types."""
        rows, columns = self.shapes[key]
        weigh, step = self.moments.get(key, np.ones(columns)), max(1, CHUNK // columns)
        out = dict.fromkeys((e.name for e in self.types[key]), 0.0)
        for a in range(0, rows, step):
            values = self.weights.weights(key, a, min(a + step, rows)).copy()
            for e in self.types[key]:
                difference = self.rounded(key, values, e) - values
                out[e.name] += float(np.einsum("rc,rc,c->", difference, difference, weigh, dtype=np.float64))
        return out

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by role key; a tied head has the embedding's."""
        shapes = {role.key: role.shape for role in self.decoder.roles()}
        return {HEAD: shapes[EMBED]} | shapes

    def rounded(self, key: str, values: Floats, encoding: Encoding) -> Floats:
        """Rows of the tensor `key` as an encoding holds them, float32 of the same shape."""
        weigh = self.moments.get(key)
        if encoding.on_grid and self.nearest:
            return rtn.quantize(values, encoding.bits, encoding.group).dequantize()
        if encoding.on_grid:
            even = np.ones(values.shape[1]) if weigh is None else weigh
            return search.quantize(values, even, encoding.bits, encoding.group).dequantize()
        if encoding.name == "bfloat16":
            bits = values.view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
        if not encoding.quantized:
            kept: Floats = values.astype(np.float16 if encoding.bits == 16 else np.float32).astype(np.float32)
            return kept
        assert encoding.gguf is not None
        convert, importance = ggml.dequantizer(encoding.gguf), None if weigh is None else weigh.astype(np.float32)
        assert convert is not None, f"{encoding.gguf} can be written and not read"
        out = np.empty(values.shape, np.float32)
        convert(ggml.quantize(values, encoding.gguf, importance, what=key), out)
        return out

    def _file(self) -> Path | None:
        types = {key: [e.name for e in of] for key, of in self.types.items()}
        asked = json.dumps([self.digest, self.nearest, types, [list(map(int, t)) for t in self.tokens]], sort_keys=True)
        name = f"sensitivity-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
        return self.directory / name if self.directory else None

    def _kept(self) -> dict[str, float]:
        file = self._file()
        return dict(read_json(file) or {}) if file is not None else {}

    def _keep(self, found: Mapping[str, float]) -> None:
        file = self._file()
        if file is not None:
            keep_json(file, found)


class _Measure:
    """The model run with one tensor rounded, on a pool of threads, and compared with the model as it is."""

    def __init__(self, probe: Probe, pool: ThreadPoolExecutor) -> None:
        self._probe, self._pool = probe, pool
        self._reference = self._from(0, [probe._walk.states.copy()])[0]

    def block(self, index: int, states: Floats, names: Sequence[str]) -> tuple[Floats, dict[str, Floats]]:
        """Hidden states `[N, D]` behind a block; and those at the end with each of its named layers rounded."""
        block, behind = self._block(index), list[Floats]()
        for name in names:
            key, matrix = block.key(name), block.matrix(name)
            block.replace(name, self._rounded(key, matrix))
            behind.append(self._through(block, states, np.empty_like(states)))
            block.replace(name, matrix)
        after = self._through(block, states, np.empty_like(states))
        block.release(NAMES)
        return after, dict(zip(names, self._from(index + 1, behind), strict=True))

    def table(self, key: str) -> float:
        """The divergence with the embedding (and with it a tied head), or with the head, rounded."""
        probe = self._probe
        tied = key == EMBED and probe.decoder.tied and HEAD not in probe.types
        rounded = _Rounded(probe, key, (EMBED, HEAD) if tied else (key,))
        end = self._reference
        if key == EMBED:
            [end] = self._from(0, [Walk(probe.decoder, rounded, probe.tokens).states])
        [found] = self.divergences([(rounded if tied or key == HEAD else probe.weights, end)])
        return found

    def divergences(self, others: Sequence[tuple[Weights, Floats]]) -> list[float]:
        """KL(float model, other) in nats per position, for the hidden states and heads of others."""
        if not others:
            return []
        weights, (vocabulary, columns) = self._probe.weights, self._probe.shapes[EMBED]
        inputs, step = self._reference.T, max(1, CHUNK // max(columns, len(self._reference)))
        base, sums = _LogSum(len(self._reference)), [_LogSum(len(end)) for _, end in others]
        cross = [np.zeros(len(self._reference)) for _ in others]
        for a in range(0, vocabulary, step):
            table = weights.weights(HEAD, a, min(a + step, vocabulary))
            logits: Floats = table @ inputs  # [ids, T]
            scale, powers = base.add(logits)

            def compare(i: int) -> None:
                own, end = others[i]
                rows = table if own is weights else own.weights(HEAD, a, a + len(table))  # noqa: B023 — done with it below
                found = rows @ end.T
                sums[i].add(found)
                cross[i] *= scale  # noqa: B023
                cross[i] += np.einsum("vt,vt->t", powers, logits - found, dtype=np.float64)  # noqa: B023

            list(self._pool.map(compare, range(len(others))))
        return [float(np.mean(c / base.sums - base.logs() + s.logs())) for c, s in zip(cross, sums, strict=True)]

    def _from(self, index: int, states: list[Floats]) -> list[Floats]:
        """What the head multiplies, `[N, D]`, for each of these states in front of block `index`; they become it."""
        d, weights = self._probe.decoder, self._probe.weights
        for i in range(index, d.layers if states else index):
            block = self._block(i)
            list(self._pool.map(lambda s, b=block: self._through(b, s, s), states))
            block.release(NAMES)
            self._probe.progress.advance(block_bytes(d), f"block {i}")
        gain = weights.vector("norm.weight")
        for each in states:
            for batch in self._probe._walk.batches:
                each[batch.a : batch.b] = rms_norm(each[batch.a : batch.b], gain, d.norm_eps)
        return states

    def _rounded(self, key: str, matrix: Floats) -> Floats:
        """A whole matrix `[out, in]` in the smallest of its types."""
        out, step = np.empty_like(matrix), max(1, CHUNK // matrix.shape[1])
        for a in range(0, len(matrix), step):
            out[a : a + step] = self._probe.rounded(key, matrix[a : a + step], self._probe.types[key][0])
        return out

    def _block(self, index: int) -> Block:
        block = Block(self._probe.decoder, index, self._probe.weights)
        for name in NAMES:  # before threads ask for the same one
            block.matrix(name)
        return block

    def _through(self, block: Block, states: Floats, out: Floats) -> Floats:
        """Hidden states `[N, D]` behind a block, written to `out`, which may be `states`."""
        for batch in self._probe._walk.batches:
            out[batch.a : batch.b] = block.forward(states[batch.a : batch.b], batch.lengths)
        return out


class _LogSum:
    """The logarithm of a sum of exponentials per position, over pieces of the vocabulary."""

    def __init__(self, positions: int) -> None:
        self._most: Floats = np.full(positions, -np.inf, np.float32)
        self.sums: Moments = np.zeros(positions)

    def add(self, logits: Floats) -> tuple[NDArray[np.float64], Floats]:
        """Count in `[ids, T]`; returns by what earlier sums were scaled, and the powers of e on the new scale."""
        most = np.maximum(self._most, logits.max(axis=0))
        scale = np.exp((self._most - most).astype(np.float64))
        powers = np.exp(logits - most)
        self._most, self.sums = most, self.sums * scale + powers.sum(axis=0, dtype=np.float64)
        return scale, powers

    def logs(self) -> NDArray[np.float64]:
        return self._most.astype(np.float64) + np.log(self.sums)


class _Rounded:
    """The model's weights, but some tables rounded to the smallest type of `key`."""

    def __init__(self, probe: Probe, key: str, tables: Sequence[str]) -> None:
        self._probe, self._key, self._tables = probe, key, tables

    def weights(self, key: str, a: int, b: int) -> Floats:
        rows = self._probe.weights.weights(key, a, b)
        return self._probe.rounded(self._key, rows, self._probe.types[self._key][0]) if key in self._tables else rows

    def vector(self, key: str) -> Floats:
        return self._probe.weights.vector(key)


def _scaled(measured: float, errors: Mapping[str, float]) -> dict[str, float]:
    """The divergence of each type: as measured for the first, in proportion to the error for the others."""
    first = next(iter(errors.values()))
    return {name: max(measured, 0.0) * (error / first if first else 1.0) for name, error in errors.items()}
