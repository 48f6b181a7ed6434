"""The ONNX engine against the same model in numpy, and everything it refuses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgeship_runtime
import tolerances
from edgeship_runtime.engines import ENGINES, engine_module, ort
from edgeship_runtime.engines.ort import OrtEngine, open_engine
from edgeship_runtime.errors import ArtifactError, ContextError, EngineError, UsageError
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
    monkeypatch.setattr(ort, "CHUNK_ALL", 3)
    chunked = opened(toy)
    assert_logits(chunked.evaluate(IDS), want[-1])
    assert chunked.chunk in (3, 4)
    assert chunked.length == len(IDS)


@settings(max_examples=30)
@given(data=st.data())
def test_any_course_of_evaluate_and_truncate_gives_the_logits_of_what_is_held(plain: Toy, data: st.DataObject) -> None:
    engine = opened(plain, context=24)
    held: list[int] = []
    for _ in range(data.draw(st.integers(1, 6))):
        if held and data.draw(st.booleans()):
            keep = data.draw(st.integers(0, len(held)))
            engine.truncate(keep)
            del held[keep:]
        room = 24 - len(held)
        if room:
            new = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=room))
            held += new
            assert_logits(engine.evaluate(new), plain.logits(held)[-1])
        assert engine.length == len(held)


def test_past_and_present_are_one_buffer_of_the_size_asked(plain: Toy) -> None:
    engine = opened(plain, context=40)
    assert engine._cache.shape == (1, 2, 1, 2, 40, 16)
    engine.evaluate(IDS)
    assert np.any(engine._cache[:, :, :, :, : len(IDS)], axis=-1).all(), "present is written where past lies"
    assert not engine._cache[:, :, :, :, len(IDS) :].any(), "beyond the tokens nothing is written"


def test_a_context_can_be_filled_to_the_last_place_and_not_beyond(plain: Toy) -> None:
    engine = opened(plain, context=len(IDS))
    assert_logits(engine.evaluate(IDS), plain.logits(IDS)[-1])
    with pytest.raises(ContextError, match=rf"context is {len(IDS)} tokens and {len(IDS)} are in use"):
        engine.evaluate([1])
    engine.truncate(3)
    with pytest.raises(ContextError):
        engine.evaluate(IDS)
    assert engine.length == 3, "nothing was run"


@pytest.mark.parametrize("bad", [[-1], [VOCAB], [1, 2, VOCAB], [3, -7], [1 << 62], [1 << 70, 1]])
def test_token_ids_are_checked_before_a_run(plain: Toy, bad: list[int]) -> None:
    engine = opened(plain)
    engine.evaluate([1])
    with pytest.raises(EngineError, match=r"vocabulary of 320|64 bits"):
        engine.evaluate(bad)
    assert engine.length == 1


def test_empty_input_and_truncation_beyond_what_is_held_are_refused(plain: Toy) -> None:
    engine = opened(plain)
    with pytest.raises(EngineError, match="no tokens"):
        engine.evaluate([])
    for length in (-1, 1):
        with pytest.raises(EngineError, match="it holds 0"):
            engine.truncate(length)


def test_close_twice_and_use_after(plain: Toy) -> None:
    engine = opened(plain)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.evaluate([1])


def test_logits_are_one_buffer_and_a_run_leaves_python_little_to_free(plain: Toy) -> None:
    engine = opened(plain)
    first = engine.evaluate([1])
    second = engine.evaluate([2])
    assert first.ctypes.data == second.ctypes.data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "a context of 0 tokens"),
        ({"context": CONTEXT + 1}, f"1 to {CONTEXT}"),
        ({"threads": 0}, "0 threads"),
        ({"engine": "none"}, "no engine 'none'; there are: ort"),
    ],
)
def test_impossible_arguments(plain: Toy, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        edgeship_runtime.load(plain.directory, **options)  # type: ignore[arg-type]


def test_default_context_is_the_manifests_and_not_the_models_maximum(plain: Toy) -> None:
    with edgeship_runtime.load(plain.directory) as model:
        assert model.engine.context == CONTEXT // 2


def test_engines_are_modules_imported_on_use() -> None:
    for name in ENGINES:
        assert callable(engine_module("onnx", name).open_engine)
    with pytest.raises(ArtifactError, match="format 'tflite'"):
        engine_module("tflite")


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_nothing_is_printed_and_no_connection_is_seen_by_the_system(plain: Toy) -> None:
    # In a process of its own: imports are seen too, and the audit hook sees what C code cannot hide from Python.
    program = f"""
import sys
seen = []
sys.addaudithook(lambda name, args: seen.append(name) if name.startswith("socket.") else None)
import edgeship_runtime
with edgeship_runtime.load({str(plain.directory)!r}, threads=1) as model:
    model.generate("a b c", max_tokens=3)
assert not seen, seen
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
