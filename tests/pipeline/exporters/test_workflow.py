"""What the workers find wrong with a workflow of Olive's, as far as that shows without Olive."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from edgeship.exporters.environment import HERE
from edgeship.olive_paths import of_data, of_pass
from edgeship.recipe_file import read_recipe


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the workers as they import each other."""
    monkeypatch.syspath_prepend(str(HERE / "workers"))
    return importlib.import_module


class Package:
    """Of Olive's package: what passes say that they take and make."""

    SAID: ClassVar[dict[str, tuple[str | None, str | None]]] = {
        "Gptq": ("HfModelHandler", "HfModelHandler"),
        "Rtn": ("HfModelHandler", "HfModelHandler"),
        "OnnxConversion": ("Union[HfModelHandler, PyTorchModelHandler]", "ONNXModelHandler"),
        "OnnxBlockWiseRtnQuantization": ("ONNXModelHandler", "ONNXModelHandler"),
        "OnnxKQuantQuantization": ("ONNXModelHandler", "ONNXModelHandler"),
        "SplitModel": ("ONNXModelHandler", "CompositeModelHandler"),
        "SliceGPT": ("HfModelHandler", "PyTorchModelHandler"),
        "OpenVINOIoUpdate": ("OpenVINOModelHandler", "OpenVINOModelHandler"),
        "Silent": (None, None),
        "Any": ("OliveModelHandler", "OliveModelHandler"),
    }

    def import_pass_module(self, name: str) -> Any:
        takes, makes = self.SAID[name]
        said = {} if takes is None else {"model": takes, "return": makes}
        return SimpleNamespace(_run_for_config=SimpleNamespace(__annotations__=said))


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (["ModelBuilder"], None),
        (["Gptq", "ModelBuilder"], None),
        (["Gptq", "Rtn", "ModelBuilder", "OnnxKQuantQuantization"], None),
        (["Silent", "ModelBuilder"], None),
        (["Any", "ModelBuilder", "Silent"], None),
        (["SliceGPT", "ModelBuilder"], None),
        (["ModelBuilder", "Gptq"], r"passes\[1\] \(Gptq\): it takes a Hugging Face .* put it before passes\[0\]"),
        (["ModelBuilder", "ModelBuilder"], r"passes\[1\] \(ModelBuilder\): it takes a Hugging Face model"),
        (["OnnxKQuantQuantization"], "takes an ONNX model, and the checkpoint is a Hugging Face .* put ModelBuilder"),
        (["ModelBuilder", "OpenVINOIoUpdate"], "it takes Olive's OpenVINOModel"),
        (["Gptq", "Gptq", "ModelBuilder"], r"it takes a float model, and passes\[0\] \(Gptq\) quantizes"),
        (["Gptq", {"type": "ModelBuilder", "precision": "fp32"}], r"is for a float model, and passes\[0\] .* say int4"),
        (["Gptq", {"type": "ModelBuilder", "precision": "int4"}], None),
        (["Gptq"], "ends with a Hugging Face model, .*let ModelBuilder follow"),
        (["ModelBuilder", "SplitModel"], "ends with several models at once"),
        (["OnnxConversion"], r"nothing writes genai_config\.json"),
    ],
)
def test_passes_that_cannot_follow_each_other(worker: Any, passes: list[Any], said: str | None) -> None:
    order = worker("workflow_order")
    found = order.check_order(Package(), [{"type": each} if isinstance(each, str) else each for each in passes])
    if said is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.search(said, found[0]), found


def test_the_logits_keep_their_name(worker: Any) -> None:
    order = worker("workflow_order")
    builder, rtn = {"type": "ModelBuilder", "precision": "fp32"}, {"type": "OnnxBlockWiseRtnQuantization"}
    (found,) = order.check_order(Package(), [builder, rtn])
    assert "add nodes_to_exclude: [/lm_head/MatMul]" in found
    assert order.check_order(Package(), [builder, rtn | {"nodes_to_exclude": ["/lm_head/MatMul"]}]) == []
    assert order.check_order(Package(), [builder | {"precision": "int4"}, rtn]) == []


def test_the_builder_of_metadata_wants_onnx(worker: Any) -> None:
    order = worker("workflow_order")
    builder = {"type": "ModelBuilder", "metadata_only": True}
    assert order.check_order(Package(), [{"type": "OnnxConversion"}, builder]) == []
    (found,) = order.check_order(Package(), [builder])
    assert "leave metadata_only out" in found


