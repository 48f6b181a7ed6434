"""Mixed schemes from the recipe to both formats, and importance that an export measures for itself."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from checkpoints import write_checkpoint
from edgeship import archs, cli, mixing, tiny
from edgeship.archs.base import Decoder
from edgeship.calibrate import deciding, imatrix, statistics
from edgeship.calibrate.sensitivity import Probe, _Measure
from edgeship.calibration_stages import require_memory, stages
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.diff import diff
from edgeship.errors import ArtifactError, PlanError, RecipeError
from edgeship.plan import Plan, make_plan
from edgeship.progress import Silent
from edgeship.quant import ggml
from edgeship.quant.imatrix import read_imatrix
from edgeship.recipe import Recipe
from edgeship.recipe_file import read_recipe
from edgeship.reference.blocks import hidden_states
from edgeship.reference.weights import CheckpointWeights
from edgeship_runtime.gguf import read_header
from edgeship_runtime.manifest import read_manifest
from exports import Listener, built, recipe

CONFIG = {
    "model_type": "qwen3", "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 512, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "max_position_embeddings": 1024, "tie_word_embeddings": True, "attention_bias": False,
}  # fmt: skip
BOTH = ("onnx", "gguf")
FOUR_BITS = {"body": "int4", "embeddings": "int4", "head": "int4"}


def planned(formats: tuple[str, ...] = BOTH, calibration: dict[str, Any] | None = None, **mixed: Any) -> Plan:
    """The plan of CONFIG with a mixed scheme."""
    fields: dict[str, Any] = {"scheme": {"mixed": mixed}, "formats": formats}
    return make_plan(recipe(calibration={} if calibration is None else calibration, **fields), CONFIG)


# recipes


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        (
            "{mixed: {bits_per_weight: 5, budget_mb: 9}}",
            "expected one budget, bits_per_weight or budget_mb, found both",
        ),
        ("{mixed: {}}", "expected one budget, bits_per_weight or budget_mb, found none"),
        ("{body: int4, mixed: {bits_per_weight: 5}}", "remove body, or mixed"),
        ("{mix: Q4_0, mixed: {bits_per_weight: 5}}", "remove mixed, or the mix"),
        (
            "{mixed: {bits_per_weight: 5, types: [int4]}}",
            "scheme.mixed.types: expected a list of at least 2, found one of 1",
        ),
        ("{mixed: {bits_per_weight: 5, types: [int4, int4]}}", "each value once"),
        ("{mixed: {bits_per_weight: 0}}", "scheme.mixed.bits_per_weight: expected a number above 0"),
    ],
)
def test_schemes_that_contradict_themselves(tmp_path: Path, scheme: str, says: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"source: {{repo: a/b}}\nscheme: {scheme}\n")
    with pytest.raises(RecipeError) as caught:
        read_recipe(file)
    assert says in caught.value.message


def test_a_mixed_scheme_and_types_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("source: {repo: a/b}\nscheme: {body: int8, head: int4}\n")
    file = tmp_path / "mine.yaml"
    file.write_text("extends: base\nscheme: {algorithm: gptq, mixed: {bits_per_weight: 5}}\n")
    read = read_recipe(file)
    assert set(read.resolved()["scheme"]) == {"mixed", "group_size", "algorithm"}
    assert Recipe.model_validate(read.model_dump(exclude_unset=True)) == read


# plans


@pytest.mark.parametrize("formats", [("onnx",), ("gguf",), BOTH])
@pytest.mark.parametrize("budget", [{"bits_per_weight": 5.6}, {"budget_mb": 2.6}])
def test_every_format_keeps_the_budget(formats: tuple[str, ...], budget: dict[str, float]) -> None:
    plan = planned(formats, **budget)
    assert not plan.conflicts
    largest = max(made.bits_per_weight for made in plan.footprints.values())
    size = max(made.size_bytes for made in plan.footprints.values()) / 1e6
    found, limit = (largest, 5.6) if "bits_per_weight" in budget else (size, 2.6)
    assert 0.94 * limit < found <= limit
    assert {t.encoding.name for t in plan.tensors if t.role.part == "body"} == {"int4-32", "int8-32"}


def test_q_k_and_v_are_one_matrix_in_onnx() -> None:
    key = "layers.1.attn.q.weight"
    for formats, expected in ((BOTH, {"int8-32"}), (("gguf",), {"int4-32", "int8-32"})):
        plan = make_plan(recipe(formats=formats), CONFIG, chosen={key: "int8-32"})
        kinds = {t.role.key: t.encoding.name for t in plan.tensors}
        assert {kinds[f"layers.1.attn.{name}.weight"] for name in "qkv"} == expected
        assert kinds["layers.0.attn.q.weight"] == "int4-32"


@pytest.mark.parametrize("formats", [BOTH, ("gguf",)])
@pytest.mark.parametrize("budget", [{"bits_per_weight": 4.0}, {"budget_mb": 0.1}])
def test_a_budget_that_is_too_small_says_what_would_do(budget: dict[str, float], formats: tuple[str, ...]) -> None:
    ((key, value),) = budget.items()
    (said,) = planned(formats, **budget).conflicts
    found = re.fullmatch(rf"scheme\.mixed\.{key}: expected at least ([\d.]+), which the smallest types take, .*", said)
    assert found
    least = float(found[1])
    assert planned(formats, **{key: least}).conflicts == ()
    assert planned(formats, **{key: least - 0.002}).conflicts != ()
    assert f"found {value:g}; raise it, or add a smaller type" in said


def test_the_choice_is_told_whole() -> None:
    raised = {f"layers.{i}.attn.{name}.weight": "int8-32" for i in (0, 1) for name in "qkv"}
    raised |= {"layers.2.mlp.down.weight": "int8-32", "layers.0.mlp.down.weight": "int8-32", "embed.weight": "int8-32"}
    assert mixing.described(make_plan(recipe(scheme=FOUR_BITS), CONFIG, chosen=raised)) == (
        "mixed: int8-32 for 9 tensors (embed, attn.q of layers 0-1, attn.k of layers 0-1, attn.v of layers 0-1, "
        "mlp.down of layers 0 2); int4-32 for 13 tensors (the rest)"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits_per_weight": 9.0, "types": ["int4", "q6_k"]}, "onnx has no q6_k"),
        ({"bits_per_weight": 6.0, "formats": ("gguf",), "types": ["q2_k", "iq2_s", "q6_k"]}, ""),
    ],
)
def test_conflicts(change: dict[str, Any], says: str) -> None:
    found = planned(**change).conflicts
    assert any(says in each for each in found) if says else not found


def test_a_mixed_scheme_needs_text() -> None:
    found = make_plan(recipe(scheme={"mixed": {"bits_per_weight": 6}}), CONFIG).conflicts
    assert [each for each in found if each.startswith("scheme.mixed: what each tensor costs is measured on text")]
    coarse = {"scheme": {"body": "iq2_xs"}, "formats": ("gguf",)}
    assert make_plan(recipe(**coarse), CONFIG).conflicts
    assert not make_plan(recipe(**coarse, calibration={}), CONFIG).conflicts


def test_ggml_is_looked_for_before_anything_long() -> None:
    assert deciding.may_need_ggml(planned(("gguf",), bits_per_weight=6, types=["int4", "q6_k"]))
    assert not deciding.may_need_ggml(planned(bits_per_weight=6))
    mix = recipe(scheme={"mix": "Q4_0"}, formats=("gguf",), calibration={})
    assert deciding.may_need_ggml(make_plan(mix, CONFIG))
    assert not deciding.may_need_ggml(make_plan(recipe(scheme={"algorithm": "gptq"}, calibration={}), CONFIG))


def test_measuring_stays_within_max_ram() -> None:
    with pytest.raises(PlanError, match="for measuring on 512 tokens what each tensor costs"):
        require_memory(stages(planned(bits_per_weight=6)), 400 << 20)
    require_memory(stages(planned(bits_per_weight=6)), 2 << 30)


# exports


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "calibration.txt"
    file.write_text("The cat sat on the mat. What is the opposite of hot? Cold, says the fox. " * 20)
    return str(file)


def export(checkpoint: Path, out: Path, formats: tuple[str, ...] = BOTH, **fields: Any) -> tuple[Path, list[str]]:
    heard = Listener()
    made = recipe(formats=formats, **fields)
    return built(made, out, formats, checkpoint=checkpoint, max_ram=2 << 30, progress=heard), heard.notes


@pytest.mark.parametrize("tied", [True, False])
def test_both_formats_hold_the_same_choice(tmp_path: Path, text: str, tied: bool) -> None:
    checkpoint = write_checkpoint(tmp_path / "ck", "qwen3", tied=tied)
    scheme = {"mixed": {"bits_per_weight": 6.6, "tokens": 64}}
    calibration = {"text": text, "tokens": 128, "sequence": 32}
    artifact, notes = export(checkpoint, tmp_path / "out", scheme=scheme, calibration=calibration)
    compared = diff(artifact, Silent())
    assert compared.values > 0
    assert not compared.different
    manifests = [read_manifest(artifact / form) for form in BOTH]
    chosen = manifests[0].recipe["chosen"]
    assert chosen == manifests[1].recipe["chosen"]
    matrices = {r.tensor for r in archs.read(open_checkpoint(checkpoint).config).roles() if r.part != "float"}
    assert set(chosen) == matrices
    assert set(chosen.values()) == {"int4-32", "int8-32"}
    assert max(m.weights.bits_per_weight for m in manifests) <= 6.6
    assert [note for note in notes if note.startswith("mixed: ")]
    assert sorted(each for each in os.listdir(artifact) if not each.endswith(".journal")) == ["gguf", "onnx"]
    again, _ = export(checkpoint, tmp_path / "again", scheme=scheme, calibration=calibration)
    assert read_manifest(again / "onnx") == manifests[0], "the same recipe, the same choice"


def model() -> tuple[Decoder, CheckpointWeights, list[list[int]]]:
    """The embedded tiny model, and text it was trained on as tokens."""
    home = Path(tiny.__file__).parent / "checkpoint"
    checkpoint = open_checkpoint(home)
    decoder = archs.read(checkpoint.config)
    said = "Once upon a time there was a fox. The fox asked a bear: what is the opposite of hot? It is cold. " * 8
    ids = Tokenizer.from_file(str(home / "tokenizer.json")).encode(said, add_special_tokens=False).ids
    return (
        decoder,
        CheckpointWeights(account(checkpoint, decoder.roles())),
        [ids[a : a + 48] for a in range(0, 192, 48)],
    )


class Rounded:
    """A model's weights as a plan's encodings hold them."""

    def __init__(self, probe: Probe, plan: Plan) -> None:
        self._probe, self._kinds = probe, {t.role.key: t.encoding for t in plan.tensors}

    def weights(self, key: str, a: int, b: int) -> np.ndarray[Any, Any]:
        own = key if key in self._kinds else "embed.weight"
        return self._probe.rounded(own, self._probe.weights.weights(key, a, b), self._kinds[own])

    def vector(self, key: str) -> np.ndarray[Any, Any]:
        return self._probe.weights.vector(key)


def test_what_was_measured_beats_what_is_assumed_at_the_same_size() -> None:
    decoder, weights, tokens = model()
    config = open_checkpoint(Path(tiny.__file__).parent / "checkpoint").config
    plan = make_plan(recipe(scheme={"mixed": {"bits_per_weight": 6.2}}, calibration={}), config)
    assert plan.recipe.scheme.mixed is not None
    types = mixing.types_of(plan.recipe.scheme.mixed, decoder, 32)
    moments = {key: each.second_moments for key, each in statistics(decoder, weights, tokens).items()}
    probe = Probe(decoder, weights, tokens, types, moments | {"embed.weight": moments["head.weight"]}, Silent())
    measured = probe.run()
    chosen = make_plan(plan.recipe, config, chosen=mixing.choose(plan, measured))
    with ThreadPoolExecutor(1) as pool:
        judge, found = _Measure(probe, pool), []
        for each in (chosen, plan):
            rounded = Rounded(probe, each)
            end = np.concatenate([states for _, states in hidden_states(decoder, rounded, tokens)])
            found += judge.divergences([(rounded, end)])
    sizes = [p.footprints["onnx"].weight_bytes for p in (chosen, plan)]
    assert sizes[0] <= 1.02 * sizes[1]
    assert found[0] < 0.9 * found[1]
    predicted = sum(measured[t.role.key][t.encoding.name] for t in chosen.tensors if t.role.key in measured)
    assert 0.5 < found[0] / predicted < 2, "the tensors' losses add up"


def test_ggmls_types_are_guided_by_calibration_text(tmp_path: Path, text: str) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    checkpoint = write_checkpoint(tmp_path / "ck", "qwen3", hidden=256, ff=256, heads=4, kv_heads=2, head_dim=64)
    calibration = {"text": text, "tokens": 128, "sequence": 32}
    for name, scheme in (
        ("mix", {"mix": "Q4_K_M"}),
        ("mixed", {"mixed": {"bits_per_weight": 5, "types": ["q3_k", "q6_k"]}}),
    ):
        out = tmp_path / name
        artifact, _ = export(checkpoint, out, ("gguf",), scheme=scheme, calibration=calibration)
        [file] = (artifact / "gguf").glob("*.gguf")
        header, opened = read_header(file), open_checkpoint(checkpoint)
        tensors = account(opened, archs.read(opened.config).roles())
        (tmp_path / "mine.yaml").write_text(
            "source: {host: local, repo: a/b, path: ck}\ncalibration: " + json.dumps(calibration)
        )
        written = tmp_path / f"{name}.imatrix.gguf"
        assert cli.run(["imatrix", str(tmp_path / "mine.yaml"), "--out", str(written), "--json"]) == 0
        importance = read_imatrix(written)
        for llama, key in (("blk.0.attn_q", "layers.0.attn.q"), ("blk.1.ffn_down", "layers.1.mlp.down")):
            tensor, source = header.tensors[f"{llama}.weight"], tensors[f"{key}.weight"]
            rows = source.rows(0, source.shape[0])
            guided = ggml.quantize(rows, tensor.type, importance[f"{llama}.weight"])
            stored = np.fromfile(file, np.uint8, guided.size, offset=header.data + tensor.offset)
            np.testing.assert_array_equal(stored, guided.ravel(), err_msg=f"{name} {llama} {tensor.type}")
            assert not np.array_equal(guided, ggml.quantize(rows, tensor.type))


@pytest.mark.parametrize("tied", [True, False])
def test_the_files_keep_a_budget_in_megabytes(tmp_path: Path, text: str, tied: bool) -> None:
    checkpoint = write_checkpoint(tmp_path / "ck", "qwen3", tied=tied, hidden=288, ff=992)
    calibration = {"text": text, "tokens": 64, "sequence": 32}
    for budget in (1.6, 1.8, 2.0):
        scheme = {"mixed": {"budget_mb": budget, "tokens": 32}}
        artifact, _ = export(checkpoint, tmp_path / str(budget), scheme=scheme, calibration=calibration)
        sizes = {f.name: f.stat().st_size for f in artifact.rglob("*") if f.suffix in (".data", ".gguf")}
        assert len(sizes) == 2
        assert 0.9e6 * budget < max(sizes.values()) <= 1e6 * budget, sizes


def test_types_that_want_importance_get_it_from_any_text(tmp_path: Path, text: str) -> None:
    """A table that is looked up only shows none, nor does an input that is always zero."""
    from safetensors.numpy import load_file, save_file

    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    sizes = {"hidden": 256, "ff": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "layers": 2}
    checkpoint = write_checkpoint(tmp_path / "ck", "qwen3", tied=False, dtype="F32", **sizes)
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.v_proj.weight"][:] = 0
    save_file(tensors, file)
    calibration = {"text": text, "tokens": 128, "sequence": 32}
    mixed = {"bits_per_weight": 5, "types": ["iq2_xs", "q6_k"], "tokens": 32}
    for scheme in ({"mixed": mixed}, {"mix": "IQ2_XS"}):
        out = tmp_path / next(iter(scheme))
        artifact, _ = export(checkpoint, out, ("gguf",), scheme=scheme, calibration=calibration)
        header = read_header(next((artifact / "gguf").glob("*.gguf")))
        types = {name: tensor.type for name, tensor in header.tensors.items()}
        assert "IQ2_XS" in types.values()
        assert types["token_embd.weight"] != "IQ2_XS"


def test_the_imatrix_command_says_what_it_misses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("source: {host: local, repo: a/b, path: builtin}\n")
    mine, out = str(tmp_path / "mine.yaml"), tmp_path / "im.gguf"
    assert cli.run(["imatrix", mine, "--out", str(out)]) == RecipeError.exit_code
    assert "expected calibration text" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("source: {host: local, repo: a/b, path: builtin}\ncalibration: {tokens: 64}\n")
    assert cli.run(["imatrix", mine, "--out", str(out), "--max-ram", "200MB"]) == PlanError.exit_code
    assert cli.run(["imatrix", mine, "--out", str(tmp_path / "none" / "im.gguf")]) == 8
    out.write_bytes(b"mine")
    assert cli.run(["imatrix", mine, "--out", str(out)]) == 8
    assert out.read_bytes() == b"mine"


def test_the_imatrix_command_measures_nothing_that_it_could_not_write_or_the_model_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imatrix, "statistics", lambda *_, **__: pytest.fail("measured"))
    mine, out = tmp_path / "mine.yaml", tmp_path / "im.gguf"
    mine.write_text("source: {host: local, repo: a/b, path: builtin}\ncalibration: {tokens: 64}\n")
    out.mkdir()
    assert cli.run(["imatrix", str(mine), "--out", str(out), "--force"]) == ArtifactError.exit_code
    assert "expected a file, found a directory" in capsys.readouterr().err
    out.rmdir()
    assert cli.run(["imatrix", str(mine), "--out", "/proc/im.gguf"]) == ArtifactError.exit_code
    assert "/proc/im.gguf: cannot be written" in capsys.readouterr().err
    mine.write_text("source: {host: local, repo: a/b, path: builtin}\ncalibration: {sequence: 2048}\n")
    assert cli.run(["imatrix", str(mine), "--out", str(out)]) == PlanError.exit_code
    assert f"{mine}:2:15: calibration.sequence: 2048 is more than the 1024 positions" in capsys.readouterr().err
    mine.write_text("source: {host: local, repo: a/b, path: builtin}\ncalibration: {text: none.txt}\n")
    assert cli.run(["imatrix", str(mine), "--out", str(out)]) == PlanError.exit_code
    assert "calibration: no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [mine]


def test_a_choice_in_words() -> None:
    plan = planned(bits_per_weight=5.6)
    counts = [sum(t.encoding.name == name for t in plan.tensors) for name in ("int8-32", "int4-32")]
    assert f"int8-32 for {counts[0]} tensors" in mixing.described(plan)
    assert f"int4-32 for {counts[1]} tensors" in mixing.described(plan)
    assert "attn.k of layer 0" in mixing.described(plan), "the rarer ones by name"
