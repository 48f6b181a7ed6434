"""Files of an artifact: names that are safe everywhere, links that stay inside, sizes and hashes that match."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from edgeship_runtime import manifest as contract
from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.files import names_problem
from manifests import VALID, parse, write_artifact


class TestNames:
    @pytest.mark.parametrize("names", [("A.json", "a.json"), ("é", "e\u0301"), ("straße", "STRASSE"), ("a", "A/b")])
    def test_names_that_collide(self, names: tuple[str, ...]) -> None:
        assert names_problem(names)

    def test_harmless_names(self) -> None:
        assert names_problem(["a", "b/c.json", ".gitattributes", "模型.onnx", "a b", "a..b", "console.txt"]) == ""


class TestLinks:
    def test_a_link_that_leaves_is_refused(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_bytes(b"one")
        artifact = write_artifact(tmp_path / "artifact")
        (artifact / "model.onnx").unlink()
        (artifact / "model.onnx").symlink_to(secret)
        with pytest.raises(ArtifactError, match="a link leads out"):
            contract.read_manifest(artifact)

    def test_a_linked_directory_is_refused(self, tmp_path: Path) -> None:
        artifact = write_artifact(tmp_path / "artifact")
        (artifact / "acceptance").rename(tmp_path / "elsewhere")
        (artifact / "acceptance").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArtifactError, match="a link leads out"):
            contract.read_manifest(artifact)

    def test_a_linked_manifest_is_refused(self, tmp_path: Path) -> None:
        artifact = write_artifact(tmp_path / "artifact")
        (artifact / "edgeship.json").rename(tmp_path / "edgeship.json")
        (artifact / "edgeship.json").symlink_to(tmp_path / "edgeship.json")
        with pytest.raises(ArtifactError, match="a link leads out"):
            contract.read_manifest(artifact)

    def test_a_loop_is_refused(self, tmp_path: Path) -> None:
        artifact = write_artifact(tmp_path / "artifact")
        (artifact / "model.onnx").unlink()
        (artifact / "model.onnx").symlink_to("model.onnx")
        with pytest.raises(ArtifactError):
            contract.artifact_file(artifact, contract.read_manifest(artifact), "model.onnx")

    def test_a_link_inside_and_a_linked_artifact_are_fine(self, tmp_path: Path) -> None:
        artifact = write_artifact(tmp_path / "artifact")
        (artifact / "model.onnx").unlink()
        (artifact / "model.onnx").symlink_to("acceptance/chats.json")
        (tmp_path / "link").symlink_to(artifact)
        assert contract.read_manifest(tmp_path / "link").name == "tiny-int4"

    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "edgeship.json")
        with pytest.raises(ArtifactError, match="regular file"):
            contract.read_manifest(tmp_path)


class TestArtifactFile:
    def test_named_and_whole(self, tmp_path: Path) -> None:
        artifact = write_artifact(tmp_path)
        path = contract.artifact_file(artifact, contract.read_manifest(artifact), "acceptance/chats.json")
        assert path.read_bytes() == b"one"

    def test_unnamed_missing_or_short(self, tmp_path: Path) -> None:
        artifact = write_artifact(tmp_path)
        manifest = contract.read_manifest(artifact)
        (artifact / "tokenizer.json").write_text("{}")
        with pytest.raises(ArtifactError, match="does not name it"):
            contract.artifact_file(artifact, manifest, "tokenizer.json")
        (artifact / "model.onnx").write_bytes(b"on")
        with pytest.raises(ArtifactError, match="expected 3 bytes, found 2"):
            contract.artifact_file(artifact, manifest, "model.onnx")
        (artifact / "model.onnx").unlink()
        with pytest.raises(ArtifactError, match="does not exist"):
            contract.artifact_file(artifact, manifest, "model.onnx")


class TestCheckFiles:
    def test_intact(self, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []
        artifact = write_artifact(tmp_path)
        manifest = contract.read_manifest(artifact)
        assert contract.check_files(artifact, manifest, lambda done, total: seen.append((done, total))) == []
        assert seen[-1] == (6, 6)

    def test_every_difference_is_named(self, tmp_path: Path) -> None:
        names = ("same", "hash", "size", "missing", "folder", "link")
        entry = contract.describe_file(write_artifact(tmp_path / "other") / "model.onnx")
        manifest = replace(parse(VALID), files=dict.fromkeys(names, entry))
        artifact = tmp_path / "artifact"
        (artifact / "folder").mkdir(parents=True)
        for name, data in (("same", b"one"), ("hash", b"two"), ("size", b"three"), ("sub/extra", b"")):
            (artifact / name).parent.mkdir(exist_ok=True)
            (artifact / name).write_bytes(data)
        (artifact / "link").symlink_to(tmp_path / "other" / "model.onnx")
        (artifact / "linked-folder").symlink_to(tmp_path / "other")
        problems = contract.check_files(artifact, manifest)
        assert [(problem.name, problem.kind) for problem in problems] == [
            ("folder", "unreadable"),
            ("hash", "hash"),
            ("link", "link"),
            ("linked-folder", "unnamed"),
            ("missing", "missing"),
            ("size", "size"),
            ("sub/extra", "unnamed"),
        ]
        assert "expected 3 bytes, found 5" in str(problems[5])

    def test_collecting_gives_what_checking_accepts(self, tmp_path: Path) -> None:
        artifact = write_artifact(tmp_path)
        files = contract.collect_files(artifact, skip=("edgeship.json",))
        assert list(files) == ["acceptance/chats.json", "model.onnx"]
        assert contract.check_files(artifact, replace(parse(VALID), files=files)) == []

    def test_a_large_file_is_streamed(self, tmp_path: Path) -> None:
        data = random.Random(0).randbytes(3_000_001)
        (tmp_path / "big").write_bytes(data)
        entry = contract.describe_file(tmp_path / "big")
        assert entry == contract.FileEntry(3_000_001, hashlib.sha256(data).hexdigest())
