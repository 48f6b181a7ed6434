"""Two artifacts or engines side by side, through real processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tolerances
from acceptance_files import PROMPTS as GOLDEN_PROMPTS
from acceptance_files import write_acceptance
from command_line import Ended
from edgeship_runtime import compare as comparing
from edgeship_runtime.compare import compare
from edgeship_runtime.errors import ArtifactError, ResourceError, UsageError
from gguf_bytes import model
from toy_artifact import write_toy
from toy_gguf import needs_llamacpp, write_toy_gguf, write_toy_gguf_artifact

FAST: dict[str, Any] = {"prompt_tokens": 8, "decode_tokens": 4, "repeats": 1, "threads": 1}


class TestSides:
    def test_an_artifact_is_equal_to_itself(self, tmp_path: Path) -> None:
        toy = write_toy(tmp_path / "onnx")
        found = compare(toy.directory, toy.directory, **FAST, tokens=5)
        near = found.closeness
        assert (near.prompts, near.same_ids) == (len(comparing.PROMPTS), len(comparing.PROMPTS))
        assert near.equal == near.positions >= near.prompts
        assert near.max_error <= tolerances.SAME_KERNELS
        assert near.differences == ()
        for side in (found.first, found.second):
            assert side.engine.startswith("onnxruntime")
            assert side.decode_tokens_per_s > 0
            assert side.load_s > 0
            assert side.size_mb == pytest.approx(sum(f.stat().st_size for f in toy.directory.iterdir()) / 1e6, abs=1e-3)
        assert json.dumps(found.to_json())

    @needs_llamacpp
    def test_engines_of_an_artifact_in_both_formats(self, tmp_path: Path) -> None:
        # Not the same weights: the artifacts are told apart, and what is said of it is right.
        onnx = write_acceptance(write_toy(tmp_path / "toy" / "onnx"))
        write_toy_gguf_artifact(tmp_path / "toy" / "gguf")
        found = compare(onnx.parent, onnx.parent, engines=("ort", "llamacpp"), **FAST, tokens=4)
        assert [found.first.engine.split()[0], found.second.engine.split()[0]] == ["onnxruntime", "llama-cpp-python"]
        near = found.closeness
        assert near.prompts == len(GOLDEN_PROMPTS), "the golden prompts of the acceptance test"
        assert near.same_ids is None
        assert near.positions - near.equal == len(near.differences) > 0
        assert {each.prompt for each in near.differences} <= set(GOLDEN_PROMPTS)
        table = found.table()
        assert "more" in table or len(near.differences) <= 5
        assert "deviations apart" in table

    @needs_llamacpp
    def test_numbers_are_those_of_the_two_models(self, tmp_path: Path) -> None:
        narrow, wide = write_toy_gguf(tmp_path / "narrow.gguf"), write_toy_gguf(tmp_path / "wide.gguf", head_dim=32)
        found = compare(narrow.path, wide.path, prompts=["The cat"], **FAST, tokens=1)
        answer = comparing._ask(
            {
                "artifact": str(narrow.path),
                "engine": None,
                "threads": 1,
                "context": None,
                "options": {},
                "prompts": [{"name": "x", "text": "The cat"}],
                "tokens": 1,
                "logits": str(tmp_path / "logits"),
            }
        )
        ids = answer["answers"][0]["ids"]
        apart = np.abs(wide.logits(ids)[-1] - narrow.logits(ids)[-1])
        assert found.closeness.max_error == pytest.approx(apart.max(), rel=0.02)
        assert found.closeness.mean_error == pytest.approx(apart.mean(), rel=0.02)
        std = narrow.logits(ids)[-1].std()
        assert found.closeness.max_error_std == pytest.approx(apart.max() / std, rel=0.02)
        best = np.sort(narrow.logits(ids)[-1])[-2:]
        (difference,) = found.closeness.differences
        assert difference.position == 0
        assert difference.gap_std == pytest.approx((best[1] - best[0]) / std, rel=0.05)

    def test_an_encoder_is_refused_before_anything_starts(self, tmp_path: Path) -> None:
        from encoders import write_encoder

        encoder, _ = write_encoder(tmp_path / "encoder", "feature-extraction")
        with pytest.raises(UsageError, match="is for feature-extraction"):
            compare(write_toy(tmp_path / "onnx").directory, encoder, **FAST)

    @needs_llamacpp
    def test_what_a_side_raises_is_raised(self, tmp_path: Path) -> None:
        good = write_toy(tmp_path / "onnx")
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(model().without_key("llama.attention.head_count").bytes())
        with pytest.raises(ArtifactError) as caught:
            compare(good.directory, bad, **FAST)
        assert str(bad) in caught.value.message
        assert caught.value.hint
        with pytest.raises(UsageError, match="has no option 'kv_type'"):
            compare(good.directory, good.directory, options={"kv_type": "f16"}, **FAST)
        with pytest.raises(UsageError, match="1 to 4096 tokens"):
            compare(good.directory, good.directory, tokens=0)

    def test_a_process_that_ends_without_a_word(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stub = tmp_path / "python"
        monkeypatch.setattr(comparing.sys, "executable", str(stub))
        for script, kind, says in (
            ("kill -9 $$", ResourceError, "ended by signal 9"),
            ("echo 'Boom: x' >&2; exit 1", Exception, "the process failed: Boom: x"),
        ):
            stub.write_text(f"#!/bin/sh\n{script}\n")
            stub.chmod(0o755)
            with pytest.raises(kind, match=says):
                comparing._ask({"artifact": "a"})


class TestCommand:
    @needs_llamacpp
    def test_table_and_json(self, command: Callable[..., Ended], tmp_path: Path) -> None:
        write_toy(tmp_path / "toy" / "onnx")
        write_toy_gguf_artifact(tmp_path / "toy" / "gguf")
        words = ["--prompt-tokens", "8", "--decode-tokens", "4", "--repeats", "1", "--tokens", "2", "--threads", "1"]
        ended = command("compare", tmp_path / "toy", tmp_path / "toy", "--engines", "ort,llamacpp", *words)
        assert ended.code == 0
        for said in ("onnxruntime", "llama-cpp-python", "peak memory", "have the same token ids", "deviations"):
            assert said in ended.out
        line = ("compare", tmp_path / "toy" / "onnx", tmp_path / "toy" / "gguf", "--prompt", "Hi", *words, "--json")
        value = command(*line).json()
        assert value["closeness"]["prompts"] == value["closeness"]["same_ids"] == 1
        assert value["first"]["artifact"].endswith("onnx")

    def test_bad_lines(self, command: Callable[..., Ended], artifact: str) -> None:
        assert command("compare", artifact, artifact, "--engines", "ort").code == 2
        assert command("compare", artifact, artifact, "--engines", "none,ort").code == 2
        assert command("compare", artifact).code == 2
        assert command("compare", artifact, "nowhere").code == 8
