"""Encoder with decoder through a stand-in for Optimum: what is sealed and verified, refused, and not run here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import NO_LIMIT, write_safetensors
from edgeship import cli, exporters
from edgeship.errors import CheckpointError, EdgeshipError, FidelityError, RecipeError
from edgeship.progress import Silent
from edgeship.recipe_file import read_recipe
from edgeship_runtime import load
from edgeship_runtime.errors import ArtifactError, UsageError
from edgeship_runtime.manifest import collect_files, read_manifest, write_manifest
from edgeship_runtime.seq2seq import GOLDEN
from edgeship_runtime.verify import verify
from encoders import WORDS, write_files, write_words
from exporter_standin import asked, stand_in

CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "vocab_size": len(WORDS),
    "d_model": 8,
    "num_layers": 2,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}
TASK = "optimum: {task: text2text-generation}\n"


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Exports a checkpoint through the stand-in; returns the artifact's directory."""

    def run(
        text: str = TASK,
        config: dict[str, Any] | None = None,
        *,
        generation: dict[str, Any] | None = None,
        limit: int = 48,
        tokenizer: bool = True,
        **how: Any,
    ) -> Path:
        run.environment = stand_in(tmp_path / "environments", "optimum", monkeypatch, **how)  # type: ignore[attr-defined]
        source = tmp_path / "checkpoint"
        source.mkdir()
        if tokenizer:
            write_words(source)
        write_safetensors(source / "model.safetensors", {"shared.weight": ("F16", np.zeros(4, np.float16))})
        files = {"config.json": CONFIG | (config or {}), "tokenizer_config.json": {"model_max_length": limit}}
        write_files(source, files | ({"generation_config.json": generation} if generation else {}))
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(f"source: {{repo: me/mine}}\nexporter: optimum\n{text}")
        out = tmp_path / "out"
        made = exporters.export(read_recipe(recipe), checkpoint=source, out=out, force=False, progress=Silent())
        return made.artifact / "onnx"

    return run


def test_both_graphs_are_sealed_and_verified(export: Any) -> None:
    directory = export()
    (request,) = asked(export.environment)
    assert (request["quantization"], request["start"], request["stop"], request["offline"]) == ("dynamic", 0, [3], "1")
    manifest = read_manifest(directory)
    assert manifest.model.task == "text2text-generation"
    assert manifest.model.context_length == 48
    assert {"encoder_model.onnx", "decoder_model.onnx", "config.json", GOLDEN} <= set(manifest.files)
    assert {"ai.onnx.Gather", "ai.onnx.MatMul"} <= set(manifest.ops)  # of either
    assert "ORTModelForSeq2SeqLM" in (directory / "README.md").read_text()
    found = verify(directory)
    assert (found.verdict, found.failures) == ("pass", ())
    assert found.agreement is not None
    assert found.agreement.cosine == pytest.approx(1, abs=1e-4)
    assert found.tokens is not None
    assert found.tokens.equal == found.tokens.cases > 4


def test_a_tokenizer_without_a_limit_reads_what_t5_was_trained_with(export: Any) -> None:
    directory = export(limit=NO_LIMIT)
    assert read_manifest(directory).model.context_length == 512
    assert verify(directory).verdict == "pass"


