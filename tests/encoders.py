"""Encoders: checkpoints that transformers makes, and toy ONNX artifacts that numpy can follow."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgeship_runtime.encoder import GOLDEN, Pooling, Scores
from edgeship_runtime.manifest import collect_files, parse_manifest, write_manifest
from manifests import VALID

WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "road", "house", "red", "blue", "is", "not", "and", "we"],
)
SIZE, LENGTH = 8, 12
LABELS = ("bad", "fair", "good")
TEXTS = ["the cat sat", "a dog", "the red house is not blue and we sat on a mat", "", "zebra"]
EMBED, TEXT, TOKENS = "feature-extraction", "text-classification", "token-classification"

Answer = Callable[[Sequence[int]], NDArray[np.float32]]


def write_words(directory: Path, *, cased: bool = False) -> Tokenizer:
    """A tokenizer of whole words, in any case unless `cased`, with BERT's tokens around a text."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    if not cased:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


def write_graph(
    path: Path,
    task: str,
    *,
    labels: int = len(LABELS),
    extra_input: bool = False,
    dynamic: bool = False,
    positions: bool = False,
) -> Answer:
    """A graph that looks vectors up and, to classify, projects them; returns the same in numpy for one text.

    With `positions` it takes the tokens' numbers too, and adds them. A `dynamic` one rounds vectors to 8 bits, over the
    range of all that is run together; numpy does not.
    """
    rng = np.random.default_rng(7)
    table = rng.standard_normal((len(WORDS), SIZE)).astype(np.float32)
    project = rng.standard_normal((SIZE, labels)).astype(np.float32)
    node = helper.make_node
    nodes = [node("Gather", ["table", "input_ids"], ["looked_up" if positions else "rows"])]
    if positions:
        nodes += [
            node("Cast", ["position_ids"], ["places"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["places", "last"], ["places_of_rows"]),
            node("Add", ["looked_up", "places_of_rows"], ["rows"]),
        ]
    shape: list[Any] = ["n", "t", SIZE]
    if task == "feature-extraction":
        rounded = [
            node("DynamicQuantizeLinear", ["rows"], ["codes", "scale", "zero"]),
            node("DequantizeLinear", ["codes", "scale", "zero"], ["out"]),
        ]
        nodes += rounded if dynamic else [node("Identity", ["rows"], ["out"])]
    elif task == "token-classification":
        nodes.append(node("MatMul", ["rows", "project"], ["out"]))
        shape = ["n", "t", labels]
    else:  # the sum over the text alone: what padding adds would show
        nodes += [
            node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            node("Unsqueeze", ["mask", "last"], ["column"]),
            node("Mul", ["rows", "column"], ["kept"]),
            node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
            node("MatMul", ["sum", "project"], ["out"]),
        ]
        shape = ["n", labels]
    names = ["input_ids", "attention_mask", *(["pixel_values"] if extra_input else [])]
    names += ["position_ids"] if positions else []
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in names]
    values = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(project, "project"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([-1], np.int64), "last"),
    ]
    graph = helper.make_graph(
        nodes, "toy", inputs, [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)], values
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)

    def answer(ids: Sequence[int]) -> NDArray[np.float32]:
        rows = table[list(ids)] + (np.arange(len(ids), dtype=np.float32)[:, None] if positions else 0)
        if task == "feature-extraction":
            return np.asarray(rows)
        return np.asarray(rows @ project if task == "token-classification" else rows.sum(axis=0) @ project)

    return answer


