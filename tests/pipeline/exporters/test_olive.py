"""Olive's workflows through a stand-in: what is asked of it, what is sealed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from checkpoints import write_tokenizer
from edgeship import exporters
from edgeship.errors import EdgeshipError, ExporterError
from edgeship.progress import Silent
from edgeship.recipe_file import read_recipe
from edgeship_runtime import load
from edgeship_runtime.acceptance import GOLDEN
from edgeship_runtime.manifest import collect_files, read_manifest, write_manifest
from edgeship_runtime.verify import verify
from exporter_standin import asked, stand_in
from toy_artifact import CONTEXT, END, VOCAB


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Exports a checkpoint by a recipe through the stand-in; returns the artifact's directory."""

    def run(text: str = "", **how: Any) -> Path:
        import numpy as np

        run.environment = stand_in(tmp_path / "environments", "olive", monkeypatch, **how)  # type: ignore[attr-defined]
        source = tmp_path / "checkpoint"
        source.mkdir()
        write_tokenizer(source)
        (source / "config.json").write_text(json.dumps({"vocab_size": VOCAB, "eos_token_id": list(END)}))
        save_file({"a": np.zeros((10, 10), np.float32)}, source / "model.safetensors")
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(f"source: {{repo: me/mine}}\nexporter: olive\n{text}")
        return exporters.export(
            read_recipe(recipe), checkpoint=source, out=tmp_path / "out", force=False, progress=Silent()
        ).artifact

    return run


def test_the_output_is_sealed_verified_and_runs(export: Any, tmp_path: Path) -> None:
    options = "context: 64\nsampling: {temperature: 0.5}\nolive: {passes: [{type: ModelBuilder, precision: int4}]}"
    artifact = export(options)
    checked, ran = asked(export.environment)
    assert checked["passes"] == ran["passes"] == [{"type": "ModelBuilder", "precision": "int4"}]
    assert "checkpoint" not in checked
    assert ran["checkpoint"] == str(tmp_path / "checkpoint")
    manifest = read_manifest(artifact / "onnx")
    assert (manifest.model.default_context, manifest.model.context_length) == (64, CONTEXT)
    assert manifest.sampling.temperature == 0.5
    assert set(manifest.model.eos_token_ids) == set(END)
    assert manifest.recipe["olive"]["passes"] == ran["passes"]
    assert "com.microsoft.GroupQueryAttention" in manifest.ops
    verdict = verify(artifact)
    assert verdict.verdict == "pass"
    assert verdict.templates is not None
    assert verdict.templates.cases > 0
    assert verdict.agreement is not None
    assert verdict.agreement.positions > 20
    assert verdict.agreement.max_logit_error < 1e-3
    with load(artifact) as model:
        assert model.generate("a", max_tokens=3).tokens


def test_kernels_that_answer_otherwise_fail(export: Any) -> None:
    artifact = export() / "onnx"
    manifest, value = read_manifest(artifact), json.loads((artifact / GOLDEN).read_text())
    for case in value["cases"]:
        for position in case["positions"]:
            position["top_logits"] = [each + 10 for each in position["top_logits"]]
    (artifact / GOLDEN).write_text(json.dumps(value))
    (artifact / "edgeship.json").unlink()
    write_manifest(artifact, replace(manifest, files=collect_files(artifact)))
    verdict = verify(artifact)
    assert verdict.verdict == "fail"
    assert all("a logit is off" in each for each in verdict.failures)


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"error": "no such pass"}, ExporterError, "no such pass"),
        ({"without": ["genai_config.json"]}, ExporterError, "genai_config.json"),
        ({"without": ["model.onnx"]}, ExporterError, "model.onnx"),
        ({"without": ["model.onnx.data"]}, ExporterError, "does not run"),
        ({"rename": "weights.data"}, ExporterError, "weights.data"),
    ],
)
def test_what_cannot_be_sealed_leaves_nothing(
    export: Any, tmp_path: Path, how: dict[str, Any], kind: type[EdgeshipError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        export(**how)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))
