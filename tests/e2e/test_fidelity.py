"""What schemes lose on the embedded model, through llama.cpp: calibrated ones beside rounding and ggml's quantizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeship import cli
from edgeship.tiny import checkpoint_dir

pytestmark = pytest.mark.e2e

INT4 = {"body": "int4", "embeddings": "int8", "head": "int8"}
CALIBRATION = {"tokens": 16384, "sequence": 128}
NARROW = ["iq4_nl", "q4_1", "q5_0", "q5_1", "q8_0"]  # groups of 32, which the model's rows divide into


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.run([*arguments, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_calibrated_schemes_lose_less_than_others_of_their_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")

    def export(name: str, scheme: dict[str, Any], **more: Any) -> dict[str, Any]:
        fields = {"source": {"host": "local", "repo": "a/tiny", "path": str(checkpoint_dir())}, "formats": ["gguf"]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(fields | {"context": 512, "scheme": scheme} | more))
        made = run(capsys, "export", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / "out"))
        [file] = (Path(made["artifact"]) / "gguf").glob("*.gguf")
        return made | {"file": str(file)}

    made = {
        "rtn": export("rtn", INT4),
        "gptq": export("gptq", INT4 | {"algorithm": "gptq"}, calibration=CALIBRATION),
        "Q4_0": export("Q4_0", {"mix": "Q4_0"}, calibration=CALIBRATION),
        "Q4_K_M": export("Q4_K_M", {"mix": "Q4_K_M"}, calibration=CALIBRATION),
    }
    bits = round(made["Q4_K_M"]["bits_per_weight"] + 0.001, 3)
    made["mixed"] = export("mixed", {"mixed": {"types": NARROW, "bits_per_weight": bits}}, calibration=CALIBRATION)
    sizes = {name: Path(each["file"]).stat().st_size for name, each in made.items()}
    assert sizes["gptq"] == pytest.approx(sizes["rtn"], rel=1e-3)
    assert sizes["mixed"] <= 1.002 * sizes["Q4_K_M"]
    files = [each["file"] for each in made.values()]
    options = ("--reference", str(checkpoint_dir()), "--tokens", "8192", "--greedy", "0")
    found = run(capsys, "evaluate", *files, *options)["artifacts"]
    loss = {name: each["kl_mean"] for name, each in zip(made, found, strict=True)}
    assert loss["gptq"] <= 0.5 * loss["rtn"], loss
    assert loss["gptq"] <= loss["Q4_0"], loss
    assert loss["mixed"] < loss["Q4_K_M"], loss
