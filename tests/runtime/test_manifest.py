"""The artifact contract: written and read back, and refused in every way a hostile or damaged one can be wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeship_runtime import manifest as contract
from edgeship_runtime.errors import ArtifactError
from json_values import JSON, changed, mutate
from manifests import GENAI, VALID, parse, write_artifact


class TestRoundTrip:
    def test_written_and_read_back_equal(self, tmp_path: Path) -> None:
        manifest = parse(VALID)
        contract.write_manifest(tmp_path, manifest)
        assert contract.read_manifest(tmp_path) == manifest
        assert manifest.sealed
        assert manifest.model_file == "model.onnx"
        assert manifest.model.eos_token_ids == (1, 2)

    def test_bytes_do_not_depend_on_order(self) -> None:
        backwards = json.loads(json.dumps(VALID), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
        assert contract.manifest_json(parse(backwards)) == contract.manifest_json(parse(VALID))
        assert contract.manifest_json(parse(VALID)).endswith(b"}\n")

    def test_writing_checks_and_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="bits_per_weight"):
            contract.write_manifest(tmp_path, replace(parse(VALID), weights=contract.WeightFacts(float("-1"))))
        with pytest.raises(ArtifactError, match="JSON"):
            contract.write_manifest(tmp_path, replace(parse(VALID), recipe={"a": float("nan")}))
        with pytest.raises(ArtifactError, match="JSON"):
            contract.write_manifest(tmp_path, replace(parse(VALID), recipe={"a": object()}))
        assert list(tmp_path.iterdir()) == []

    def test_a_directory_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="cannot be written"):
            contract.write_manifest(tmp_path / "absent", parse(VALID))

    def test_gguf_names_its_model_file(self) -> None:
        value = changed(VALID, "format", "gguf")
        value["files"] = {"Tiny-Q4_0.gguf": VALID["files"]["model.onnx"]}
        assert parse(value).model_file == "Tiny-Q4_0.gguf"


BAD_VALUES = [
    ("schema", 2, "schema version 2; this edgeship-runtime knows 1"),
    ("schema", True, "schema version true"),
    ("schema", "1", "schema version"),
    ("schema", ..., "'schema'|\"schema\""),
    ("name", "", "name: expected text"),
    ("name", 5, "name: expected text"),
    ("name", "a\x1b[31mb", "name: expected printable"),
    ("format", "onxn", "expected one of onnx, gguf"),
    ("edgeship", None, "edgeship: expected text"),
    ("source", [], "source: expected an object, found a list of 0"),
    ("source/host", ..., 'member "host" is missing'),
    ("recipe", "x", "recipe: expected an object"),
    ("modle", {}, 'unknown member "modle"'),
    ("model", ..., 'member "model" is missing'),
    ("model/vocab_size", 0, "vocab_size: expected a whole number from 1"),
    ("model/vocab_size", True, "vocab_size: expected a whole number"),
    ("model/vocab_size", 100.0, "vocab_size: expected a whole number"),
    ("model/layers", -1, "layers: expected a whole number"),
    ("model/layers", 10**30, "layers: expected a whole number"),
    ("model/eos_token_ids", [100], "outside the vocabulary of 100"),
    ("model/eos_token_ids", [-1], r"eos_token_ids\[0\]"),
    ("model/eos_token_ids", 1, "expected a list"),
    ("model/eos_token_ids", list(range(65)), "at most 64"),
    ("model/bos_token_id", 100, "bos_token_id"),
    ("model/pad_token_id", False, "pad_token_id"),
    ("model/default_context", 513, "more than context_length, 512"),
    ("model/logits", "first", "expected one of last, all"),
    ("model/head_size", 16, 'unknown member "head_size"'),
    ("sampling/temperature", -0.1, "temperature: expected a number from 0"),
    ("sampling/temperature", None, "temperature: expected a number"),
    ("sampling/top_k", 1.5, "top_k: expected a whole number"),
    ("sampling/top_p", 1.01, "top_p: expected a number from 0 to 1"),
    ("sampling/repetition_penalty", 0, "repetition_penalty"),
    ("sampling/presence_penalty", True, "presence_penalty"),
    ("weights/bits_per_weight", "4", "bits_per_weight"),
    ("weights/parts/body", 4, "weights.parts.body: expected text"),
    ("ops", "x", "ops: expected a list"),
    ("ops", [1], r"ops\[0\]"),
    ("versions/onnxruntime", 1, "versions.onnxruntime"),
    ("budgets/size_mb", -1, "budgets.size_mb"),
    ("hints/threads", 0, "hints.threads"),
    ("files", [], "files: expected an object"),
    ("files/model.onnx", {"size": 1}, 'member "sha256" is missing'),
    ("files/model.onnx/size", -1, "size: expected a whole number"),
    ("files/model.onnx/sha256", "A" * 64, "64 lower-case hex digits"),
    ("files/model.onnx/sha256", "ab", "64 lower-case hex digits"),
    ("files/model.onnx/mode", 1, 'unknown member "mode"'),
]


class TestRefused:
    @pytest.mark.parametrize(("path", "value", "message"), BAD_VALUES)
    def test_values(self, path: str, value: Any, message: str) -> None:
        with pytest.raises(ArtifactError, match=message) as caught:
            parse(changed(VALID, path, value))
        assert caught.value.hint
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"[]",
            b"null",
            b"{",
            b"\xff\xfe",
            b"\xef\xbb\xbf{}",
            b'{"schema": 1, "schema": 1}',
            b'{"schema": NaN}',
            b'{"schema": Infinity}',
            b'{"schema": 1e999}',
            b'{"schema": ' + b"9" * 5000 + b"}",
            b'{"a": "\\ud800"}',
            b"[" * 100_000,
            b'{"a":' * 100 + b"1" + b"}" * 100,
        ],
    )
    def test_bytes(self, raw: bytes) -> None:
        with pytest.raises(ArtifactError):
            contract.parse_manifest(raw)

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "",
                ".",
                "..",
                "../x",
                "a/../b",
                "a//b",
                "/etc/passwd",
                "a/",
                "./a",
                "C:/x",
                "c:x",
                "a\\b",
                "\\\\host\\x",
            ),
            *("a\0b", "a\nb", "a:stream", "NUL", "con.txt", "dir/LPT1", "a.", "a ", " a", "x" * 300, "a*", "é\u202egp"),
            *("edgeship.json", "EDGESHIP.JSON"),
        ],
    )
    def test_file_names(self, name: str) -> None:
        with pytest.raises(ArtifactError, match="file name"):
            parse(changed(VALID, "files", {name: VALID["files"]["model.onnx"]}))

    def test_too_many_files(self) -> None:
        entry = VALID["files"]["model.onnx"]
        with pytest.raises(ArtifactError, match="at most 1024"):
            parse(changed(VALID, "files", {f"f{i}": entry for i in range(1025)}))

    def test_too_large(self, tmp_path: Path) -> None:
        (tmp_path / "edgeship.json").write_bytes(b" " * (1 << 20) + json.dumps(VALID).encode())
        with pytest.raises(ArtifactError, match="at most 1048576 bytes"):
            contract.read_manifest(tmp_path)

    def test_nearest_name_is_given(self) -> None:
        value = changed(VALID, "sampling/temperature", ...)
        value["sampling"]["temprature"] = 1
        with pytest.raises(ArtifactError, match='nearest known: "temperature"'):
            parse(value)


class TestLocate:
    def test_finds_the_directory_itself_or_its_format(self, tmp_path: Path) -> None:
        write_artifact(tmp_path / "tiny" / "onnx")
        assert contract.locate(tmp_path / "tiny") == tmp_path / "tiny" / "onnx"
        assert contract.locate(str(tmp_path / "tiny" / "onnx")) == tmp_path / "tiny" / "onnx"
        write_artifact(tmp_path / "tiny" / "gguf")
        assert contract.locate(tmp_path / "tiny").name == "onnx"

    def test_partial_exports_give_a_hint(self, tmp_path: Path) -> None:
        write_artifact(tmp_path / "tiny" / ".onnx.partial")
        for path in (tmp_path / "tiny", tmp_path / "tiny" / ".onnx.partial"):
            with pytest.raises(ArtifactError, match="interrupted") as caught:
                contract.locate(path)
            assert "again" in caught.value.hint

    def test_says_what_it_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"edgeship\.json and genai_config\.json .* onnx/ and gguf/"):
            contract.locate(tmp_path)

    def test_nearest_directory(self, tmp_path: Path) -> None:
        write_artifact(tmp_path / "tiny-int4")
        with pytest.raises(ArtifactError, match="no such directory") as caught:
            contract.locate(tmp_path / "tiny-int5")
        assert "tiny-int4" in caught.value.hint

    @pytest.mark.parametrize("path", ["a\0b", "x" * 5000, ""])
    def test_paths_that_are_none(self, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ArtifactError):
            contract.locate(path)

    def test_a_file(self, tmp_path: Path) -> None:
        artifact = write_artifact(tmp_path)
        with pytest.raises(ArtifactError, match="found a file") as caught:
            contract.locate(artifact / "model.onnx")
        assert str(artifact) in caught.value.hint


class TestBuilderDirectories:
    def write(self, directory: Path, value: Any) -> Path:
        directory.mkdir(exist_ok=True)
        (directory / "genai_config.json").write_text(json.dumps(value))
        (directory / "model.onnx").write_bytes(b"one")
        return directory

    def test_facts(self, tmp_path: Path) -> None:
        manifest = contract.read_manifest(self.write(tmp_path / "built", GENAI))
        assert not manifest.sealed
        assert manifest.name == "built"
        assert manifest.model.layers == 2
        assert manifest.model.eos_token_ids == (1, 2)
        assert manifest.model.default_context == 4096
        assert manifest.model.logits == "all"
        assert manifest.sampling == contract.SamplingDefaults(temperature=0.7, top_k=20, top_p=0.8)
        assert contract.artifact_file(tmp_path / "built", manifest, "model.onnx").is_file()

    def test_variants(self, tmp_path: Path) -> None:
        value = copy.deepcopy(GENAI)
        value["model"] |= {"eos_token_id": 7, "context_length": 128, "pad_token_id": None}
        del value["model"]["bos_token_id"]
        value["search"] = {"do_sample": False, "temperature": 0.7}
        manifest = contract.read_manifest(self.write(tmp_path, value))
        assert manifest.model.eos_token_ids == (7,)
        assert manifest.model.default_context == 128
        assert manifest.model.bos_token_id is None
        assert manifest.model.pad_token_id is None
        assert manifest.sampling.temperature == 0

    @pytest.mark.parametrize(
        ("outer", "key", "value"),
        [
            ("model", "decoder", []),
            ("model", "vocab_size", "many"),
            ("model", "eos_token_id", None),
            ("model", "eos_token_id", True),
            ("model", "eos_token_id", [100]),
            ("decoder", "filename", "../model.onnx"),
            ("decoder", "filename", None),
            ("decoder", "head_size", 0),
            ("search", "temperature", "hot"),
        ],
    )
    def test_refused(self, tmp_path: Path, outer: str, key: str, value: Any) -> None:
        config = copy.deepcopy(GENAI)
        (config["model"]["decoder"] if outer == "decoder" else config[outer])[key] = value
        with pytest.raises(ArtifactError):
            contract.read_manifest(self.write(tmp_path, config))


def check_message(error: ArtifactError) -> None:
    assert len(str(error).encode()) < 4000


class TestFuzz:
    """Whatever the bytes: a Manifest, or ArtifactError with a message of one screen."""

    def check(self, raw: bytes) -> None:
        try:
            manifest = contract.parse_manifest(raw)
        except ArtifactError as error:
            check_message(error)
        else:
            assert contract.parse_manifest(contract.manifest_json(manifest)) == manifest

    @given(st.binary(max_size=200))
    def test_random_bytes(self, raw: bytes) -> None:
        self.check(raw)

    @given(JSON)
    def test_random_json(self, value: Any) -> None:
        self.check(json.dumps(value).encode("utf-8", "surrogatepass"))

    @given(st.data())
    @settings(max_examples=300)
    def test_mutated_members(self, data: st.DataObject) -> None:
        self.check(json.dumps(mutate(data, VALID)).encode())

    @given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 1))
    @settings(max_examples=300)
    def test_mutated_bytes(self, at: int, byte: int, cut: int) -> None:
        raw = bytearray(json.dumps(VALID).encode())
        at %= len(raw)
        raw[at] = byte
        self.check(bytes(raw[: at + 1] if cut else raw))

    @given(st.data())
    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_builder_directories(self, tmp_path: Path, data: st.DataObject) -> None:
        (tmp_path / "genai_config.json").write_text(json.dumps(mutate(data, GENAI)))
        try:
            assert not contract.read_manifest(tmp_path).sealed
        except ArtifactError as error:
            check_message(error)
