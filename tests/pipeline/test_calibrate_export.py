"""An export that calibrates: from text to both formats, interrupted, without room, and what is refused."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exports
from edgeship import build
from edgeship.calibrate import export as calibrate_export
from edgeship.calibrate import quantize
from edgeship.calibrate.store import CodeWriter
from edgeship.calibration_stages import require_memory, stages
from edgeship.errors import PlanError, ResourceError
from edgeship.plan import make_plan
from edgeship.reference.weights import EMBED
from edgeship.tensors import QuantizedRows
from edgeship.tiny import checkpoint_dir
from edgeship_runtime.gguf import read_header
from exports import contents, every_format
from reference_models import opened

TEXT = "The cat sat on the mat, and the dog by the door. def add(a, b): return a + b\n" * 60


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(TEXT)
    return path


def fields(text: Path, **scheme: Any) -> dict[str, Any]:
    calibration = {"text": str(text), "tokens": 256, "sequence": 64}
    return {"scheme": {"algorithm": "gptq", **scheme}, "calibration": calibration, "formats": ["onnx", "gguf"]}


@pytest.mark.parametrize("scheme", [{}, {"embeddings": "int4", "head": "int4"}, {"algorithm": "rtn-search"}])
def test_both_formats_hold_the_same_calibrated_weights(
    scheme: dict[str, Any], small: Path, text: Path, tmp_path: Path
) -> None:
    import gguf

    made = every_format(small, tmp_path, **fields(text, **scheme))
    decoder, _ = opened(small)
    plan = build.plan_checkpoint(
        exports.recipe(**fields(text, **scheme)), json.loads((small / "config.json").read_text())
    )
    header = read_header(next((made / "gguf").glob("*.gguf")))
    tensors = {t.name: t for t in gguf.GGUFReader(header.path).tensors}
    from edgeship.formats.onnx.layout import lay_out
    from edgeship.reference.weights import StoredWeights

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, decoder.layers)
    with StoredWeights(made / "onnx" / "model.onnx.data", {p.role.key: p for p in lay_out(plan).places}) as stored:
        for role in decoder.roles():
            if role.part != "body" and role.key != EMBED:
                continue
            tensor = tensors[names.get_name(role.tensor, (".weight",))]
            theirs = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(role.shape)
            np.testing.assert_array_equal(stored.weights(role.key, 0, role.shape[0]), theirs, err_msg=role.key)
    assert not list(made.rglob("calibration*")), "the codes' store is no part of an artifact"


def test_the_manifest_says_what_was_looked_at(small: Path, text: Path, tmp_path: Path) -> None:
    made = every_format(small, tmp_path, **fields(text))
    recipe = json.loads((made / "onnx" / "edgeship.json").read_text())["recipe"]
    assert recipe["scheme"]["algorithm"] == "gptq"
    said = recipe["calibration"]
    assert (said["text"], said["tokens"], said["sequence"], said["seed"]) == ("words.txt", 256, 64, 0)
    assert len(said["sha256"]) == 64


def test_an_interrupted_export_keeps_the_codes_it_chose(
    small: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(every_format(small, tmp_path / "whole", **fields(text)))

    def interrupted(*_: object) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(build, "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            every_format(small, tmp_path / "cut", **fields(text))
    assert list((tmp_path / "cut").rglob("*.codes"))

    def refused(*_: object) -> None:
        raise AssertionError("nothing is to be chosen again")

    monkeypatch.setattr(quantize.gptq, "quantize", refused)
    assert contents(every_format(small, tmp_path / "cut", **fields(text))) == whole


def test_an_interrupted_export_keeps_the_text_that_the_model_wrote(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, Any] = {"scheme": {"algorithm": "gptq"}, "calibration": {"tokens": 64, "sequence": 32}}
    whole = contents(every_format(small, tmp_path / "whole", **own))
    with monkeypatch.context() as patch:
        patch.setattr(build, "choose_codes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            every_format(small, tmp_path / "cut", **own)
    with monkeypatch.context() as patch:
        patch.setattr(calibrate_export, "sample", lambda *_: (_ for _ in ()).throw(AssertionError("written again")))
        with pytest.raises(AssertionError):
            every_format(small, tmp_path / "cut", **own | {"calibration": {"tokens": 64, "sequence": 32, "seed": 1}})
        assert contents(every_format(small, tmp_path / "cut", **own)) == whole


def test_a_full_disk_keeps_what_was_chosen(
    small: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(every_format(small, tmp_path / "whole", **fields(text)))

    def full(self: CodeWriter, a: int, rows: QuantizedRows) -> None:
        if "layers.1.mlp" in self.kept.path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, a, rows)

    put = CodeWriter.put
    with monkeypatch.context() as patch:
        patch.setattr(CodeWriter, "put", full)
        with pytest.raises(ResourceError, match="What was finished is kept"):
            every_format(small, tmp_path / "cut", **fields(text))
    kept = sorted(path.name for path in (tmp_path / "cut").rglob("*.codes"))
    assert "layers.0.mlp.down.weight.codes" in kept
    assert not any("layers.1.mlp" in name for name in kept)
    assert contents(every_format(small, tmp_path / "cut", **fields(text))) == whole


def test_the_plan_says_how_much_memory_it_takes(text: Path) -> None:
    config = json.loads((checkpoint_dir() / "config.json").read_text())
    plan = build.plan_checkpoint(exports.recipe(**fields(text)), config)
    assert any("gptq with 256 calibration tokens needs --max-ram 3" in note for note in plan.notes), plan.notes


def test_other_calibration_text_is_other_work(
    small: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(every_format(small, tmp_path / "a", **fields(text)))
    other = tmp_path / "words.txt"
    other.write_text("Something else altogether, line by line.\n" * 200)
    with monkeypatch.context() as patch:
        patch.setattr(build, "seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            every_format(small, tmp_path / "b", **fields(other))
    after = contents(every_format(small, tmp_path / "b", **fields(text)))
    assert after == before


def test_too_little_memory_is_said_before_the_work(small: Path, text: Path, tmp_path: Path) -> None:
    plan = build.plan_checkpoint(exports.recipe(**fields(text)), json.loads((small / "config.json").read_text()))
    require_memory(stages(plan), 400 << 20)
    with pytest.raises(PlanError, match=r"--max-ram: expected at least .* for gptq with 256 calibration tokens"):
        require_memory(stages(plan), 330 << 20)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scheme": {"algorithm": "gptq"}}, "scheme.algorithm: gptq needs text to look at; set calibration"),
        (
            {"scheme": {"algorithm": "gptq", "body": "float32"}, "calibration": {}},
            "gptq chooses the codes of int4 and int8, which the body has none of",
        ),
        (
            {"scheme": {"algorithm": "rtn-search"}, "calibration": {"text": "/nowhere/words.txt"}},
            "calibration: no such file: /nowhere/words.txt",
        ),
        (
            {"scheme": {"algorithm": "gptq"}, "calibration": {"sequence": 4096}},
            "calibration.sequence: 4096 is more than the 1024 positions",
        ),
        (
            {"scheme": {"algorithm": "gptq"}, "calibration": {}, "imatrix": "/nowhere/im.gguf"},
            "imatrix: gptq weighs errors by what calibration shows",
        ),
    ],
)
def test_what_cannot_be_is_a_conflict_of_the_plan(given: dict[str, Any], said: str) -> None:
    config = json.loads((checkpoint_dir() / "config.json").read_text())
    plan = build.plan_checkpoint(exports.recipe(**given), config)
    assert any(said in conflict for conflict in plan.conflicts), plan.conflicts


def test_text_that_nothing_would_look_at_is_refused_by_name(small: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="calibration: rounding to nearest looks at no text"):
        every_format(small, tmp_path, formats=["onnx"], calibration={"tokens": 64, "sequence": 32})
    assert not list(tmp_path.iterdir())
    config = json.loads((small / "config.json").read_text())
    for scheme in ({"algorithm": "gptq"}, {"mix": "Q4_K_M"}, {"body": "q4_k"}, {"mixed": {"bits_per_weight": 5}}):
        plan = make_plan(exports.recipe(formats=["gguf"], scheme=scheme, calibration={"sequence": 32}), config)
        assert not any("looks at no text" in conflict for conflict in plan.conflicts)
