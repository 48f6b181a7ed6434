"""The streamed float32 pass: equal to transformers, the same bits however it is cut, on float and on stored weights."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tolerances
from checkpoints import write_checkpoint
from edgeship import archs, blas
from edgeship.archs.base import Decoder
from edgeship.encodings import ENCODINGS
from edgeship.errors import ArtifactError
from edgeship.formats.onnx.packing import pack
from edgeship.quant.rtn import quantize
from edgeship.reference import forward
from edgeship.reference.forward import Pass, top_logits
from edgeship.reference.weights import CheckpointWeights, StoredWeights
from reference_models import MODELS, opened

SHAPES: dict[str, dict[str, Any]] = {
    **MODELS,
    "qwen3 tied, GQA 1": {"model_type": "qwen3", "kv_heads": 4},
    "qwen3 untied, wide heads": {"model_type": "qwen3", "tied": False, "head_dim": 32},
    "llama": {"model_type": "llama", "tied": False},
}
FIRST = [[1, 2, 3, 4, 5], [7, 8, 9, 10, 300, 20, 30], [11] * 40]
MORE = [[11, 12], [], [13]]


def all_logits(run: Pass, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate(run.logits(hidden, lambda first, logits: logits)).T


@pytest.mark.parity
@pytest.mark.parametrize("model", SHAPES)
def test_logits_equal_those_of_transformers(model: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write_checkpoint(tmp_path, **SHAPES[model])
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        whole = [a + b for a, b in zip(FIRST, MORE, strict=True)]
        want = [oracle(torch.tensor([ids])).logits[0].numpy() for ids in whole]
    with Pass(*opened(tmp_path), sequences=3) as run:
        first, more = (all_logits(run, run.extend(tokens)) for tokens in (FIRST, MORE))
    got = np.concatenate([first, more])
    counts = [len(ids) for ids in FIRST]
    expected = np.concatenate(
        [w[:n] for w, n in zip(want, counts, strict=True)] + [w[n:] for w, n in zip(want, counts, strict=True)]
    )
    assert np.abs(got - expected).max() <= tolerances.REFERENCE_LOGITS * np.abs(expected).max()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, CheckpointWeights]:
    return opened(write_checkpoint(tmp_path_factory.mktemp("tiny"), tied=False))


def test_bits_do_not_depend_on_chunks_order_or_threads(
    tiny: tuple[Decoder, CheckpointWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pass(*tiny, sequences=3, threads=1) as run:
        whole = all_logits(run, run.extend(FIRST))
    monkeypatch.setattr(forward, "CHUNK_ROWS", 16)
    monkeypatch.setattr(forward, "CHUNK_WEIGHTS", 16 * 64)
    results = []
    for threads in (1, 3, 8):
        with Pass(*tiny, sequences=3, threads=threads) as run:
            results.append(all_logits(run, run.extend(FIRST)))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_allclose(results[0], whole, rtol=0, atol=tolerances.REFERENCE_LOGITS * np.abs(whole).max())


def test_a_sequence_does_not_see_the_others(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    with Pass(*tiny, sequences=3) as run:
        together = all_logits(run, run.extend(FIRST))
    with Pass(*tiny) as run:
        alone = all_logits(run, run.extend([FIRST[1]]))
    assert np.abs(together[5:12] - alone).max() <= tolerances.REFERENCE_LOGITS * np.abs(alone).max()


def test_bits_do_not_depend_on_where_keys_and_values_lie(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    results = []
    for capacity in (0, max(len(a + b) for a, b in zip(FIRST, MORE, strict=True)), 100):
        with Pass(*tiny, sequences=3, capacity=capacity) as run:
            results.append([all_logits(run, run.extend(tokens)) for tokens in (FIRST, MORE)])
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got, want)


def test_tokens_outside_the_vocabulary_are_refused(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    with Pass(*tiny) as run:
        for token in (-1, 320):
            with pytest.raises(ValueError, match="outside the vocabulary of 320"):
                run.extend([[1, token]])
        with pytest.raises(ValueError, match="2 lists of tokens for 1 sequences"):
            run.extend([[1], [2]])


def test_an_error_of_the_weights_reaches_the_caller(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    class Failing(CheckpointWeights):
        def weights(self, key: str, a: int, b: int) -> NDArray[np.float32]:
            if key == "layers.1.mlp.down.weight":
                raise ArtifactError("the disk is gone")
            return super().weights(key, a, b)

    with pytest.raises(ArtifactError, match="the disk is gone"), Pass(tiny[0], Failing(tiny[1]._tensors)) as run:
        run.extend([[1, 2]])


def test_top_logits(tiny: tuple[Decoder, CheckpointWeights], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CHUNK_ROWS", 3)  # some pieces hold fewer logits than are asked for
    monkeypatch.setattr(forward, "CHUNK_WEIGHTS", 1)
    with Pass(*tiny) as run:
        hidden = run.extend([FIRST[1]])
        logits, top = all_logits(run, hidden), top_logits(run, hidden, 5, whole=[2, 0])
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(top.ids, order)
    np.testing.assert_array_equal(top.values, np.take_along_axis(logits, order, axis=1))
    np.testing.assert_allclose(top.std, logits.std(axis=1, dtype=np.float64), rtol=tolerances.REFERENCE_STD)
    np.testing.assert_array_equal(top.whole, logits[[2, 0]].T)


class Columns:
    """Weights whose head repeats the same rows, so that logits tie."""

    def __init__(self, inner: CheckpointWeights) -> None:
        self.inner = inner

    def weights(self, key: str, a: int, b: int) -> NDArray[np.float32]:
        if key == "head.weight":
            return np.ones((b - a, 64), np.float32)
        return self.inner.weights(key, a, b)

    def vector(self, key: str) -> NDArray[np.float32]:
        return self.inner.vector(key)


def test_of_equal_logits_the_smaller_id_comes_first(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    with Pass(tiny[0], Columns(tiny[1])) as run:
        top = top_logits(run, run.extend([[5]]), 3)
    assert top.values[0, 0] == top.values[0, 2]
    assert top.ids[0].tolist() == sorted(top.ids[0].tolist())


def stored(tmp_path: Path, encoding_name: str, rows: int = 37, columns: int = 256) -> tuple[Any, NDArray[np.float32]]:
    """A file with one tensor in the middle, where it lies, and the values it stands for."""
    rng, encoding = np.random.default_rng(0), ENCODINGS[encoding_name]
    values = rng.standard_normal((rows, columns), dtype=np.float32)
    scales = np.zeros(0, np.float32)
    if encoding.quantized:
        quantized = quantize(values, encoding.bits, encoding.group)
        body, scales, values = pack(quantized).tobytes(), quantized.scales, quantized.dequantize()
    else:
        body = values.astype(encoding.name).tobytes()
        values = values.astype(encoding.name).astype(np.float32)
    path = tmp_path / "model.onnx.data"
    path.write_bytes(b"\xff" * 4096 + body + scales.tobytes() + b"\xff" * 64)
    place = SimpleNamespace(
        encoding=encoding, rows=rows, columns=columns, offset=4096, row_bytes=len(body) // rows,
        scale_offset=4096 + len(body), scale_row_bytes=scales.nbytes // rows,
    )  # fmt: skip
    return StoredWeights(path, {"embed.weight": place}), values


@pytest.mark.parametrize("encoding", [name for name, e in ENCODINGS.items() if e.onnx])
def test_stored_weights_are_the_numbers_the_artifact_holds(encoding: str, tmp_path: Path) -> None:
    weights, values = stored(tmp_path, encoding)
    with weights:
        for a, b in ((0, 37), (5, 6), (36, 37), (3, 30), (4, 4)):
            np.testing.assert_array_equal(weights.weights("embed.weight", a, b), values[a:b])
        np.testing.assert_array_equal(weights.weights("head.weight", 0, 37), values)  # tied: the embedding's rows


def test_stored_vectors(tmp_path: Path) -> None:
    weights, values = stored(tmp_path, "float32", rows=256, columns=1)
    with weights:
        np.testing.assert_array_equal(weights.vector("embed.weight"), values[:, 0])


@pytest.mark.parametrize("span", [(-1, 2), (30, 38), (5, 4)])
def test_rows_that_are_not_there_are_refused(span: tuple[int, int], tmp_path: Path) -> None:
    with stored(tmp_path, "int4-32")[0] as weights, pytest.raises(ValueError, match="of 37"):
        weights.weights("embed.weight", *span)


def test_a_file_cut_short_says_so(tmp_path: Path) -> None:
    weights, _ = stored(tmp_path, "int8-32")
    with weights, (tmp_path / "model.onnx.data").open("r+b") as file:
        file.truncate(5000)
        with pytest.raises(ArtifactError, match=r"model\.onnx\.data: expected 9472 bytes at offset 4096"):
            weights.weights("embed.weight", 0, 37)


def test_a_head_of_its_own_is_used(tmp_path: Path) -> None:
    """A tied model whose head is stored in another encoding than its embedding."""
    weights, values = stored(tmp_path, "float32")
    with weights:
        apart = SimpleNamespace(**vars(weights._places["embed.weight"]))
        apart.offset += apart.row_bytes  # one row further
        apart.rows -= 1
        weights._places = {**weights._places, "head.weight": apart}
        np.testing.assert_array_equal(weights.weights("head.weight", 0, 36), values[1:])


class Formula:
    """Weights made as they are asked for: a model of any size that takes no memory."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def weights(self, key: str, a: int, b: int) -> NDArray[np.float32]:
        columns = self.shapes["embed.weight" if key == "head.weight" else key][1]
        rows = np.arange(a, b, dtype=np.float32)[:, None]
        return np.asarray(np.sin(rows + np.arange(columns, dtype=np.float32)) / columns**0.5, np.float32)

    def vector(self, key: str) -> NDArray[np.float32]:
        return np.ones(self.shapes[key], np.float32)


