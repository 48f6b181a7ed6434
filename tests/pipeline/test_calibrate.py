"""Calibration: statistics of what goes into each layer, codes by block, and the store that keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tolerances
from checkpoints import write_checkpoint
from edgeship import blas
from edgeship.archs.base import Decoder
from edgeship.calibrate import quantize, statistics
from edgeship.calibrate.quantize import Calibrator, Overlay
from edgeship.calibrate.statistics import Sums
from edgeship.calibrate.store import StoredCodes
from edgeship.encodings import ENCODINGS
from edgeship.errors import CheckpointError
from edgeship.progress import Silent
from edgeship.quant import rtn
from edgeship.reference.blocks import Block, Walk, hidden_states
from edgeship.reference.forward import Pass
from edgeship.reference.weights import EMBED, HEAD, CheckpointWeights, Weights
from edgeship.tensors import QuantizedRows
from edgeship.tiny import checkpoint_dir
from edgeship.tiny.text import samples
from reference_models import opened

Floats = NDArray[np.float32]

INT4 = ENCODINGS["int4-32"]


@pytest.fixture(scope="module")
def tokens() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[int(i) for i in rng.integers(0, 320, 40)] for _ in range(8)]


def body(decoder: Decoder, encoding: str = "int4-32") -> dict[str, Any]:
    return {r.key: ENCODINGS[encoding] for r in decoder.roles() if r.part == "body"}


# Statistics


def test_moments_and_hessians_are_those_of_the_inputs(small: Path, tokens: list[list[int]]) -> None:
    decoder, weights = opened(small)
    wanted: dict[str, list[Floats]] = {}
    walk = Walk(decoder, weights, tokens)
    states = [walk.hidden(batch).copy() for batch in walk.batches]
    for i in range(decoder.layers):
        block = Block(decoder, i, weights)

        def see(keys: Sequence[str], x: Floats) -> None:
            for key in keys:
                wanted.setdefault(key, []).append(x)

        states = [block.forward(x, batch.lengths, see) for x, batch in zip(states, walk.batches, strict=True)]
    wanted[HEAD] = [x for _, x in hidden_states(decoder, weights, tokens)]

    found = statistics(decoder, weights, tokens)
    assert set(found) == set(wanted)
    for key, parts in wanted.items():
        x = np.concatenate(parts).astype(np.float64)
        assert found[key].count == len(x) == 320
        np.testing.assert_allclose(found[key].second_moments, np.square(x).mean(axis=0), rtol=tolerances.MOMENTS)
        sums = Sums(x.shape[1], hessian=True)
        for part in parts:
            sums.add(part)
        whole = np.triu(x.T @ x / len(x))
        assert np.abs(np.triu(sums.take_upper()) - whole).max() <= tolerances.HESSIAN * whole.max()


def test_statistics_go_on_at_the_block_they_were_cut_short_at(
    small: Path, tokens: list[list[int]], tmp_path: Path
) -> None:
    decoder, weights = opened(small)
    whole = statistics(decoder, weights, tokens)
    read: list[str] = []

    class Failing(CheckpointWeights):
        def weights(self, key: str, a: int, b: int) -> Floats:
            read.append(key)
            if key == "layers.2.attn.o.weight" and len(read) < 5000:
                raise KeyboardInterrupt
            return super().weights(key, a, b)

    failing = Failing(weights._tensors)
    with pytest.raises(KeyboardInterrupt):
        statistics(decoder, failing, tokens, directory=tmp_path)
    read[:] = ["many"] * 5000
    again = statistics(decoder, failing, tokens, directory=tmp_path)
    assert not any(key.startswith(("layers.0", "layers.1")) for key in read), "two blocks were done"
    for key, each in whole.items():
        np.testing.assert_array_equal(again[key].second_moments, each.second_moments)


# Codes by block


def divergence(decoder: Decoder, exact: Weights, other: Weights, tokens: Sequence[Sequence[int]]) -> float:
    """Mean KL divergence in nats of `other`'s predictions from those of `exact`."""

    def logs(weights: Weights) -> NDArray[np.float64]:
        out = []
        with Pass(decoder, weights) as run:
            for _, hidden in hidden_states(decoder, weights, tokens):
                out.append(np.concatenate(run.logits(hidden, lambda _, piece: piece)).T.astype(np.float64))
        x = np.concatenate(out)
        x -= x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = logs(exact), logs(other)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def texts_of_tiny(count: int) -> tuple[list[list[int]], list[list[int]]]:
    """Sequences of 256 tokens of the embedded model's text: `count` to calibrate on, 20 that it has not seen."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint_dir() / "tokenizer.json"))

    def cut(texts: Iterator[str], count: int) -> list[list[int]]:
        ids = [i for text in texts for i in tokenizer.encode(text).ids]
        return [ids[i * 256 : (i + 1) * 256] for i in range(count)]

    return cut(islice(samples(1, "train"), 300), count), cut(islice(samples(2, "held-out"), 120), 20)


class Rounded:
    """A weight's rows, rounded to nearest."""

    def __init__(self, weights: Weights, key: str) -> None:
        self._weights, self._key = weights, key

    def rows(self, a: int, b: int) -> QuantizedRows:
        return rtn.quantize(self._weights.weights(self._key, a, b).copy(), 4, 32)


