"""GGUF headers: what they say, what is refused before llama.cpp sees it, and no way to crash the reader."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from command_line import Ended
from edgeship_runtime import gguf
from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.gguf import TYPES, Array, read_header
from edgeship_runtime.gguf_model import read_model
from edgeship_runtime.manifest import locate, read_manifest
from gguf_bytes import ARRAY, FLOAT32, HIDDEN, HOSTILE, INT32, STRING, UINT32, UNRUNNABLE, VOCAB, model
from toy_gguf import needs_llamacpp, vocabulary, write_toy_gguf


def written(directory: Path, raw: bytes, name: str = "model.gguf") -> Path:
    path = directory / name
    path.write_bytes(raw)
    return path


class TestReading:
    def test_a_file_of_the_gguf_package(self, tmp_path: Path) -> None:
        toy = write_toy_gguf(tmp_path / "toy.gguf")
        header = read_header(toy.path)
        tokens, merges = vocabulary()
        assert header.version == 3
        assert header.text("general.architecture") == "qwen2"
        for key, want in (("tokens", tokens), ("merges", merges)):
            array = header.metadata[f"tokenizer.ggml.{key}"]
            assert isinstance(array, Array), "not read until it is asked for"
            assert array.count == len(want)
            assert [each.decode() for each in header.strings(array)] == want
        types = header.metadata["tokenizer.ggml.token_type"]
        assert isinstance(types, Array)
        assert set(header.numbers(types)) == {1, 3}
        assert {name: tensor.shape[::-1] for name, tensor in header.tensors.items()} == {
            name: values.shape for name, values in toy.weights.items()
        }
        raw = toy.path.read_bytes()
        for name, tensor in header.tensors.items():
            start = header.data + tensor.offset
            assert raw[start : start + tensor.size] == toy.weights[name].tobytes()

    def test_values_of_every_type(self, tmp_path: Path) -> None:
        path = written(tmp_path, model().with_key("x", 1, -3).with_key("y", 7, 1).with_key("z", 10, 1 << 63).bytes())
        metadata = read_header(path).metadata
        assert [metadata[key] for key in "xyz"] == [-3, True, 1 << 63]

    def test_types_are_those_of_ggml(self) -> None:
        known = {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}
        known[int(GGMLQuantizationType.Q8_1)] = ("Q8_1", 32, 36)  # as ggml-common.h has it
        assert known.items() <= TYPES.items()

    def test_facts(self, tmp_path: Path) -> None:
        source = model().with_key("general.sampling.temp", FLOAT32, 0.7).with_key("general.sampling.top_k", UINT32, 20)
        per_layer = source.with_key("llama.attention.head_count_kv", ARRAY, (INT32, [0, 1, 1]))
        for gguf_file in (source, per_layer):
            manifest = read_manifest(written(tmp_path, gguf_file.bytes()))
            facts = manifest.model
            assert (manifest.name, manifest.format, manifest.sealed) == ("zero", "gguf", False)
            assert (facts.type, facts.vocab_size, facts.layers, facts.kv_heads) == ("llama", VOCAB, 1, 1)
            assert (facts.head_dim, facts.hidden_size, facts.context_length) == (16, HIDDEN, 64)
            assert facts.eos_token_ids == (2,)
            assert (manifest.sampling.temperature, manifest.sampling.top_k) == (0.7, 20)
            assert manifest.weights.bits_per_weight == 32
            assert dict(manifest.weights.parts) == {"body": "f32", "embeddings": "f32"}
        assert read_manifest(written(tmp_path, model().bytes())).sampling.top_k == 40, "llama.cpp's own defaults"
        odd = model().with_key("tokenizer.ggml.eos_token_id", UINT32, VOCAB)
        assert read_manifest(written(tmp_path, odd.bytes())).model.eos_token_ids == (), "llama.cpp passes over it too"
        with pytest.raises(ArtifactError, match="top_p"):
            read_manifest(written(tmp_path, model().with_key("general.sampling.top_p", FLOAT32, 7).bytes()))

    def test_all_files_of_a_split_model(self, tmp_path: Path) -> None:
        whole = model()
        names = list(whole.tensors)
        for place, part in enumerate((names[:3], names[3:])):
            piece = replace(whole, tensors={name: whole.tensors[name] for name in part})
            piece = piece.with_key("split.count", 2, 2).with_key("split.no", 2, place)
            written(tmp_path, piece.bytes(), f"m-{place + 1:05d}-of-00002.gguf")
        first = tmp_path / "m-00001-of-00002.gguf"
        assert [len(header.tensors) for header in read_model(first)] == [3, len(names) - 3]
        with pytest.raises(ArtifactError, match="one of 2 files"):
            read_model(tmp_path / "m-00002-of-00002.gguf")
        (tmp_path / "m-00002-of-00002.gguf").unlink()
        with pytest.raises(ArtifactError, match=r"00002-of-00002\.gguf: no such file"):
            read_model(first)

    def test_a_large_vocabulary_is_stepped_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens = [f"token{i}" for i in range(150_000)]
        path = written(tmp_path, model().with_key("x", ARRAY, (STRING, tokens)).bytes())
        need, needed = gguf._Reader._need, list[str]()

        def counted(self: gguf._Reader, count: int, what: str) -> int:
            needed.append(what)
            return need(self, count, what)

        monkeypatch.setattr(gguf._Reader, "_need", counted)
        header = read_header(path)
        assert len(needed) < 1000, "not asked for one by one"
        array = header.metadata["x"]
        assert isinstance(array, Array)
        assert header.strings(array)[-1] == b"token149999"

    def test_a_changed_file_is_read_again(self, tmp_path: Path) -> None:
        path = written(tmp_path, model().bytes())
        assert read_header(path) is read_header(path)
        os.utime(path, ns=(1, 1))
        first = read_header(path)
        written(tmp_path, model().with_key("x", UINT32, 1).bytes())
        assert "x" not in first.metadata
        assert "x" in read_header(path).metadata


class TestRefusing:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_hostile_files(self, tmp_path: Path, case: str) -> None:
        make, says = HOSTILE[case]
        path = written(tmp_path, make())
        with pytest.raises(ArtifactError) as caught:
            read_manifest(path)
        assert says in caught.value.message or says in caught.value.hint
        assert str(path) in caught.value.message
        assert caught.value.hint
        assert len(str(caught.value)) < 1000

    def test_the_file_they_are_made_of_is_sound(self, tmp_path: Path) -> None:
        assert read_manifest(written(tmp_path, model().bytes())).model.vocab_size == VOCAB

    @pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "text"])
    def test_what_is_no_file_of_this_kind(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "model.gguf"
        make: dict[str, Callable[[], object]] = {
            "missing": lambda: None,
            "directory": path.mkdir,
            "fifo": lambda: os.mkfifo(path),
            "text": lambda: path.write_text("hello"),
        }
        make[kind]()
        with pytest.raises(ArtifactError):
            read_manifest(locate(path))
        with pytest.raises(ArtifactError):
            read_header(path)

    @given(data=st.data())
    @settings(max_examples=300, deadline=None)
    def test_any_damage_is_an_error_or_harmless(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        raw = bytearray(_SOUND)
        end = len(model().header())
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, end - 1))
            size = data.draw(st.sampled_from((1, 4, 8)))
            raw[place : place + size] = data.draw(st.binary(min_size=size, max_size=size) | st.just(b"\xff" * size))
        cut = data.draw(st.integers(0, len(raw)) | st.none())
        path = written(tmp_path_factory.getbasetemp(), bytes(raw[:cut]), "fuzzed.gguf")
        gguf._read.cache_clear()
        with suppress(ArtifactError):
            read_manifest(path)

    @given(raw=st.binary(max_size=200))
    def test_any_bytes_are_an_error(self, tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
        path = written(tmp_path_factory.getbasetemp(), b"GGUF\3\0\0\0" + raw, "bytes.gguf")
        gguf._read.cache_clear()
        with pytest.raises(ArtifactError):
            read_manifest(path)


_SOUND = model().bytes()


class TestCommands:
    """In this process: had the engine been opened with one of these, the test run would end."""

    @pytest.mark.parametrize("case", HOSTILE)
    @pytest.mark.parametrize("line", ["info", "verify", "run"])
    def test_hostile_files(self, command: Callable[..., Ended], tmp_path: Path, case: str, line: str) -> None:
        path = written(tmp_path, HOSTILE[case][0]())
        ended = command(line, path, *(["hello"] if line == "run" else []))
        assert ended.code == 8
        assert ended.err.startswith("error: ")
        assert "hint: " in ended.err
        assert ended.out == ""

    @needs_llamacpp
    @pytest.mark.parametrize("case", UNRUNNABLE)
    def test_what_llamacpp_refuses(self, command: Callable[..., Ended], tmp_path: Path, case: str) -> None:
        make, says = UNRUNNABLE[case]
        ended = command("run", written(tmp_path, make()), "hello", "--raw")
        assert ended.code == 8
        assert says in ended.err
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") <= 4, "nothing of llama.cpp's own log"

    def test_a_file_is_described_without_llamacpp(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        path = written(tmp_path, model().bytes())
        facts = command("info", path, "--json").json()
        assert (facts["name"], facts["format"], facts["sealed"]) == ("zero", "gguf", False)
        assert facts["kv_cache"]["bytes_per_token"] == 2 * 16 * 2
        assert facts["files"] == {"model.gguf": path.stat().st_size}
        assert command("verify", path).code == 15, "nothing to verify it against"

    def test_a_directory_of_files_asks_for_one_of_them(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        written(tmp_path, model().bytes())
        ended = command("info", tmp_path)
        assert ended.code == 8
        assert "model.gguf" in ended.err
        assert "did you mean" in command("info", tmp_path / "modle.gguf").err