def test_a_changed_byte_and_a_changed_weight_are_seen(export: Any) -> None:
    directory = export()
    graph = directory / "decoder_model.onnx"
    raw = bytearray(graph.read_bytes())
    raw[len(raw) // 2] ^= 0x40  # inside a table
    graph.write_bytes(raw)
    found = verify(directory)
    assert (found.verdict, found.agreement) == ("fail", None)
    assert any("decoder_model.onnx" in each for each in found.failures)


def test_graphs_that_answer_otherwise_fail(export: Any) -> None:
    directory = export()
    golden = json.loads((directory / GOLDEN).read_text())
    case = golden["cases"][0]
    case["top_ids"] = case["top_ids"][::-1]
    (directory / GOLDEN).write_text(json.dumps(golden))
    reseal(directory)
    found = verify(directory)
    assert found.verdict == "fail"
    assert "cosine to the float model" in found.failures[0]


@pytest.mark.parametrize(
    "change", [{"values": "?"}, {"values": "AAA="}, {"top_ids": [1]}, {"answer_ids": []}, {"token_ids": []}]
)
def test_damaged_golden_values_are_refused(export: Any, change: dict[str, Any]) -> None:
    directory = export()
    golden = json.loads((directory / GOLDEN).read_text())
    golden["cases"][0] |= change
    (directory / GOLDEN).write_text(json.dumps(golden))
    reseal(directory)
    with pytest.raises(ArtifactError, match=r"cases\[0\]"):
        verify(directory)


def reseal(directory: Path) -> None:
    """The manifest over what lies there now."""
    from dataclasses import replace

    manifest = read_manifest(directory)
    (directory / "edgeship.json").unlink()
    write_manifest(directory, replace(manifest, files=collect_files(directory)))


def test_it_is_not_run_here_and_the_message_names_what_runs_it(export: Any) -> None:
    with pytest.raises(UsageError, match="does not run it") as caught:
        load(export())
    assert "ORTModelForSeq2SeqLM" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "config", "kind", "said"),
    [
        (TASK, {"is_encoder_decoder": False}, CheckpointError, "expected an encoder and a decoder"),
        (TASK, {"decoder_start_token_id": None}, CheckpointError, "decoder_start_token_id"),
        (TASK, {"eos_token_id": 999}, CheckpointError, "eos_token_id"),
        (TASK, {"eos_token_id": []}, CheckpointError, "eos_token_id"),
        (TASK, {"eos_token_id": [3, True]}, CheckpointError, "eos_token_id"),
        (TASK, {"eos_token_id": None}, CheckpointError, "eos_token_id: .* found none"),
        (TASK, {"d_model": 0}, CheckpointError, "d_model"),
        (TASK, {"auto_map": {"AutoModel": "a.B"}}, CheckpointError, "auto_map"),
        ("", {}, CheckpointError, "expected an encoder, found one with a decoder"),
        ("optimum: {task: text2text-generation, pooling: cls}", {}, RecipeError, "pooling"),
        ("optimum: {task: text2text-generation, quantization: static}", {}, RecipeError, "two graphs"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    export: Any, tmp_path: Path, text: str, config: dict[str, Any], kind: type[EdgeshipError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        export(text, config)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    ("config", "generation", "start", "stop"),
    [
        ({"eos_token_id": [3, 2]}, {}, 0, [3, 2]),
        ({"decoder_start_token_id": None}, {"decoder_start_token_id": 5}, 5, [3]),
        ({"decoder_start_token_id": None, "bos_token_id": 2}, {}, 2, [3]),
        ({}, {"decoder_start_token_id": [4, 4], "eos_token_id": 2}, 4, [2]),
        ({"pad_token_id": None}, {}, 0, [3]),
    ],
)
def test_tokens_that_begin_and_end_an_answer_are_found_where_transformers_looks(
    export: Any, config: dict[str, Any], generation: dict[str, Any], start: int, stop: list[int]
) -> None:
    directory = export(config=config, generation=generation)
    (request,) = asked(export.environment)
    assert (request["start"], request["stop"]) == (start, stop)
    assert list(read_manifest(directory).model.eos_token_ids) == stop
    assert verify(directory).verdict == "pass"


def test_without_a_fast_tokenizer_it_is_said_that_there_may_be_none(export: Any) -> None:
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json") as caught:
        export(tokenizer=False)
    assert "slow form only (Marian, M2M100, ProphetNet)" in str(caught.value.hint)


def test_one_too_far_from_the_float_model_is_not_sealed(export: Any, tmp_path: Path) -> None:
    with pytest.raises(FidelityError, match=r"accept\.cosine"):
        export(far=True)
    assert not list((tmp_path / "out").rglob("edgeship.json"))


def test_the_command_says_what_to_do_with_it(export: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export()
    out = tmp_path / "again"
    source = ["--checkpoint", str(tmp_path / "checkpoint")]
    assert cli.run(["export", str(tmp_path / "mine.yaml"), *source, "--out", str(out)]) == 0
    assert "edgeship-runtime verify" in capsys.readouterr().out
    assert cli.run(["evaluate", str(out / "mine"), "--reference", str(tmp_path / "checkpoint")]) == 2
    assert "found one for text2text-generation" in capsys.readouterr().err


def test_it_is_validated_without_a_measurement(
    export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = export()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    capsys.readouterr()
    assert cli.run(["validate", str(directory), "--device", "local", "--threads", "1", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    report = result["report"]
    assert report["verdict"] == "pass"
    assert {step["name"]: step["said"] for step in report["steps"]}["bench"] == "not measured"
    assert report["samples"] == []
    assert any("run by other programs" in note for note in report["notes"])