def write_pair(directory: Path) -> Callable[[Sequence[int], Sequence[int]], NDArray[np.float32]]:
    """Graphs of an encoder and its decoder that look vectors up; returns the logits of an answer to a text in numpy."""
    rng = np.random.default_rng(8)
    tables = [rng.standard_normal((len(WORDS), SIZE)).astype(np.float32) for _ in range(2)]
    project = rng.standard_normal((SIZE, len(WORDS))).astype(np.float32)
    node, value, ids, floats = helper.make_node, helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    encoder = helper.make_graph(
        [node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "encoder",
        [value("input_ids", ids, ["n", "t"]), value("attention_mask", ids, ["n", "t"])],
        [value("last_hidden_state", floats, ["n", "t", SIZE])],
        [numpy_helper.from_array(tables[0], "table")],
    )
    decoder = helper.make_graph(
        [
            node("Gather", ["table", "input_ids"], ["rows"]),
            node("ReduceMean", ["encoder_hidden_states"], ["text"], axes=[1], keepdims=1),
            node("Add", ["rows", "text"], ["sum"]),
            node("MatMul", ["sum", "project"], ["logits"]),
        ],
        "decoder",
        [value("input_ids", ids, ["n", "d"]), value("encoder_hidden_states", floats, ["n", "t", SIZE])],
        [value("logits", floats, ["n", "d", len(WORDS)])],
        [numpy_helper.from_array(tables[1], "table"), numpy_helper.from_array(project, "project")],
    )
    for name, graph in (("encoder_model.onnx", encoder), ("decoder_model.onnx", decoder)):
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(made, directory / name)

    def logits(text: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray((tables[1][list(answer)] + tables[0][list(text)].mean(axis=0)) @ project)

    return logits


def modules(*, normalize: bool = True, pooling: str = "mean_tokens", more: str = "") -> dict[str, Any]:
    """sentence-transformers' module files by name."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else []), *([more] if more else [])]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
            for i, kind in enumerate(kinds)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": SIZE,
            **{f"pooling_mode_{each}": each == pooling for each in ("cls_token", "mean_tokens", "lasttoken")},
        },
    }


def write_files(directory: Path, files: dict[str, Any]) -> None:
    """JSON values under their names."""
    for name, value in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(value), encoding="utf-8")


def golden(
    cases: Sequence[tuple[str, Sequence[int], NDArray[np.float32]]], least: float = 0.99, *, logits: bool = False
) -> dict[str, Any]:
    """The value of `acceptance/encoder.json`: of vectors or scores, or of a classifier's logits."""
    return {
        "schema": 2 if logits else 1,
        "made_with": "numpy",
        "least_cosine": least,
        "cases": [
            {
                "text": text,
                "token_ids": list(ids),
                "values": base64.b64encode(values.ravel().astype("<f4" if logits else "<f2").tobytes()).decode(),
            }
            for text, ids, values in cases
        ],
    }


def seal(directory: Path, task: str, length: int = LENGTH) -> Path:
    """Write the manifest over all that lies in the directory."""
    facts = {
        "type": "bert",
        "task": task,
        "vocab_size": len(WORDS),
        "layers": 1,
        "kv_heads": 1,
        "head_dim": SIZE,
        "hidden_size": SIZE,
        "context_length": length,
        "default_context": length,
        "bos_token_id": None,
        "eos_token_ids": [],
        "pad_token_id": 0,
        "logits": "all",
    }
    (directory / "edgeship.json").unlink(missing_ok=True)
    files = {name: {"size": e.size, "sha256": e.sha256} for name, e in collect_files(directory).items()}
    graph = onnx.load(directory / "model.onnx").graph
    ops = sorted({f"ai.onnx.{node.op_type}" for node in graph.node})
    value = VALID | {"name": "toy-encoder", "model": facts, "ops": ops, "files": files}
    write_manifest(directory, parse_manifest(json.dumps(value).encode()))
    return directory


def write_encoder(directory: Path, task: str, files: dict[str, Any] | None = None, **graph: Any) -> tuple[Path, Answer]:
    """A sealed toy artifact for a task, with `files` in place of what belongs beside the graph."""
    directory.mkdir(parents=True)
    write_words(directory)
    answer = write_graph(directory / "model.onnx", task, **graph)
    labels = {"id2label": {str(i): label for i, label in enumerate(LABELS)}}
    write_files(directory, {"config.json": labels} | (modules() if files is None else files))
    return seal(directory, task), answer


def write_rewriter(directory: Path, kind: str) -> Any:
    """A small "t5" or "bart" with random weights as transformers saves it; returns the model."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0 if kind == "t5" else 3}
    model: Any
    if kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **special)
        )
    else:
        sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in _BART.items()}
        config = {"d_model": 32, "max_position_embeddings": 64, "init_std": 0.5, "bos_token_id": 2} | sides | special
        model = BartForConditionalGeneration(BartConfig(vocab_size=len(WORDS), forced_eos_token_id=3, **config))
    directory.mkdir(parents=True)
    model.eval().save_pretrained(directory, safe_serialization=True)
    write_words(directory)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 48})
    )
    return model


_BART = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}


def write_bert(
    directory: Path,
    task: str = "feature-extraction",
    *,
    pooling: bool = True,
    labels: int = 3,
    problem: str | None = None,
) -> Any:
    """A small BERT checkpoint with random weights as transformers saves it; returns the model."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, BertModel

    torch.manual_seed(0)
    kinds = {
        "feature-extraction": BertModel,
        "text-classification": BertForSequenceClassification,
        "token-classification": BertForTokenClassification,
    }
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
        problem_type=problem,
        initializer_range=0.5,
    )
    directory.mkdir(parents=True)
    model = kinds[task](config).eval()
    model.save_pretrained(directory, safe_serialization=True)
    write_words(directory)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 48})
    )
    if task == "feature-extraction" and pooling:
        write_files(directory, modules())
    return model


def write_decoder(directory: Path, kind: str, task: str = EMBED) -> Any:
    """A small "qwen2" or "qwen3" with random weights that embeds by its last token or classifies; returns the model."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    ends = {"pad_token_id": WORDS.index("[PAD]"), "num_labels": len(LABELS), "initializer_range": 0.2}
    config = AutoConfig.for_model(kind, vocab_size=len(WORDS), **sizes, **heads, **ends)
    model = (AutoModel if task == EMBED else AutoModelForSequenceClassification).from_config(config).eval()
    model.save_pretrained(directory, safe_serialization=True)
    write_words(directory)
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 48})
    )
    if task == EMBED:
        write_files(directory, modules(pooling="lasttoken"))
    return model


def ids_of(directory: Path, text: str) -> list[int]:
    """Ids by the tokenizers library itself, cut as the artifact says."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    return list(tokenizer.encode(text).ids)


def softmax(logits: Any) -> Any:
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def sigmoid(logits: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def config(labels: int, **more: Any) -> dict[str, Any]:
    return {"config.json": {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}} | more}


def with_golden(tmp_path: Path, task: str, change: Callable[[dict[str, Any]], Any] = lambda value: None) -> Path:
    """A toy artifact with an acceptance test by numpy, changed by `change`."""
    directory, answer = write_encoder(tmp_path / "a", task)
    reading = Pooling("mean", True) if task == EMBED else Scores(LABELS, "softmax")
    cases = [(text, ids := ids_of(directory, text), reading(answer(ids))) for text in TEXTS]
    value = golden(cases)
    change(value)
    write_files(directory, {GOLDEN: value})
    return seal(directory, task)
