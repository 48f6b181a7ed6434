"""LoRA adapters: merged as PEFT merges them, and refused by name where they would not be."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import write_checkpoint, write_safetensors
from edgeship import archs, cli
from edgeship.checkpoint import safetensors
from edgeship.checkpoint.adapters import merge, open_adapters
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.checkpoint.peft import CONFIG, WEIGHTS
from edgeship.errors import CheckpointError, PlanError
from edgeship_runtime.manifest import read_manifest
from exports import FLOAT32, export
from tolerances import MERGED_WEIGHTS

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, in float32: PEFT then rounds nothing that is not rounded here."""
    return write_checkpoint(tmp_path_factory.mktemp("base"), "qwen2", tied=False, dtype="F32")


def train(checkpoint: Path, out: Path, **config: Any) -> Path:
    """A PEFT adapter of `checkpoint` whose every part is random, saved to `out`."""
    peft, torch, model = loaded(checkpoint)
    made = peft.get_peft_model(model, peft.LoraConfig(lora_dropout=0.1, **config))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:  # `lora_B` starts at zero, and what was saved whole as the base has it
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.data = noise + (parameter.data if "magnitude" in name else 0)
    made.save_pretrained(out)
    return out


def loaded(checkpoint: Path) -> tuple[Any, Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # read when the hub client is imported
        peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'edgeship[test]'")
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(2)
        return peft, torch, AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


def merged_by_peft(checkpoint: Path, *adapters: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights that PEFT leaves, by their name in the checkpoint."""
    peft, _, model = loaded(checkpoint)
    for adapter in adapters:
        model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: value.numpy() for name, value in model.state_dict().items()}


def merged(checkpoint: Path, *adapters: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The same of ours, read in chunks of seven rows."""
    source = open_checkpoint(checkpoint)
    decoder = archs.read(source.config)
    tensors = merge(
        account(source, decoder.roles()), decoder.roles(), open_adapters([str(a) for a in adapters], decoder)
    )
    out = {}
    for tensor in tensors.values():
        starts = range(0, tensor.shape[0], 7)
        out[tensor.name] = np.concatenate([tensor.rows(a, min(a + 7, tensor.shape[0])) for a in starts])
    return out


def compare(checkpoint: Path, *adapters: Path) -> set[str]:
    """Every weight as PEFT has it; returns the names of those that the adapters changed."""
    plain, expected, found = merged(checkpoint), merged_by_peft(checkpoint, *adapters), merged(checkpoint, *adapters)
    for name, values in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=MERGED_WEIGHTS * scale, err_msg=name)
    return {name for name in found if not np.array_equal(found[name], plain[name])}


@pytest.mark.parity
@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ATTENTION},
        {"r": 8, "use_rslora": True, "target_modules": "all-linear"},
        {
            "r": 4,
            "target_modules": [*ATTENTION, "down_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
            "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 32, "down_proj": 3},
        },
        {"r": 4, "use_dora": True, "target_modules": [*ATTENTION, "gate_proj"]},
        {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]},
        {"r": 4, "lora_alpha": 5, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    ],
    ids=["plain", "rslora", "patterns", "dora", "modules_to_save", "embeddings"],
)
def test_a_merge_equals_pefts(checkpoint: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    changed = compare(checkpoint, train(checkpoint, tmp_path / "adapter", **config))
    kinds = {name.split(".")[-2] for name in changed}
    expected = {*config.get("modules_to_save", []), *config["target_modules"]}
    linear = {*ATTENTION, "gate_proj", "up_proj", "down_proj"}
    assert kinds == (linear if config["target_modules"] == "all-linear" else expected)


OTHERS: dict[str, dict[str, Any]] = {
    "qwen3 tied": {"model_type": "qwen3"},
    "qwen2 tied": {},
    "llama biases": {"model_type": "llama", "tied": False, "attention_bias": True},
}


@pytest.mark.parity
@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize(
    "config",
    [
        {"r": 8, "use_rslora": True, "target_modules": "all-linear"},
        {"r": 4, "use_dora": True, "target_modules": [*ATTENTION, "down_proj"], "rank_pattern": {r"0\..*k_proj": 2}},
        {"r": 4, "target_modules": ["embed_tokens", "o_proj"], "modules_to_save": ["post_attention_layernorm"]},
    ],
    ids=["rslora", "dora", "embeddings"],
)
def test_a_merge_into_another_model_equals_pefts(tmp_path: Path, model: str, config: dict[str, Any]) -> None:
    checkpoint = write_checkpoint(tmp_path / "base", dtype="F32", **OTHERS[model])
    assert compare(checkpoint, train(checkpoint, tmp_path / "adapter", **config))


@pytest.mark.parity
def test_numbers_for_yes_and_no_are_read_as_peft_reads_them(checkpoint: Path, tmp_path: Path) -> None:
    made = train(checkpoint, tmp_path / "adapter", r=8, use_rslora=True, target_modules=["q_proj"])
    file = made / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": 1, "use_dora": 0}))
    assert compare(checkpoint, made) == {f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2)}