def test_calibrated_int4_loses_less_than_half_of_what_rounding_loses(tmp_path: Path) -> None:
    """On the embedded model, in nats of text it has not seen; every weight takes the same bytes."""
    decoder, weights = opened(checkpoint_dir())
    seen, unseen = texts_of_tiny(32)
    rounded = Overlay(weights, {key: Rounded(weights, key) for key in body(decoder)})  # type: ignore[arg-type]
    losses = [divergence(decoder, weights, rounded, unseen)]
    for algorithm in ("rtn-search", "gptq"):
        made = Calibrator(decoder, weights, seen, body(decoder), algorithm, tmp_path / algorithm, Silent()).run()
        losses.append(divergence(decoder, weights, Overlay(weights, made), unseen))
    assert losses[1] < losses[0]
    assert losses[2] < 0.5 * losses[0]


@pytest.mark.parametrize(("algorithm", "share"), [("rtn-search", 0.95), ("gptq", 0.7)])
def test_a_table_that_is_the_head_too_is_rounded_for_what_the_head_multiplies(
    algorithm: quantize.Algorithm, share: float, tmp_path: Path
) -> None:
    decoder, weights = opened(checkpoint_dir())
    assert decoder.tied
    seen, unseen = texts_of_tiny(8)
    losses = []
    for shared in (False, True):
        home = tmp_path / str(shared)
        made = Calibrator(decoder, weights, seen, {EMBED: INT4}, algorithm, home, Silent(), shared).run()
        losses.append(divergence(decoder, weights, Overlay(weights, made | {HEAD: made[EMBED]}), unseen))
    assert losses[1] < share * losses[0], losses