def test_memory_does_not_grow_with_the_weights() -> None:
    decoder = archs.read({
        "model_type": "qwen2", "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 4096, "vocab_size": 60000, "tie_word_embeddings": True,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 256,
    })  # fmt: skip
    weights = Formula({role.key: role.shape for role in decoder.roles()})
    tracemalloc.start()
    with Pass(decoder, weights, threads=2) as run:
        top_logits(run, run.extend([list(range(16))])[-4:])
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6, f"{peak / 1e6:.0f} MB for weights of {4 * 60000 * 512 / 1e6:.0f} MB and more"


def test_blas_runs_on_one_thread_inside_a_pass_only() -> None:
    blas._switch.cache_clear()
    found: tuple[Callable[[], int], Callable[[int], None]] | None = blas._switch()
    if found is None:
        pytest.skip("this numpy does not bring OpenBLAS")
    get, put = found
    before = get()
    put(2)
    try:
        with suppress(RuntimeError), blas.one_thread():
            assert get() == 1
            raise RuntimeError("in the middle")
        assert get() == 2
    finally:
        put(before)


@pytest.mark.parametrize("shape", [(512, 896, 1200), (512, 640, 128), (300, 1000, 4864), (7, 33, 5)])
def test_a_product_has_the_same_bits_on_any_number_of_cores(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, (m, k, n) = np.random.default_rng(0), shape
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (n, k)))
    found = []
    for cores in (1, 2, 3):
        monkeypatch.setattr(blas, "usable_cores", lambda cores=cores: cores)
        with blas.all_cores():
            into = np.ones((m, n), np.float32)
            blas.add_product(into, a, b.T)
            found.append((blas.product(a, b.T), into))
    wanted = a.astype(np.float64) @ b.T.astype(np.float64)
    assert np.abs(found[0][0] - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(found[0][1] - 1 - wanted).max() < 1e-5 * np.abs(wanted).max()
    for each in found[1:]:
        assert all(np.array_equal(x, y) for x, y in zip(each, found[0], strict=True))


@pytest.mark.parametrize("cores", [1, 3])
def test_an_error_in_one_piece_of_the_work_ends_the_rest(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "usable_cores", lambda: cores)
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 3:
            raise ValueError("the fourth")
        time.sleep(0.01)

    with blas.all_cores(), pytest.raises(ValueError, match="the fourth"):
        blas.each(work, range(1000), 3)
    assert len(begun) < 30
    with blas.all_cores():
        blas.each(begun.append, [-1, -2, -3], 2)
    assert sorted(begun[-3:]) == [-3, -2, -1]


def test_every_linear_layer_and_the_head_go_through_the_two_doors(tiny: tuple[Decoder, CheckpointWeights]) -> None:
    """Calibration and perplexity will stand there: every weight of the body is multiplied in `Pass.linear`."""
    seen: list[str] = []

    class Watched(Pass):
        def linear(self, key: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
            assert x.shape == (2, tiny[0].roles()[0].shape[1] if ".down" not in key else 96)
            seen.append(key + ".weight")
            return super().linear(key, x)

    with Watched(*tiny) as run:
        run.extend([[1, 2]])
    assert seen == [role.key for role in tiny[0].roles() if role.part == "body"]
