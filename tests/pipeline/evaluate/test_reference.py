"""The float model that `edgeship evaluate` compares with: the one an artifact was made from, adapters and all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tolerances
from edgeship import cli
from exports import FLOAT32, export

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TARGET = "base_model.model.model.layers.0.mlp.up_proj"


def adapter(checkpoint: Path, directory: Path, seed: int) -> Path:
    """An adapter of rank 4 on one layer, as PEFT saves it."""
    config = json.loads((checkpoint / "config.json").read_text())
    rng = np.random.default_rng(seed)
    wide, narrow = config["intermediate_size"], config["hidden_size"]
    tensors = {
        f"{TARGET}.lora_A.weight": rng.standard_normal((4, narrow)).astype(np.float32),
        f"{TARGET}.lora_B.weight": rng.standard_normal((wide, 4)).astype(np.float32),
    }
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run(["evaluate", *map(str, arguments), "--tokens", "128", "--window", "64", "--greedy", "0"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_was_merged_is_merged_into_the_float_model_too(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, other = adapter(checkpoint, tmp_path / "mine", 1), adapter(checkpoint, tmp_path / "other", 2)
    plain = export(checkpoint, tmp_path / "plain", scheme=FLOAT32)
    made = export(checkpoint, tmp_path / "made", scheme=FLOAT32, adapters=[str(mine)])
    asked = (made, "--reference", checkpoint, "--text", text)
    code, out, _ = run(capsys, *asked, "--adapter", mine, "--json")
    assert code == 0
    assert json.loads(out)["artifacts"][0]["kl_mean"] == pytest.approx(0, abs=tolerances.FLOAT_KL)
    for arguments, says in (
        (asked, "mine, found none"),
        ((*asked, "--adapter", other), "mine, found other"),
        ((plain, *asked[1:], "--adapter", mine), "none, found mine"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, says in err, "--adapter" in err) == (2, True, True), err


def test_rope_scaling_is_that_of_the_artifact(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = export(checkpoint, tmp_path / "plain", scheme=FLOAT32)
    scaled = export(checkpoint, tmp_path / "scaled", scheme=FLOAT32, rope_scaling=YARN)
    code, out, _ = run(capsys, scaled, "--reference", checkpoint, "--text", text, "--json")
    assert code == 0
    assert json.loads(out)["artifacts"][0]["kl_mean"] == pytest.approx(0, abs=tolerances.FLOAT_KL)
    code, _, err = run(capsys, plain, scaled, "--reference", checkpoint, "--text", text)
    assert code == 2
    assert "rope_scaling" in err
    damaged = tmp_path / "damaged"
    shutil.copytree(scaled, damaged)
    manifest = json.loads((damaged / "edgeship.json").read_text())
    manifest["recipe"]["rope_scaling"] = {"type": 7}
    (damaged / "edgeship.json").write_text(json.dumps(manifest))
    code, _, err = run(capsys, damaged, "--reference", checkpoint, "--text", text)
    assert code == 8
    assert "recipe.rope_scaling" in err
