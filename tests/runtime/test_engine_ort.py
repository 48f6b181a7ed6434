"""What only the ONNX engine has: kinds of graphs, its cache in place, and every file it refuses."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edgeship_runtime
import tolerances
from edgeship_runtime.engines import ort
from edgeship_runtime.engines.ort import OrtEngine, open_engine
from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.manifest import read_manifest
from toy_artifact import CONTEXT, VOCAB, Toy, write_toy

IDS = [5, 17, 300, 5, 44, 2, 199, 63, 63, 8, 120]
SHAPES = [
    pytest.param({"logits": "last"}, id="last"),
    pytest.param({"logits": "all"}, id="all"),
    pytest.param({"logits": "all", "positions": True, "sealed": False}, id="builder"),
    pytest.param({"logits": "last", "positions": True}, id="positions"),
]


@pytest.fixture(scope="module", params=SHAPES)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return write_toy(tmp_path_factory.mktemp("toy") / "onnx", **request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return write_toy(tmp_path_factory.mktemp("plain") / "onnx")


def opened(toy: Toy, context: int = CONTEXT, threads: int | None = 1) -> OrtEngine:
    return open_engine(toy.directory, read_manifest(toy.directory), context=context, threads=threads)


def assert_logits(got: NDArray[np.float32], want: NDArray[np.float32]) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.FLOAT32_LOGITS * np.abs(want).max())


def test_logits_with_and_without_cache_and_in_chunks(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    want = toy.logits(IDS)
    engine = opened(toy)
    assert_logits(engine.evaluate(IDS), want[-1])
    assert engine.length == len(IDS)
    engine.truncate(0)
    for place, token in enumerate(IDS):
        assert_logits(engine.evaluate([token]), want[place])
    monkeypatch.setattr(ort, "CHUNK", 4)
    chunked = opened(toy)
    assert_logits(chunked.evaluate(IDS), want[-1])
    assert chunked.chunk == 4
    assert chunked.length == len(IDS)


@pytest.mark.parametrize("logits", ["last", "all"])
def test_half_precision_caches_and_logits(tmp_path: Path, logits: str) -> None:
    toy = write_toy(tmp_path / "onnx", logits=logits, half=True)
    engine = opened(toy)
    assert engine._cache.dtype == np.float16
    for ids, held in ((IDS, IDS), ([7], [*IDS, 7]), ([8, 9], [*IDS, 7, 8, 9])):
        got, want = engine.evaluate(ids), toy.logits(held)[-1]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.FLOAT16_LOGITS * np.abs(want).max())


def test_past_and_present_are_one_buffer_of_the_size_asked(plain: Toy) -> None:
    engine = opened(plain, context=40)
    assert engine._cache.shape == (1, 2, 1, 2, 40, 16)
    engine.evaluate(IDS)
    assert np.any(engine._cache[:, :, :, :, : len(IDS)], axis=-1).all(), "present is written where past lies"
    assert not engine._cache[:, :, :, :, len(IDS) :].any(), "beyond the tokens nothing is written"


def damage(directory: Path, name: str, content: bytes | None) -> None:
    path = directory / name
    path.unlink() if content is None else path.write_bytes(content)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, b"", b"\x08\x0a garbage", b"{}"])
def test_missing_cut_or_foreign_files(tmp_path: Path, sealed: bool, name: str, content: bytes | None) -> None:
    toy = write_toy(tmp_path / "onnx", sealed=sealed)
    damage(toy.directory, name, content)
    with pytest.raises(ArtifactError) as caught:
        edgeship_runtime.load(toy.directory, threads=1)
    assert (name if sealed else name.removesuffix(".data")) in str(caught.value)
    assert caught.value.hint
    assert len(str(caught.value)) < 2000


def test_a_graph_of_other_shapes_than_its_manifest_says(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "onnx", sealed=False)
    path = toy.directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["vocab_size"] = VOCAB + 1
    config["model"]["decoder"]["num_key_value_heads"] = 4
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"axis 1 of 'past_key_values.0.key' is 2, expected 4.*'logits' is 320"):
        edgeship_runtime.load(toy.directory, threads=1)
    config["model"]["decoder"]["num_hidden_layers"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"input 'past_key_values.1.key' is missing.* more"):
        edgeship_runtime.load(toy.directory, threads=1)


@pytest.mark.parametrize("pattern", ["past", "past.%s.%d", "%d.%d", "%"])
def test_name_patterns_of_a_builders_config(tmp_path: Path, pattern: str) -> None:
    toy = write_toy(tmp_path / "onnx", sealed=False)
    path = toy.directory / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["inputs"]["past_key_names"] = pattern
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="expected one %d"):
        edgeship_runtime.load(toy.directory, threads=1)


def test_loading_and_generating_open_no_socket(plain: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    with edgeship_runtime.load(plain.directory, threads=1) as model:
        assert model.generate([{"role": "user", "content": "hi"}], max_tokens=3, ignore_eos=True).tokens