def test_every_code_is_chosen_with_one_thread_of_blas(
    small: Path, tokens: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blas._switch()
    if found is None:
        pytest.skip("this numpy does not bring OpenBLAS")
    get, put = found
    threads: list[int] = []
    choose = quantize.gptq.quantize

    def watched(*given: Any) -> QuantizedRows:
        threads.append(get())
        return choose(*given)

    monkeypatch.setattr(quantize.gptq, "quantize", watched)
    decoder, weights = opened(small)
    encodings = body(decoder) | {HEAD: INT4}
    before = get()
    put(2)
    try:
        Calibrator(decoder, weights, tokens, encodings, "gptq", tmp_path, Silent()).run()
        assert get() == 2
    finally:
        put(before)
    assert len(threads) >= len(encodings)
    assert set(threads) == {1}


@pytest.mark.parametrize("algorithm", ["rtn-search", "gptq"])
def test_codes_are_the_same_on_any_number_of_cores(
    algorithm: quantize.Algorithm,
    small: Path,
    tokens: list[list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, weights = opened(small)
    encodings = body(decoder) | {HEAD: INT4, EMBED: INT4}
    monkeypatch.setattr(quantize, "CHUNK", 1 << 9)  # many pieces of each matrix
    monkeypatch.setattr(blas, "SMALL", 1 << 9)  # and of each product
    monkeypatch.setattr(blas, "PIECE", 8)
    found = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(blas, "usable_cores", lambda cores=cores: cores)
        made = Calibrator(decoder, weights, tokens, encodings, algorithm, tmp_path / str(cores), Silent()).run()
        found.append({key: each.path.read_bytes() for key, each in made.items()})
    assert found[0].keys() == set(encodings)
    assert found[0] == found[1] == found[2]


class Listening(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("algorithm", ["rtn-search", "gptq"])
def test_a_run_that_was_cut_short_goes_on_at_its_block(
    algorithm: quantize.Algorithm, small: Path, tokens: list[list[int]], tmp_path: Path
) -> None:
    decoder, weights = opened(small)
    encodings = body(decoder) | {"layers.1.attn.v.weight": ENCODINGS["int8-32"], EMBED: INT4, HEAD: INT4}
    whole = Calibrator(decoder, weights, tokens, encodings, algorithm, tmp_path / "whole", Silent()).run()

    class Failing(Silent):
        def advance(self, n: int, name: str) -> None:
            if name == "layers.1.mlp.gate":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Calibrator(decoder, weights, tokens, encodings, algorithm, tmp_path / "cut", Failing()).run()
    first = tmp_path / "cut" / "layers.0.mlp.down.weight.codes"
    written = first.stat().st_mtime_ns
    progress = Listening()
    again = Calibrator(decoder, weights, tokens, encodings, algorithm, tmp_path / "cut", progress).run()
    assert progress.notes == [f"{algorithm}: 1 of 3 blocks were done before"]
    assert first.stat().st_mtime_ns == written
    assert set(again) == set(whole) == set(encodings)
    for key in whole:
        assert again[key].path.read_bytes() == whole[key].path.read_bytes(), key


def test_a_model_that_answers_with_no_numbers_is_refused(tmp_path: Path, tokens: list[list[int]]) -> None:
    decoder, weights = opened(write_checkpoint(tmp_path / "model"))

    class Overflowing(CheckpointWeights):
        def weights(self, key: str, a: int, b: int) -> Floats:
            return super().weights(key, a, b) * np.float32(np.inf if key == "layers.1.attn.q.weight" else 1)

    for algorithm in ("rtn-search", "gptq"):
        work = Calibrator(
            decoder, Overflowing(weights._tensors), tokens, body(decoder), algorithm, tmp_path / algorithm, Silent()
        )
        with (
            np.errstate(invalid="ignore"),
            pytest.raises(
                CheckpointError,
                match=r"model\.safetensors: tensor model\.layers\.1\.self_attn\.q_proj\.weight: .*finite",
            ),
        ):
            work.run()


@pytest.mark.parametrize("encoding", ["int4-32", "int4-128", "int8-64"])
def test_the_store_gives_rows_back_as_they_were(encoding: str, tmp_path: Path) -> None:
    e = ENCODINGS[encoding]
    x = np.random.default_rng(0).standard_normal((21, 256)).astype(np.float32)
    stored = StoredCodes(tmp_path / "x.codes", e, (21, 256))
    with stored.writing() as store:
        for a, b in ((8, 21), (0, 8)):
            store.put(a, rtn.quantize(x[a:b].copy(), e.bits, e.group))
        assert not stored.whole
    assert stored.whole
    for a, b in ((0, 21), (3, 4), (7, 19)):
        rows, wanted = stored.rows(a, b), rtn.quantize(x[a:b].copy(), e.bits, e.group)
        np.testing.assert_array_equal(rows.codes, wanted.codes)
        np.testing.assert_array_equal(rows.scales, wanted.scales)
        assert (rows.bits, rows.rows) == (e.bits, b - a)