@pytest.mark.parity
def test_two_adapters_one_after_the_other(checkpoint: Path, tmp_path: Path) -> None:
    first = train(checkpoint, tmp_path / "first", r=4, target_modules=["q_proj", "v_proj"])
    second = train(checkpoint, tmp_path / "second", r=2, lora_alpha=9, target_modules=["v_proj", "o_proj"])
    assert {name.split(".")[-2] for name in compare(checkpoint, first, second)} == {"q_proj", "v_proj", "o_proj"}


@pytest.mark.parity
def test_embeddings_that_are_the_head_too(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "tied", "qwen3", tied=True, dtype="F32")
    adapter = train(checkpoint, tmp_path / "adapter", r=4, target_modules=["embed_tokens", "k_proj"])
    compare(checkpoint, adapter)
    whole = train(checkpoint, tmp_path / "whole", r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    with pytest.raises(CheckpointError, match="ties the head to it"):
        merged(checkpoint, whole)


# without PEFT: what is refused, and what an export says


def adapter(out: Path, tensors: dict[str, tuple[int, ...]] | None = None, **config: Any) -> Path:
    """An adapter of q_proj in layer 0 of the tiny checkpoint, rank 4, all ones."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    shapes = tensors or {f"{name}.lora_A.weight": (4, 64), f"{name}.lora_B.weight": (64, 4)}
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / WEIGHTS, {n: ("F32", np.ones(s, np.float32)) for n, s in shapes.items()})
    (out / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}))
    return out


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return adapter(tmp_path / "adapter")


def test_ones(checkpoint: Path, made: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_allclose(merged(checkpoint, made)[name], merged(checkpoint)[name] + 8, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LOHA"}, 'expected LORA, found "LOHA"'),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"bias": "all"}, "bias: all"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: pissa_niter_4"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication: [[0, 2], [1, 2]]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens"),
        ({"of_tomorrow": "yes"}, "of_tomorrow: yes"),
        ({"r": 8}, "expected rank 8, found 4"),
        ({"lora_alpha": 0}, "lora_alpha: expected a number above zero"),
        ({"lora_alpha": "8"}, "lora_alpha: expected a number above zero"),
        ({"rank_pattern": {"(a+)+": 4}}, "expected a simpler pattern"),
        ({"rank_pattern": {"(a|aa)?" * 18: 4}}, "expected a simpler pattern"),
        ({"rank_pattern": {"(.|..)" * 20: 4}}, "expected a simpler pattern"),
        ({"rank_pattern": {".?.*.+.{2}.*x": 4}}, "expected a simpler pattern"),
        ({"rank_pattern": {"x" * 201: 4}}, "expected a simpler pattern"),
        ({"rank_pattern": {f".*.*.*.*x{i}": 4 for i in range(9)}}, "expected fewer patterns"),
        ({"rank_pattern": {"x{99999999999}": 4}}, "not a regular expression: the repetition number"),
        ({"rank_pattern": {"(?i)q_proj": 4}}, "not a regular expression"),
        ({"alpha_pattern": {"q_proj(": 4}}, "not a regular expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern: expected a mapping"),
        ({"use_dora": True}, "there is no magnitude"),
    ],
)
def test_options_that_would_make_another_model(
    checkpoint: Path, tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        merged(checkpoint, adapter(tmp_path / "a", **config))
    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "pattern",
    [
        r"model\.layers\.(0|1|2|3|4|5|6|7|8|9|10|11)\.(self_attn|mlp)\.(q_proj|v_proj|down_proj)",
        r".*layers\.[0-9]+\.self_attn.*",
        r"^model.layers.(?:0|1).self_attn.q_proj",
        r"[.(|)]?q_proj",
    ],
)
def test_patterns_that_people_write(checkpoint: Path, tmp_path: Path, pattern: str) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    patched = adapter(tmp_path / "a", r=2, rank_pattern={"": 7, "k_proj": 9, pattern: 4})
    np.testing.assert_allclose(merged(checkpoint, patched)[name], merged(checkpoint)[name] + 8, rtol=1e-6)


def test_patterns_are_not_matched_with_names_that_no_weight_has(checkpoint: Path, tmp_path: Path) -> None:
    name = "base_model.model." + "y" * 3000
    tensors = {f"{name}.lora_A.weight": (4, 64), f"{name}.lora_B.weight": (64, 4)}
    patterns = {f".*.*.*.*{i}": 4 for i in range(8)}
    with pytest.raises(CheckpointError, match="no weight of the model is called so"):
        merged(checkpoint, adapter(tmp_path / "a", tensors, rank_pattern=patterns))


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{Q}.lora_A.weight": (4, 64)}, "lora_B is missing"),
        ({f"{Q}.lora_B.weight": (64, 4)}, "lora_A is missing"),
        ({f"{Q}.lora_A.weight": (4, 64), f"{Q}.lora_B.weight": (64, 5)}, "expected A and B of"),
        ({f"{Q}.lora_A.weight": (4, 63), f"{Q}.lora_B.weight": (64, 4)}, "expected A and B of"),
        ({f"{Q}.lora_A.weight": (4,), f"{Q}.lora_B.weight": (64, 4)}, "expected matrices"),
        ({f"{Q}.lora_E.weight": (4, 64)}, "a part of LoRA that is not known"),
        ({"layers.0.lora_A.weight": (4, 64)}, "expected a name that starts with base_model.model."),
        ({"base_model.model.model.layers.9.mlp.up_proj.weight": (96, 64)}, "no weight of the model is called so"),
        ({"base_model.model.lm_head.weight": (321, 64)}, "was the vocabulary extended?"),
        ({f"{Q}.lora_magnitude_vector": (64,)}, "a magnitude without lora_A and lora_B"),
        ({f"{Q}.lora_embedding_A": (4, 64), f"{Q}.lora_embedding_B": (64, 4)}, "LoRA of another kind"),
    ],
)
def test_tensors_that_do_not_fit(checkpoint: Path, tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        merged(checkpoint, adapter(tmp_path / "a", tensors))
    assert says in caught.value.message


def test_files_that_are_not_there(checkpoint: Path, made: Path, tmp_path: Path) -> None:
    for directory, says in ((tmp_path / "none", "no adapter_config.json"), (tmp_path / ("x" * 300), "adapter")):
        with pytest.raises(CheckpointError, match=says):
            merged(checkpoint, directory)
    (made / WEIGHTS).rename(made / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        merged(checkpoint, made)


def test_an_export_records_what_it_merged(checkpoint: Path, made: Path, tmp_path: Path) -> None:
    with_adapter = export(checkpoint, tmp_path / "with", scheme=FLOAT32, adapters=[str(made)])
    without = export(checkpoint, tmp_path / "without", scheme=FLOAT32)
    recorded = read_manifest(with_adapter).recipe["adapters"]
    assert [each["name"] for each in recorded] == ["adapter"]
    assert len(recorded[0]["sha256"]) == 64
    assert str(tmp_path) not in (with_adapter / "edgeship.json").read_text()
    assert (with_adapter / "model.onnx.data").read_bytes() != (without / "model.onnx.data").read_bytes()
    shutil.rmtree(made)
    with pytest.raises(PlanError, match="adapters: no such directory"):
        export(checkpoint, tmp_path / "gone", adapters=[str(made)])


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_an_adapter_that_holds_no_numbers_is_named(checkpoint: Path, tmp_path: Path, algorithm: str) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    damaged = adapter(tmp_path / "damaged")
    values = {"A": np.ones((4, 64), np.float32), "B": np.full((64, 4), np.nan, np.float32)}
    write_safetensors(damaged / WEIGHTS, {f"{name}.lora_{k}.weight": ("F32", v) for k, v in values.items()})
    (tmp_path / "words.txt").write_text("one two three four five six seven " * 40)
    calibration = {"text": str(tmp_path / "words.txt"), "tokens": 64, "sequence": 32} if algorithm == "gptq" else None
    scheme = {"body": "int4", "embeddings": "int8", "head": "int8", "algorithm": algorithm}
    with pytest.raises(CheckpointError, match=r"q_proj\.weight.*expected finite") as caught:
        export(checkpoint, tmp_path / "out", scheme=scheme, calibration=calibration, adapters=[str(damaged)])
    assert "with the adapter" in caught.value.message


def test_of_an_adapter_as_wide_as_the_vocabulary_only_the_rows_asked_for_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "wide", vocab=5000, dtype="F32")
    name = "base_model.model.model.embed_tokens"
    made = adapter(tmp_path / "a", {f"{name}.lora_embedding_A": (4, 5000), f"{name}.lora_embedding_B": (64, 4)})
    source = open_checkpoint(checkpoint)
    decoder = archs.read(source.config)
    tensors = merge(account(source, decoder.roles()), decoder.roles(), open_adapters([str(made)], decoder))
    read, sizes = safetensors._File.read_into, list[int]()

    def counted(self: Any, buffer: memoryview, offset: int) -> int:
        sizes.append(len(buffer))
        return read(self, buffer, offset)

    monkeypatch.setattr(safetensors._File, "read_into", counted)
    tensors["embed.weight"].rows(7, 9)
    assert sum(sizes) == 4 * (2 * 64 + 4 * 2 + 64 * 4)  # of the table, of A, and B


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_fuzz_damaged_adapters(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    home = tmp_path_factory.getbasetemp() / "fuzz"
    adapter(home, rank_pattern={"q_proj": 4}, use_rslora=True)
    file = home / data.draw(st.sampled_from([CONFIG, WEIGHTS]))
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, min(len(raw), 400) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    with contextlib.suppress(CheckpointError):  # nothing else may come
        merged(checkpoint, home)


def test_a_plan_says_where_an_adapter_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_checkpoint(tmp_path / "tied", tied=True)
    file = tmp_path / "a.yaml"
    file.write_text(
        f"source: {{host: local, repo: me/tiny, path: {checkpoint}}}\nscheme: {{body: int4}}\ncontext: 128\n"
        "adapters: [mine]\n"
    )
    name = "base_model.model.model.layers.9.self_attn.q_proj"
    adapter(tmp_path / "mine", {f"{name}.lora_A.weight": (4, 64), f"{name}.lora_B.weight": (64, 4)})
    assert cli.run(["plan", str(file)]) == CheckpointError.exit_code
    said = capsys.readouterr().err
    assert "layers.9.self_attn.q_proj.weight: no weight of the model is called so\n" in said