def arrays(directory: Path) -> dict[str, Any]:
    """Params of `raw_dataset` for two inputs of 8 tokens."""
    for name in ("input_ids", "attention_mask"):
        (directory / name).mkdir()
        np.ones(8, "<i8").tofile(directory / name / "0.bin")
    names = ["input_ids", "attention_mask"]
    return {
        "data_dir": str(directory),
        "input_names": names,
        "input_shapes": [[8], [8]],
        "input_types": ["int64", "int64"],
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"data_dir": "/nowhere"}, "data_dir: no such directory: /nowhere"),
        ({"data_dir": 3}, "data_dir: no such directory: 3"),
        ({"input_names": "input_ids"}, "input_names 'input_ids': expected a list of names"),
        ({"input_shapes": [[8]]}, "input_shapes: expected one for each of the 2 input_names, found 1"),
        ({"input_shapes": [[8], ["b"]]}, "expected a list of lists of sizes"),
        ({"input_shapes": [[8], [4]]}, r"expected 32 bytes for \[4\] of int64, found 64"),
        ({"input_types": ["int65", "int64"]}, "expected a list of numpy's types"),
        ({"input_types": None}, r"expected 32 bytes for \[8\] of float32, found 64"),
        ({"input_dirs": ["input_ids", "mask"]}, "found none: .*mask"),
        ({"input_suffix": ".raw"}, "expected files in .*input_ids, found none"),
        ({"input_order_file": "order.txt"}, "input_order_file: no such file"),
    ],
)
def test_arrays_that_are_not_there(worker: Any, tmp_path: Path, change: dict[str, Any], said: str | None) -> None:
    params = arrays(tmp_path) | change
    findings = worker("workflow_words").Findings()
    worker("workflow_files").check_raw(params, findings)
    if said is None:
        assert findings.problems == []
    else:
        (found,) = findings.problems
        assert re.search(said, found), found


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"data_name": "wikitext"}, "'wikitext' would be downloaded, .*data_name: json"),
        ({"data_name": "json"}, "expected data_files for data_name 'json', found none"),
        ({"data_name": "json", "data_files": "/nope.json"}, "no such file: /nope.json"),
        ({"data_name": "json", "data_files": ["https://a.org/b"]}, "'https://a.org/b' would be downloaded"),
        ({"data_name": "json", "data_files": 3}, "data_files 3: expected a path"),
        ({"data_name": "json", "data_dir": "/nope"}, "data_dir: no such directory: /nope"),
        (
            {"data_name": "json", "data_files": __file__, "split": "validation"},
            "'validation' is not .* say split: train",
        ),
        ({"data_name": "json", "data_files": {"a": __file__}, "split": "train[:9]"}, "'train' is not .* say split: a"),
    ],
)
def test_files_that_are_not_there(worker: Any, params: dict[str, Any], said: str) -> None:
    findings = worker("workflow_words").Findings()
    worker("workflow_files").check_files(params, findings)
    assert re.search(said, findings.problems[0]), findings.problems


def test_an_empty_file_is_said_before_its_reader_says_it(worker: Any, tmp_path: Path) -> None:
    findings = worker("workflow_words").Findings()
    (tmp_path / "a.txt").touch()
    worker("workflow_files").check_files({"data_name": "text", "data_files": str(tmp_path / "a.txt")}, findings)
    assert "expected some text, found an empty file" in findings.problems[0]


def test_a_missing_package_comes_with_the_command_that_installs_it(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = worker("workflow_words")
    monkeypatch.setattr(words.metadata, "version", lambda name: "1.0+cpu")
    findings = words.Findings()
    assert findings.lack("peft", "scipy>=1") == "it needs peft, scipy, which the environment does not hold"
    findings.lack("peft")
    assert findings.command.startswith(f"{sys.executable} -m pip install peft 'scipy>=1' huggingface_hub==1.0 ")
    assert findings.command.endswith(" torch==1.0 transformers==1.0")


def test_errors_of_others_become_lines(worker: Any) -> None:
    words = worker("workflow_words")
    assert words.spoken(KeyError("x")) == ["there is no 'x'"]
    assert words.spoken(ValueError("two\nlines")) == ["two lines"]
    assert words.spoken(AssertionError()) == ["it fails, and says nothing but AssertionError"]
    assert words.unknown("option", "bist", ["bits", "group"]) == "no option 'bist'; did you mean 'bits'?"
    assert words.unknown("option", 3, ["bits", "group"]) == "no option 3; known: bits, group"


def test_paths_are_relative_to_the_recipe_and_leave_no_trace_in_a_manifest(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "source: {repo: me/mine}\nexporter: olive\nolive:\n"
        "  passes: [{type: Gptq, data_config: {name: b, load_dataset_config: {data_files: {a: [x.txt, '*.json']}}}}]\n"
        "  data_configs:\n"
        "  - {name: a, user_script: a.py, load_dataset_config: {params: {data_dir: data, data_files: in/data}}}\n"
    )
    found = read_recipe(recipe)
    assert found.olive is not None
    (data,), (given,) = found.olive.data_configs, found.olive.passes
    assert data["user_script"] == str(tmp_path / "a.py")
    assert data["load_dataset_config"]["params"] == {"data_dir": str(tmp_path / "data"), "data_files": "in/data"}
    files = {"a": [str(tmp_path / "x.txt"), str(tmp_path / "*.json")]}
    assert given["data_config"]["load_dataset_config"] == {"data_files": files}
    assert str(tmp_path) not in str(found.resolved())
    assert found.resolved()["olive"]["data_configs"][0]["user_script"] == "a.py"


def test_what_is_no_path_stays() -> None:
    odd: dict[str, Any] = {"load_dataset_config": [1], "user_script": None}
    assert of_data(odd, str.upper) == odd
    addresses = {"load_dataset_config": {"data_files": "https://a.org/b", "params": None}}
    assert of_data(addresses, str.upper) == addresses
    assert of_pass({"type": "a", "bits": 4, "data_config": "b"}, str.upper) == {
        "type": "a",
        "bits": 4,
        "data_config": "b",
    }
