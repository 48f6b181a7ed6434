"""What Olive itself is asked before a workflow starts, where `edgeship install-exporter olive` installed it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeship
from edgeship import exporters
from edgeship.errors import ExporterError
from edgeship.exporters import environment as environments
from edgeship.exporters.environment import find
from edgeship.progress import Silent
from edgeship.recipe_file import read_recipe

pytestmark = [
    pytest.mark.exporter,
    pytest.mark.timeout(900),  # each imports torch
    pytest.mark.skipif(not find("olive").ready, reason="olive is not installed here: edgeship install-exporter olive"),
]

GPTQ = {"type": "Gptq", "bits": 4, "group_size": 32, "sym": True, "data_config": "good"}
BUILDER = {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32}
FLOAT = {"type": "ModelBuilder", "precision": "fp32"}
MIXED = {"type": "SelectiveMixedPrecision", "algorithm": "k_quant_mixed"}


def refusals(passes: list[dict[str, Any]], data: list[dict[str, Any]] | None = None) -> tuple[list[str], str]:
    """What the worker says of a workflow, line by line, and its hint; nothing where it takes it."""
    try:
        environments.run(find("olive"), "workflow", {"passes": passes, "data_configs": data or []}, Silent())
    except ExporterError as error:
        return [line.removeprefix("  - ") for line in error.message.splitlines()[1:]], error.hint
    return [], ""


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    """A data set of token ids in local files."""
    for name in ("input_ids", "attention_mask"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (np.arange(64) % 2 + 300).astype("<i8").tofile(tmp_path / "data" / name / "0.bin")
    return {
        "type": "raw_dataset",
        "data_dir": str(tmp_path / "data"),
        "input_names": ["input_ids", "attention_mask"],
        "input_shapes": [[64], [64]],
        "input_types": ["int64", "int64"],
    }


def test_data_sets_are_read_before_a_pass_starts(raw: dict[str, Any]) -> None:
    hub = {"type": "HuggingfaceContainer"}
    here = {"data_name": "json", "data_files": __file__, "split": "train"}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"load_datset_config": {}}, "no key 'load_datset_config'; did you mean 'load_dataset_config'"),
        ({"type": "RawContainer"}, "no type 'RawContainer'; did you mean 'RawDataContainer'"),
        ({"load_dataset_config": {"type": "raw_datset"}}, "no type 'raw_datset'; did you mean 'raw_dataset'"),
        ({"load_dataset_config": raw | {"input_shape": []}}, "no param 'input_shape'; did you mean 'input_shapes'"),
        ({"load_dataset_config": {"type": "raw_dataset"}}, "expected a param 'data_dir', found none"),
        ({"load_dataset_config": raw | {"input_types": ["float64"] * 2}}, "input_ids are float64; expected whole"),
        ({"load_dataset_config": raw, "type": "RawDataContainer"}, r"input_ids of a batch are \[64\]"),
        ({"load_dataset_config": raw, "dataloader_config": {"shufle": True}}, "'shufle'; did you mean 'shuffle'"),
        ({"load_dataset_config": raw, "dataloader_config": {"batch_size": 0}}, "batch_size 0: expected 1 or more"),
        (hub | {"load_dataset_config": here, "pre_process_data_config": {"max_seq_len": -1}}, "max_seq_len -1: expec"),
        (hub | {"load_dataset_config": here, "pre_process_data_config": {"max_samples": 0}}, "max_samples 0: expected"),
        (hub | {"load_dataset_config": here, "pre_process_data_config": {"max_seq_len": 10**8}}, "at most 1048576"),
        ({"load_dataset_config": raw, "pre_process_data_config": [1]}, "expected a mapping of `type` and `params`"),
        ({"load_dataset_config": {"type": "dummy_dataset", "input_shapes": "x"}}, "input_shapes 'x': expected a list"),
        (hub | {"load_dataset_config": {"data_name": "wikitext"}}, "'wikitext' would be downloaded, .*data_name: json"),
        (hub | {"load_dataset_config": here, "pre_process_data_config": {"text_col": "a"}}, "did you mean 'text_cols'"),
        (hub | {"load_dataset_config": here, "pre_process_data_config": {"stride": "b"}}, "stride: Input should be"),
        ({"load_dataset_config": raw, "dataloader_config": {"num_workers": "a"}}, "num_workers 'a': Input should be"),
    ]
    configs = [{"name": f"bad{place}"} | config for place, (config, _) in enumerate(bad)]
    lines, _ = refusals([GPTQ, BUILDER], [*configs, {"name": "good", "load_dataset_config": raw}])
    for place, (_, said) in enumerate(bad):
        own = [line for line in lines if line.startswith(f"data_configs[{place}] (bad{place}): ")]
        assert any(re.search(said, line) for line in own), (said, own)
    assert all(line.startswith("data_configs[") for line in lines)
    assert not [line for line in lines if "(good)" in line]


def test_token_ids_are_those_of_the_checkpoint(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 300}))
    data = [{"name": "good", "load_dataset_config": raw}]
    request = {"passes": [GPTQ, BUILDER], "data_configs": data, "checkpoint": str(tmp_path), "out": "a", "cache": "b"}
    with pytest.raises(ExporterError, match=r"expected 0 to 299, .* found 300 to 301"):
        environments.run(find("olive"), "workflow", request, Silent())


def test_what_the_checkpoint_has_no_room_for(raw: dict[str, Any], tmp_path: Path) -> None:
    config = {"vocab_size": 400, "hidden_size": 96, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "a.txt").write_text("The cat sat on the mat.\n")
    here = {"data_name": "text", "data_files": str(tmp_path / "a.txt"), "split": "train"}
    long = {"name": "good", "type": "HuggingfaceContainer", "load_dataset_config": here}
    long |= {"pre_process_data_config": {"text_cols": "text", "max_seq_len": 65}}
    data = [long, {"name": "raw", "load_dataset_config": raw}]
    gptq = [GPTQ | {"group_size": 64}, BUILDER]
    request = {"passes": gptq, "data_configs": data, "checkpoint": str(tmp_path), "out": "a", "cache": "b"}
    with pytest.raises(ExporterError) as caught:
        environments.run(find("olive"), "workflow", request, Silent())
    assert "max_seq_len 65: expected at most 64, the model's positions" in caught.value.message
    assert "group_size 64: the checkpoint's rows of 96 weights do not divide into it" in caught.value.message


def test_groups_that_onnx_cannot_have(raw: dict[str, Any]) -> None:
    data = [{"name": "good", "load_dataset_config": raw}]
    for size, refused in ((48, True), (8, True), (64, False), (-1, False)):
        lines, _ = refusals([GPTQ | {"group_size": size}, BUILDER], data)
        assert [line for line in lines if "a power of two from 16 on" in line] == lines
        assert bool(lines) is refused


def test_names_of_data_sets(raw: dict[str, Any]) -> None:
    configs = [{"name": "good"}, {"name": "good"}, {}, {"name": "a b"}, {"name": 3}]
    configs = [each | {"load_dataset_config": raw} for each in configs]
    configs += [{"name": "bare"}, {"name": "twice", "load_dataset_config": raw | {"params": {"data_dir": "a"}}}]
    configs += [{"name": "task", "load_dataset_config": raw, "pre_process_data_config": {"task": "text-generation"}}]
    lines, _ = refusals([GPTQ, BUILDER], configs)
    said = ["as well", "found none", "found 'a b'", "found 3", "a type that reads data", "'data_dir' is said twice"]
    said.append("task goes with type: HuggingfaceContainer")
    assert len(lines) == len(said)
    assert all(word in line for word, line in zip(said, lines, strict=True))


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ([BUILDER, GPTQ], r"passes\[1\] \(Gptq\): it takes a Hugging Face model"),
        ([{"type": "OnnxKQuantQuantization"}], "it takes an ONNX model, and the checkpoint"),
        ([GPTQ], "ends with a Hugging Face model"),
        ([{"type": "OnnxConversion"}], "genai_config"),
        ([GPTQ, GPTQ, BUILDER], "takes a float model"),
        ([MIXED, GPTQ, BUILDER], None),
        ([MIXED, {"type": "KQuant", "bits": 4}, {"type": "Rtn", "bits": 8, "embeds": True}, BUILDER], None),
        ([{"type": "QuaRot"}, FLOAT, {"type": "OnnxKQuantQuantization"}], None),
        ([FLOAT, {"type": "OnnxBlockWiseRtnQuantization"}], r"it renames the logits.* nodes_to_exclude: \[/lm_head"),
        ([FLOAT, {"type": "OnnxHqqQuantization", "nodes_to_exclude": ["/lm_head/MatMul"]}], None),
    ],
)
def test_the_order_of_passes(raw: dict[str, Any], passes: list[dict[str, Any]], said: str | None) -> None:
    lines, _ = refusals(passes, [{"name": "good", "load_dataset_config": raw}])
    assert len(lines) == (said is not None), lines
    assert said is None or re.search(said, lines[0])


def test_every_pass_is_taken_or_refused_in_words() -> None:
    (line,), _ = refusals([{"type": "?"}])
    names = line.partition("known: ")[2].split(", ")
    assert {"ModelBuilder", "Gptq", "AutoAWQQuantizer", "KQuant", "OnnxKQuantQuantization"} <= set(names)
    lines, hint = refusals([{"type": name} for name in names])
    for line in lines:
        assert re.match(r"passes\[\d+\] \(\w+\): ", line), line
        assert not re.search(r"object has no attribute|NoneType|Error\b|Traceback", line), line
    said = {re.sub(r".*\((\w+)\).*", r"\1", line): line for line in lines}
    assert "it cannot be had here: it needs autoawq" in said["AutoAWQQuantizer"]
    assert "it cannot be had here: it needs numpy<2.0" in said["OpenVINOConversion"]
    assert "it needs psutil, which the environment does not hold" in said["OrtSessionParamsTuning"]
    assert "downloads a data set of its own" in said["SpinQuant"]
    assert "'algorithm', one of k_quant_down" in said["SelectiveMixedPrecision"]
    assert hint.startswith(f"{find('olive').python} -m pip install ")
    assert "psutil" in hint
    assert not {"Rtn", "KQuant", "OnnxKQuantQuantization", "OnnxBlockWiseRtnQuantization", "QuaRot"} & set(said)


def test_surgeries_are_those_that_there_are() -> None:
    surgeries = [{"surgeon": "Nope"}, {"surgeon": "RenameInputs", "old_nams": ["a"], "new_names": ["b"]}]
    lines, _ = refusals([BUILDER, {"type": "GraphSurgeries", "surgeries": surgeries}])
    said = ["no surgeon 'Nope'", "expected a param 'old_names'", "no param 'old_nams'; did you mean 'old_names'"]
    assert len(lines) == len(said), lines
    assert all(word in line for word, line in zip(said, lines, strict=True))


def test_options_that_only_fail_on_the_cpu_are_refused() -> None:
    lines, _ = refusals([{"type": "ModelBuilder", "precision": "fp16"}])
    assert lines == ["passes[0] (ModelBuilder): FP16 is not supported on CPU"]


def test_options_that_the_builder_would_ignore_are_refused() -> None:
    extra = {"num_hiden_layers": 1, "use_qdq": "false", "hf_token": "hf_x", "num_hidden_layers": 1, "hf_remote": False}
    lines, _ = refusals([BUILDER | {"int4_algo_config": "k_qant", "exclude_lm_head": True, "extra_options": extra}])
    said = [line.removeprefix("passes[0] (ModelBuilder): ") for line in lines]
    assert said[0] == "extra_options: no option 'num_hiden_layers'; did you mean 'num_hidden_layers'?"
    assert said[1].startswith("exclude_lm_head: the graph would give no logits")
    assert said[2].startswith("hf_token: ")
    assert said[3] == "extra_options: use_qdq 'false': expected true or false"
    assert said[4] == "no int4_algo_config 'k_qant'; did you mean 'k_quant'?"
    assert len(said) == 5
    for algorithm in ("default", "rtn_last", "k_quant_mixed"):
        assert (
            refusals([BUILDER | {"int4_algo_config": algorithm, "extra_options": {"shared_embeddings": True}}])[0] == []
        )


def test_a_refusal_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "source: {repo: me/mine}\nexporter: olive\nolive: "
        + json.dumps({"passes": [GPTQ, BUILDER], "data_configs": [{"name": "good", "load_dataset_config": {"a": 1}}]})
    )
    tiny = Path(edgeship.__file__).parent / "tiny" / "checkpoint"
    recipe = read_recipe(tmp_path / "mine.yaml")
    with pytest.raises(ExporterError, match=r"data_configs\[0\] \(good\)"):
        exporters.export(recipe, checkpoint=tiny, out=tmp_path / "out", force=False, progress=Silent())
    assert not (tmp_path / "out").exists()
